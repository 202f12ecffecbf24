"""One crystal in many disguises is one; two crystals that resemble each other stay two; names of phases last."""

import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.spacegroup import crystal
from numpy.typing import NDArray

import csp.dedup
from csp.config import SelectConfig
from csp.dedup import Group, distinct, labelled_already, match_known, new_phase_id, space_group
from csp.errors import DataError
from csp.fingerprint import distance, fingerprint, fingerprints

ELEMENTS = ("Mg", "O", "Si")
SETTINGS = SelectConfig()
NOISE = 0.005  # Å, what a relaxation to 0.02 eV/Å leaves


def random_crystal(rng: np.random.Generator, largest: int = 8) -> Atoms:
    n = int(rng.integers(1, largest + 1))
    cell = np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3))
    atoms = Atoms(rng.choice(ELEMENTS[::2], n), cell=cell, scaled_positions=rng.random((n, 3)), pbc=True)
    atoms.set_cell(atoms.cell.array * (18.0 * n / atoms.cell.volume) ** (1 / 3), scale_atoms=True)
    return atoms


def disguised(atoms: Atoms, rng: np.random.Generator, noise: float = NOISE) -> Atoms:
    turns = np.eye(3, dtype=int)
    i, j = rng.choice(3, 2, replace=False)
    turns[i] += int(rng.integers(-1, 2)) * turns[j]
    if rng.random() < 0.3:
        turns[0] *= 2
    other = make_supercell(atoms, turns)
    other = other[rng.permutation(len(other))]
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    other.set_cell(other.cell.array @ axes, scale_atoms=True)
    other.positions += rng.normal(0, 2, 3) + rng.normal(0, noise, other.positions.shape)
    other.set_cell(other.cell.array @ (np.eye(3) + rng.normal(0, noise / 10, (3, 3))), scale_atoms=True)
    other.wrap()
    return other


def sample(rng: np.random.Generator, n: int, copies: int, largest: int = 8) -> tuple[list[Atoms], NDArray, NDArray]:
    frames, truth, enthalpies = [], [], []
    for k in range(n):
        atoms, lowest = random_crystal(rng, largest), rng.normal(0, 0.05)
        for _ in range(copies):
            frames.append(disguised(atoms, rng))
            truth.append(k)
            enthalpies.append(lowest + rng.uniform(0, 0.002))
    return frames, np.array(truth), np.array(enthalpies)


def group(frames: list[Atoms], enthalpies: list[float] | NDArray, settings: SelectConfig = SETTINGS) -> list[Group]:
    return distinct(frames, enthalpies, fingerprints(frames, ELEMENTS), settings)


def perovskite(shift: float) -> Atoms:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    atoms = Atoms("MgSiO3", scaled_positions=sites, cell=np.eye(3) * 3.6, pbc=True)
    atoms.positions[1, 2] += shift
    return atoms


@pytest.mark.parametrize("seed", range(4))
def test_disguises_of_one_crystal_are_one_group(seed: int) -> None:
    frames, truth, enthalpies = sample(np.random.default_rng(seed), 12, 4)
    groups = group(frames, enthalpies)
    assert sorted(i for g in groups for i in g.members) == list(range(48))
    assert len(groups) == 12
    for g in groups:
        assert len(set(truth[list(g.members)])) == 1
        assert g.representative == min(g.members, key=lambda i: enthalpies[i])


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_structures_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames, _, enthalpies = sample(rng, 10, 3)
    order = rng.permutation(len(frames))
    plain = {(g.representative, g.members) for g in group(frames, enthalpies)}
    shuffled = group([frames[i] for i in order], enthalpies[order])
    assert {(int(order[g.representative]), tuple(sorted(int(order[i]) for i in g.members))) for g in shuffled} == plain


SIMILAR = {
    "fcc and hcp": (bulk("Mg", "fcc", a=4.5), bulk("Mg", "hcp", a=4.5 / 2**0.5, c=4.5 / 2**0.5 * (8 / 3) ** 0.5)),
    "hcp and dhcp, both space group 194": (
        bulk("Mg", "hcp", a=3.2, c=3.2 * (8 / 3) ** 0.5),
        Atoms("Mg4", scaled_positions=[(0, 0, 0), (1 / 3, 2 / 3, 0.25), (0, 0, 0.5), (2 / 3, 1 / 3, 0.75)],
              cell=(3.2, 3.2, 6.4 * (8 / 3) ** 0.5, 90, 90, 120), pbc=True),
    ),
    "rocksalt and zincblende": (bulk("MgO", "rocksalt", a=4.2), bulk("MgO", "zincblende", a=4.2)),
    "cation and anion swapped": (
        bulk("MgO", "wurtzite", a=3.2, c=5.2), bulk("OMg", "wurtzite", a=3.2, c=4.6),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("a", "b"), SIMILAR.values(), ids=SIMILAR)
def test_resembling_crystals_stay_two(a: Atoms, b: Atoms) -> None:
    assert len(group([a, b], [0.0, 0.0])) == 2


def test_enthalpy_and_volume_keep_crystals_apart() -> None:
    atoms = bulk("Mg", "hcp", a=3.2)
    denser = atoms.copy()
    denser.set_cell(atoms.cell.array * 0.98, scale_atoms=True)  # volume smaller by 6 %
    assert len(group([atoms, atoms], [0.0, 0.9 * SETTINGS.enthalpy_tolerance_ev])) == 1
    assert len(group([atoms, atoms], [0.0, 1.1 * SETTINGS.enthalpy_tolerance_ev])) == 2
    assert len(group([atoms, denser], [0.0, 0.0])) == 2


def test_the_space_group_has_a_veto(monkeypatch: pytest.MonkeyPatch) -> None:
    cubic, polar = perovskite(0.0), perovskite(0.2)
    gap = distance(fingerprint(cubic, ELEMENTS), fingerprint(polar, ELEMENTS))
    assert SETTINGS.same_distance < gap < SETTINGS.max_distance  # a doubt that must be settled
    assert (space_group(cubic, 0.1), space_group(polar, 0.1)) == (221, 99)
    assert len(group([cubic, polar], [0.0, 0.0])) == 2
    monkeypatch.setattr(csp.dedup, "space_group", lambda atoms, tolerance: 1)  # noqa: ARG005 - stands for the real one
    assert len(group([cubic, polar], [0.0, 0.0])) == 1


def test_noise_is_no_lower_symmetry() -> None:
    cubic, noisy = perovskite(0.0) * (2, 1, 1), perovskite(0.0) * (2, 1, 1)
    noisy.rattle(0.035, seed=1)
    assert SETTINGS.same_distance < distance(fingerprint(cubic, ELEMENTS), fingerprint(noisy, ELEMENTS))
    assert len(group([cubic, noisy], [0.0, 0.001])) == 1


def test_left_and_right_handed_crystals_are_one() -> None:
    right = crystal(
        ["Si", "O"], [(0.47, 0, 0), (0.414, 0.267, 0.119)], spacegroup=152, cellpar=(4.91, 4.91, 5.4, 90, 90, 120)
    )
    left = right.copy()
    left.positions[:, 2] *= -1
    left.wrap()
    left.rattle(0.02, seed=2)
    assert (space_group(right, 0.1), space_group(left, 0.2)) == (152, 154)
    assert len(group([right, left], [0.0, 0.0])) == 1


def test_a_hopeless_cell_has_no_symmetry() -> None:
    assert space_group(Atoms("Mg2", positions=np.zeros((2, 3)), cell=np.eye(3) * 3, pbc=True), 0.1) == 1


def test_fingerprints_that_differ_clearly_settle_the_matter() -> None:
    frames = [perovskite(0.0), perovskite(0.0)]
    frames[1].rattle(0.02, seed=3)
    strict = SETTINGS.model_copy(update={"same_distance": 1e-9, "max_distance": 1e-8})
    prints = fingerprints(frames, ELEMENTS)
    for settings, n in ((SETTINGS, 1), (strict, 2)):
        assert len(group(frames, [0.0, 0.0], settings)) == n
        names = match_known(frames[1:], prints[1:], frames[:1], prints[:1], ["old"], settings)
        assert (names == ["old"]) is (n == 1)


def test_nothing_gives_no_groups() -> None:
    assert group([], []) == []


@pytest.mark.parametrize(
    ("enthalpies", "n_prints", "message"),
    [([0.0], 2, "expected 2 enthalpies"), ([0.0, 0.0], 1, "expected 2 enthalpies"), ([0.0, np.nan], 2, "structure 1")],
    ids=["short enthalpies", "short fingerprints", "not finite"],
)
def test_bad_columns_are_named(enthalpies: list[float], n_prints: int, message: str) -> None:
    frames = [bulk("Mg"), bulk("Si")]
    with pytest.raises(DataError, match=message):
        distinct(frames, enthalpies, fingerprints(frames, ELEMENTS)[:n_prints], SETTINGS)


@pytest.mark.parametrize("seed", range(3))
def test_a_phase_keeps_its_name(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = [random_crystal(rng) for _ in range(8)]
    prints = fingerprints(known, ELEMENTS)
    names = match_known(known, prints, [], prints[:0], [], SETTINGS)
    assert len(set(names)) == 8
    later = []
    for atoms in known:
        grown = disguised(atoms, rng)
        grown.set_cell(grown.cell.array * 1.02, scale_atoms=True)  # the new model makes volumes 6 % larger
        later.append(grown)
    order = rng.permutation(8)
    later = [later[i] for i in order] + [random_crystal(rng)]
    found = match_known(later, fingerprints(later, ELEMENTS), known, prints, names, SETTINGS)
    assert found[:8] == [names[i] for i in order]
    assert found[8] not in names


def test_new_names_do_not_depend_on_order() -> None:
    rng = np.random.default_rng(5)
    frames = [random_crystal(rng) for _ in range(10)]
    prints = fingerprints(frames, ELEMENTS)
    names = match_known(frames, prints, [], prints[:0], [], SETTINGS)
    order = rng.permutation(10)
    shuffled = match_known([frames[i] for i in order], prints[order], [], prints[:0], [], SETTINGS)
    assert shuffled == [names[i] for i in order]


def test_a_known_phase_goes_to_the_nearest_crystal_only() -> None:
    known = bulk("Mg", "hcp", a=3.2, c=5.2)
    near, far = bulk("Mg", "hcp", a=3.2, c=5.21), bulk("Mg", "hcp", a=3.2, c=5.3)
    frames = [far, near]
    names = match_known(
        frames, fingerprints(frames, ELEMENTS), [known], fingerprints([known], ELEMENTS), ["Mg-old"], SETTINGS
    )
    assert names[1] == "Mg-old"
    assert names[0] != "Mg-old"
    assert names[0].startswith("Mg-")


def test_taken_names_are_avoided() -> None:
    print_ = fingerprint(bulk("Mg"), ELEMENTS)
    first = new_phase_id("Mg", print_, set())
    second = new_phase_id("Mg", print_, {first})
    assert first != second
    assert new_phase_id("Mg", print_ + 1e-9, set()) == first  # rounding takes care of the last bits
    assert new_phase_id("Si", print_, set()).startswith("Si-")


def test_bad_known_phases_are_named() -> None:
    frames = [bulk("Mg"), bulk("Si")]
    prints = fingerprints(frames, ELEMENTS)
    with pytest.raises(DataError, match="every known name once, got x"):
        match_known(frames, prints, frames, prints, ["x", "x"], SETTINGS)
    with pytest.raises(DataError, match="one fingerprint and name each"):
        match_known(frames, prints, frames, prints, ["x"], SETTINGS)


def test_only_nearly_the_same_structure_is_labelled_already() -> None:
    labelled = [bulk("MgO", "rocksalt", a=4.2), bulk("Si", "diamond", a=5.4)]
    moved = labelled[0] * (2, 1, 1)
    moved.rattle(0.15, seed=0)
    wider = bulk("MgO", "rocksalt", a=4.25)
    frames = [labelled[0] * (1, 2, 1), moved, wider, bulk("Mg"), bulk("Si", "diamond", a=5.4, cubic=True)]
    answer = labelled_already(
        frames, fingerprints(frames, ELEMENTS), labelled, fingerprints(labelled, ELEMENTS), SETTINGS
    )
    assert answer.tolist() == [True, False, False, False, True]
    assert not labelled_already(frames, fingerprints(frames, ELEMENTS), [], np.zeros((0, 6)), SETTINGS).any()


@pytest.mark.slow
def test_five_thousand_structures_take_less_than_a_minute() -> None:
    frames, truth, enthalpies = sample(np.random.default_rng(0), 1000, 5, largest=16)
    start = time.process_time()
    groups = group(frames, enthalpies)
    assert time.process_time() - start < 60
    assert abs(len(groups) - 1000) < 10
    assert sum(len(set(truth[list(g.members)])) > 1 for g in groups) < 5
