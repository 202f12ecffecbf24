"""Every guard by name, and that a failing structure leaves the others alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest
import torch
from analytic import Morse, Output, random_crystals
from ase import Atoms
from ase.constraints import FixAtoms
from ase.neighborlist import neighbor_list

from acnn.batch import Batch
from acnn.config import RelaxConfig
from acnn.errors import ConfigError, NumericalError
from acnn.neighbors import build_neighbors
from acnn.relax import FailureReason, Relaxed, RelaxStatus, guard, relax
from acnn.relax.cache import NeighborCache
from acnn.relax.engine import Engine
from acnn.relax.guard import distance_table
from acnn.relax.lbfgs import History
from acnn.relax.memory import affordable
from acnn.relax.minimizer import Minimizer
from acnn.relax.pool import Job, Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from acnn.neighbors import Neighbors


class Spoiled(Morse):
    """Morse, but the energy of structures with hydrogen goes wrong as told."""

    def __init__(self, wrong: str) -> None:
        super().__init__()
        self.wrong = wrong

    def compute(self, batch: Batch, neighbors: Neighbors | None = None) -> Output:
        """Evaluate a batch, wrongly."""
        output = super().compute(batch, neighbors)
        has_hydrogen = torch.zeros(len(batch.cells), dtype=torch.bool)
        has_hydrogen[batch.system[batch.numbers == 1]] = True
        if self.wrong == "energy":
            volume = torch.linalg.det(batch.cells).abs()
            output.energy = torch.where(has_hydrogen, output.energy * 1e3, output.energy)
            output.stress = torch.where(has_hydrogen[:, None, None], output.stress * 1e3, output.stress)
            output.forces = torch.where(has_hydrogen[batch.system, None], output.forces * 1e3, output.forces)
            return output
        if self.wrong == "collapse":
            volume = torch.linalg.det(batch.cells).abs()
            pull = torch.eye(3, dtype=volume.dtype)
            output.energy = torch.where(has_hydrogen, volume, output.energy)
            output.stress = torch.where(has_hydrogen[:, None, None], pull, output.stress)
            output.forces = torch.where(has_hydrogen[batch.system, None], torch.zeros(3), output.forces)
            return output
        output.energy = torch.where(has_hydrogen, torch.nan, output.energy)
        output.forces = torch.where(has_hydrogen[batch.system, None], torch.nan, output.forces)
        return output


def test_distances_are_judged_alike_in_c_and_by_torch(monkeypatch: pytest.MonkeyPatch):
    frames = [*random_crystals(3, 5, (1, 9)), Atoms("H", cell=np.eye(3) * 20, pbc=True), with_hydrogen()]
    batch = Batch.from_atoms(frames, torch.float64)
    neighbors = build_neighbors(batch, 4.0)
    batch.positions[1] = torch.nan
    table = torch.as_tensor(distance_table(None))
    compiled = guard.closest_ratio(batch, neighbors, table)
    monkeypatch.setattr(guard, "load_library", lambda *_: None)
    assert torch.allclose(compiled, guard.closest_ratio(batch, neighbors, table))
    assert compiled[batch.system[1]] == 0
    assert compiled[5] == torch.inf


def with_hydrogen() -> Atoms:
    return Atoms(
        "H4", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.1], [0.5, 0, 0.6], [0, 0.5, 0.5]], cell=[4, 4, 4], pbc=True
    )


def one(
    atoms: Atoms, potential: Morse | None = None, settings: RelaxConfig | None = None, pressure_gpa: float = 0.0
) -> Relaxed:
    (result,) = relax([atoms], potential or Morse(), settings or RelaxConfig(), pressure_gpa=pressure_gpa)
    return result


def test_atoms_too_close_at_the_start_are_unsafe_without_a_safe_frame():
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [0.8, 0, 0]], cell=np.eye(3) * 6, pbc=True)
    result = one(atoms)
    assert (result.status, result.reason) == (RelaxStatus.UNSAFE, FailureReason.TOO_CLOSE)
    assert result.last_safe is None
    assert np.allclose(result.atoms.positions, atoms.positions)


def test_a_pair_limit_reached_on_the_way_keeps_the_last_safe_frame():
    frames = [r.atoms for r in relax(random_crystals(3, 3), Morse(), RelaxConfig(), pressure_gpa=0.0)]
    limits = {("Al", "Al"): 2.0, ("Al", "Cu"): 2.0, ("Cu", "Cu"): 2.0}
    settings = RelaxConfig(bonds_scale=1.0)
    for result in relax(frames, Morse(), settings, pressure_gpa=2000.0, min_distance=limits):
        assert (result.status, result.reason) == (RelaxStatus.UNSAFE, FailureReason.TOO_CLOSE)
        assert result.last_safe is not None
        assert 2.0 <= neighbor_list("d", result.last_safe, 4.0).min() < 2.1


@pytest.mark.parametrize(
    ("wrong", "reason", "safe"),
    [
        ("nan", FailureReason.NOT_FINITE, False),
        ("energy", FailureReason.ENERGY, True),
        ("collapse", FailureReason.VOLUME, True),
    ],
    ids=["not finite", "energy", "volume"],
)
def test_a_failing_structure_is_named_and_leaves_the_others_alone(wrong: str, reason: FailureReason, safe: bool):  # noqa: FBT001
    frames = random_crystals(4, 4)
    limits = {("H", "H"): 0.1}
    alone = list(relax(frames, Morse(), RelaxConfig(), pressure_gpa=0.0))
    mixed = [frames[0], with_hydrogen(), *frames[1:]]
    settings = RelaxConfig(energy_drop=20.0, stress_limit_gpa=1e6, volume_shrink=0.5)
    together = list(relax(mixed, Spoiled(wrong), settings, pressure_gpa=0.0, min_distance=limits))
    bad = together.pop(1)
    assert (bad.status, bad.reason) == (RelaxStatus.UNSAFE, reason)
    assert (bad.last_safe is not None) is safe
    for one_result, other in zip(alone, together, strict=True):
        assert other.status is RelaxStatus.CONVERGED
        assert other.energy == pytest.approx(one_result.energy, abs=1e-8)


def test_starts_that_cannot_be_evaluated_are_set_aside():
    frames = random_crystals(4, 3)
    flat, lost = frames[0].copy(), frames[0].copy()
    flat.set_cell(flat.cell.array * [[1e-4], [1.0], [1.0]])
    lost.positions[0, 0] = np.nan
    mixed = [flat, frames[1], lost, frames[2], flat]
    results = list(relax(mixed, Morse(), RelaxConfig(), pressure_gpa=0.0))
    reasons = [FailureReason.VOLUME, "", FailureReason.NOT_FINITE, "", FailureReason.VOLUME]
    assert [r.reason for r in results] == reasons
    assert results[0].last_safe is None
    (only,) = relax([flat], Morse(), RelaxConfig(), pressure_gpa=0.0)
    assert only.reason == FailureReason.VOLUME


def test_what_is_no_crystal_of_known_elements_is_set_aside_by_itself():
    class Picky(Morse):
        elements = ("Al", "Cu")

    frames = random_crystals(4, 2)
    flat, unknown, dummy = (frames[0].copy() for _ in range(3))
    flat.cell[2] = flat.cell[1]
    unknown.symbols[0] = "Si"
    dummy.symbols[0] = "X"
    bad = [flat, unknown, dummy, Atoms("Al", positions=[[0, 0, 0]]), Atoms(cell=np.eye(3), pbc=True)]
    alone = list(relax(frames, Picky(), RelaxConfig(), pressure_gpa=0.0))
    results = list(relax([frames[0], *bad, frames[1]], Picky(), RelaxConfig(), pressure_gpa=0.0))
    assert [r.reason for r in results] == ["", "volume", "unknown_element", *["no_crystal"] * 3, ""]
    assert {r.status for r in results[1:6]} == {RelaxStatus.UNSAFE}
    assert [results[0].energy, results[6].energy] == [r.energy for r in alone]


def test_starts_whose_neighbors_could_not_be_counted_are_set_aside():
    good = random_crystals(4, 1)[0]
    away, thin, hidden, torn = good.copy(), good.copy(), good.copy(), good.copy()
    away.positions[0, 0] = 1e18
    thin.set_cell([1e4, 1e4, 1e-6])
    hidden.set_cell([[100.0, 0.0, 0.0], [0.001, 100.0, 0.0], [0.0, 700.0, 0.1]])
    torn.cell[0, 0] = np.nan
    results = list(relax([away, thin, hidden, torn, good], Morse(), RelaxConfig(), pressure_gpa=0.0))
    far, close = FailureReason.NOT_FINITE, FailureReason.TOO_CLOSE
    assert [r.reason for r in results] == [far, close, close, far, ""]


def test_a_skewed_cell_of_a_sound_lattice_is_relaxed():
    atoms = random_crystals(4, 1, (2, 2))[0]
    skewed = atoms.copy()
    skewed.set_cell(np.array([[1, 0, 0], [40, 1, 0], [-30, 50, 1]]) @ atoms.cell.array)
    assert one(skewed).energy == pytest.approx(one(atoms).energy, abs=1e-3)


def test_stress_beyond_the_limit_is_unsafe():
    result = one(random_crystals(0, 1)[0], settings=RelaxConfig(stress_limit_gpa=0.1))
    assert (result.status, result.reason) == (RelaxStatus.UNSAFE, FailureReason.STRESS)


def test_a_structure_out_of_steps_says_so():
    result = one(random_crystals(0, 1)[0], settings=RelaxConfig(max_steps=3))
    assert (result.status, result.reason, result.n_steps) == (RelaxStatus.UNCONVERGED, FailureReason.MAX_STEPS, 3)
    assert result.last_safe is None


def ask_for_too_much() -> None:
    torch.empty(10**15)


def refuse_on_a_gpu() -> NoReturn:
    raise torch.OutOfMemoryError


@pytest.mark.parametrize("fail", [ask_for_too_much, refuse_on_a_gpu])
def test_running_out_of_memory_halves_the_batch(fail: Callable[[], None]):
    refused: list[int] = []

    class Small(Morse):
        def compute(self, batch: Batch, neighbors: Neighbors | None = None) -> Output:
            if len(batch.numbers) > 20:
                refused.append(len(batch.numbers))
                fail()
            return super().compute(batch, neighbors)

    frames = random_crystals(5, 6)
    results = list(relax(frames, Small(), RelaxConfig(), pressure_gpa=0.0))
    assert all(r.status is RelaxStatus.CONVERGED for r in results)
    assert len(refused) <= 3, "what did not fit is tried again at every step"
    large = random_crystals(5, 1, (24, 24))
    with pytest.raises(NumericalError, match="one structure of 24 atoms"):
        list(relax(large, Small(), RelaxConfig(), pressure_gpa=0.0))


@pytest.mark.parametrize("fail", [ask_for_too_much, refuse_on_a_gpu])
@pytest.mark.parametrize(("owner", "method"), [(Pool, "enter"), (Minimizer, "start"), (History, "__init__")])
def test_running_out_of_memory_with_those_that_enter_halves_the_batch(
    monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None], owner: type, method: str
):
    frames = random_crystals(5, 40, (2, 6))
    before = list(relax(frames, Morse(), RelaxConfig(), pressure_gpa=0.0))
    refused: list[int] = []
    original = getattr(owner, method)

    def small(self: object, first: int | list[int] | torch.Tensor, *rest: object) -> object:
        n_slots = first if isinstance(first, int) else len(first)
        if n_slots > 6:
            refused.append(n_slots)
            fail()
        return original(self, first, *rest)

    monkeypatch.setattr(owner, method, small)
    results = list(relax(frames, Morse(), RelaxConfig(), pressure_gpa=0.0))
    assert [r.index for r in results] == list(range(40))
    assert [r.n_steps for r in results] == [r.n_steps for r in before]
    assert 0 < len(refused) <= 8


def test_no_memory_for_the_slots_of_one_structure_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Pool, "enter", lambda *_: refuse_on_a_gpu())
    with pytest.raises(NumericalError, match="one structure of 5 atoms"):
        list(relax(random_crystals(5, 3, (5, 5)), Morse(), RelaxConfig(), pressure_gpa=0.0))


def test_neighbors_that_cannot_be_kept_are_searched_again(monkeypatch: pytest.MonkeyPatch):
    frames = random_crystals(5, 4)
    kept = list(relax(frames, Morse(), RelaxConfig(), pressure_gpa=0.0))

    def refuse(*_: object) -> NoReturn:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(NeighborCache, "_reserve", refuse)
    searched = list(relax(frames, Morse(), RelaxConfig(), pressure_gpa=0.0))
    assert [r.n_steps for r in searched] == [r.n_steps for r in kept]


def test_a_large_structure_whose_neighbors_cannot_be_kept_ends_nobody(monkeypatch: pytest.MonkeyPatch):
    frames = random_crystals(5, 12, (2, 6)) + random_crystals(5, 1, (60, 60))
    kept = list(relax(frames, Morse(), RelaxConfig(max_steps=20), pressure_gpa=0.0))
    reserve = NeighborCache._reserve

    def small(self: NeighborCache, n_atoms: int, width: int) -> None:
        if n_atoms > 50:
            raise torch.OutOfMemoryError
        reserve(self, n_atoms, width)

    monkeypatch.setattr(NeighborCache, "_reserve", small)
    for some in (frames, frames[-1:]):
        results = list(relax(some, Morse(), RelaxConfig(max_steps=20), pressure_gpa=0.0))
        assert [r.n_steps for r in results] == [r.n_steps for r in kept[-len(some) :]]


def test_a_large_structure_that_fits_alone_only_waits_until_it_is(monkeypatch: pytest.MonkeyPatch):
    frames = [*random_crystals(5, 1, (60, 60)), *random_crystals(5, 12, (2, 6))]
    settings = RelaxConfig(max_steps=20)
    before = list(relax(frames, Morse(), settings, pressure_gpa=0.0))
    compute, refused = Morse.compute, []
    engine = Engine(Morse(), settings, distance_table(None))

    def crowded(self: Morse, batch: Batch, neighbors: Neighbors | None = None) -> Output:
        if batch.n_atoms >= 60 and engine.budget.in_flight > 60:
            refused.append(engine.budget.in_flight)
            raise torch.OutOfMemoryError
        return compute(self, batch, neighbors)

    monkeypatch.setattr(Morse, "compute", crowded)
    results = sorted(engine.run(Job(k, a, 0.0) for k, a in enumerate(frames)), key=lambda r: r.index)
    assert [r.index for r in results] == list(range(13))
    assert [r.n_steps for r in results] == [r.n_steps for r in before]
    assert refused
    assert engine.budget.in_flight == 0


def test_refused_structures_are_handed_out_as_they_come(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("acnn.relax.engine.MOST_REFUSED", 10)
    read = []

    def flat() -> Iterator[Atoms]:
        for number in range(100):
            read.append(number)
            yield Atoms("Al", cell=[1.0, 1.0, 0.0], pbc=True)

    results = relax(flat(), Morse(), RelaxConfig(), pressure_gpa=0.0)
    assert next(results).reason == FailureReason.VOLUME
    assert len(read) < 20
    assert len(list(results)) == 99


def test_memory_that_pytorch_keeps_is_free(monkeypatch: pytest.MonkeyPatch):
    free = [30_000_000]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free[0], 240_000_000))
    alone = affordable(torch.device("cuda"))
    assert 0 < affordable(torch.device("cuda"), 16) < alone
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(free.pop() + 90_000_000))
    assert affordable(torch.device("cuda")) == 4 * alone


def test_distances_can_be_given_by_pair_or_by_number():
    table = distance_table({("Cu", "Al"): 2.0})
    assert table[13, 29] == table[29, 13] == 2.0
    assert distance_table(table)[13, 29] == 2.0
    assert (distance_table(None) > 0).all()
    with pytest.raises(ConfigError, match="Xx"):
        distance_table({("Xx", "Al"): 2.0})
    with pytest.raises(ConfigError, match="square"):
        distance_table(np.zeros((3, 2)))


def test_constraints_that_are_not_kept_are_mentioned_once(caplog: pytest.LogCaptureFixture):
    frames = random_crystals(0, 3)
    for atoms in frames[1:]:
        atoms.set_constraint(FixAtoms([0]))
    assert len(list(relax(frames, Morse(), RelaxConfig(), pressure_gpa=0.0))) == 3
    assert [r.message for r in caplog.records if "constraints" in r.message] == [
        "structure 1: constraints are not kept, all atoms and the cell are relaxed"
    ]


def test_pressures_that_do_not_fit_the_structures_are_refused():
    good = random_crystals(0, 1)[0]
    with pytest.raises(ConfigError, match="pressure_gpa"):
        list(relax([good, good], Morse(), RelaxConfig(), pressure_gpa=[0.0]))
    with pytest.raises(ConfigError, match="of 1 structures, got 2"):
        list(relax([good], Morse(), RelaxConfig(), pressure_gpa=[0.0, 1.0]))
    with pytest.raises(ConfigError, match="pressure_gpa"):
        list(relax(iter([good, good]), Morse(), RelaxConfig(), pressure_gpa=[0.0]))
    with pytest.raises(ConfigError, match="of 1 structures, got 2"):
        list(relax(iter([good]), Morse(), RelaxConfig(), pressure_gpa=[0.0, 1.0]))
    with pytest.raises(ConfigError, match="finite"):
        list(relax([good], Morse(), RelaxConfig(), pressure_gpa=np.nan))
