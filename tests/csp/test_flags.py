"""Every unphysical or suspicious structure gets a flag with a name, and a sound one gets none."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from csp.config import SelectConfig
from csp.errors import DataError
from csp.flags import EnergyFloor, Flag, count_flags, find_flags, relaxation_flag

SETTINGS = SelectConfig()


def alloy(n_mg: int, n_si: int, volume: float) -> Atoms:
    n = n_mg + n_si
    return Atoms(f"Mg{n_mg}Si{n_si}", cell=np.eye(3) * (n * volume) ** (1 / 3), positions=np.zeros((n, 3)), pbc=True)


def labels(rng: np.random.Generator, n: int = 60) -> tuple[list[Atoms], np.ndarray]:
    """Labels with E = -1.5 x_Mg - 5.4 x_Si + a parabola in the volume + up to 1 eV/atom."""
    frames, energies = [], []
    for _ in range(n):
        mg, si, stretch = int(rng.integers(0, 4)), int(rng.integers(1, 4)), rng.uniform(0.7, 1.4)
        x = mg / (mg + si)
        frames.append(alloy(mg, si, stretch * (23 * x + 20 * (1 - x))))
        energies.append(-1.5 * x - 5.4 * (1 - x) + 4 * (stretch - 1) ** 2 + rng.uniform(0, 1))
    return frames, np.array(energies)


@pytest.mark.parametrize(
    "flag", ["too_close", "volume", "energy", "stress", "not_finite", "no_crystal", "unknown_element"]
)
def test_the_reasons_of_unsafe_relaxations_are_flags(flag: str) -> None:
    assert relaxation_flag("unsafe", flag) == Flag(flag)


@pytest.mark.parametrize("reason", ["max_steps", "stalled"])
def test_a_relaxation_without_end_is_unconverged(reason: str) -> None:
    assert relaxation_flag("unconverged", reason) is Flag.UNCONVERGED
    assert relaxation_flag("converged", "") is None


@pytest.mark.parametrize(
    ("status", "reason"),
    [("unsafe", "too_clsoe"), ("unsafe", ""), ("lost", "too_close"), ("unsafe", "max_steps"), ("unconverged", "")],
)
def test_an_unknown_end_is_an_error_that_lists_the_known_ones(status: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"too_close, .* got {status}, '{reason}'"):
        relaxation_flag(status, reason)


@pytest.mark.parametrize("seed", range(4))
def test_no_label_is_below_its_own_floor(seed: int) -> None:
    frames, energies = labels(np.random.default_rng(seed))
    assert EnergyFloor.from_labels(frames, energies).below(frames, energies).max() < 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_a_collapsed_cell_of_low_energy_is_below_the_floor(seed: int) -> None:
    frames, energies = labels(np.random.default_rng(seed))
    floor = EnergyFloor.from_labels(frames, energies)
    physical, collapsed, open_cell = alloy(2, 1, 21.0), alloy(2, 1, 10.0), alloy(2, 1, 200.0)
    expected = -2.8  # eV/atom of this composition at rest
    depth = floor.below([physical, collapsed, open_cell], [expected, expected - 4, expected - 4])
    assert depth[0] < SETTINGS.too_low_ev
    assert (depth[1:] > SETTINGS.too_low_ev).all()


def test_the_floor_depends_on_volume() -> None:
    frames = [bulk("Si", "diamond", a=a) for a in np.linspace(4.4, 6.0, 30)]
    volumes = np.array([atoms.cell.volume / 2 for atoms in frames])
    energies = -5.4 + 30 * np.log(volumes / 20) ** 2
    floor = EnergyFloor.from_labels(frames, energies)
    frames = [bulk("Si", "diamond", a=a) for a in (4.4, 5.43, 6.3)]
    squeezed, relaxed, stretched = floor.below(frames, [-5.4] * 3)
    assert squeezed > 1.0  # the energy of the ground state is unphysical in a cell of half the volume
    assert abs(relaxed) < 0.1
    assert stretched > 0.5


def test_the_floor_knows_that_elements_differ_in_size() -> None:
    sizes = {"Mg": 23.0, "O": 12.0}
    frames, energies = [], []
    for symbol, size in sizes.items():
        for stretch in np.linspace(0.6, 1.7, 40):
            frames.append(Atoms(symbol, cell=np.eye(3) * (size * stretch) ** (1 / 3), pbc=True))
            energies.append(30 * np.log(stretch) ** 2)
    floor = EnergyFloor.from_labels(frames, energies)
    squeezed = Atoms("Mg", cell=np.eye(3) * (23.0 * 0.6) ** (1 / 3), pbc=True)  # an ordinary volume for O, not for Mg
    assert floor.below([squeezed], [0.0])[0] > SETTINGS.too_low_ev


def test_a_volume_that_no_label_has_is_no_reproach() -> None:
    frames, energies = labels(np.random.default_rng(0))
    floor = EnergyFloor.from_labels(frames, energies)
    depth = floor.below([alloy(2, 1, 200.0), alloy(2, 1, 2.0)], [-2.5, -2.5])
    assert (depth < SETTINGS.too_low_ev).all()


@pytest.mark.parametrize("energies", [[], [np.nan], [1.0, 2.0]], ids=["none", "not finite", "too many"])
def test_a_floor_needs_sound_labels(energies: list[float]) -> None:
    with pytest.raises(DataError, match="energy floor: expected a finite energy"):
        EnergyFloor.from_labels([bulk("Si")][: len(energies)], energies)


def test_a_floor_does_not_know_foreign_elements() -> None:
    floor = EnergyFloor.from_labels([bulk("Si")], [-5.4])
    with pytest.raises(DataError, match="got Mg"):
        floor.below([bulk("Mg")], [-1.0])


def test_all_flags_come_together() -> None:
    frames, energies = labels(np.random.default_rng(0))
    floor = EnergyFloor.from_labels(frames, energies)
    crystals = [alloy(2, 1, 21.0) for _ in range(10)]
    values = np.full(10, -2.8)
    values[3], values[4] = -9.0, np.nan
    spreads = np.full(10, 0.01)
    spreads[5] = 0.5
    ends = [("converged", "")] * 10
    ends[6], ends[7], ends[3] = ("unsafe", "too_close"), ("unconverged", "max_steps"), ("unsafe", "energy")
    found = find_flags(crystals, values, spreads, ends, floor, SETTINGS)
    assert found[3] == (Flag.ENERGY, Flag.ENERGY_TOO_LOW)
    assert found[4] == (Flag.NOT_FINITE,)
    assert found[5] == (Flag.COMMITTEE,)
    assert found[6] == (Flag.TOO_CLOSE,)
    assert found[7] == (Flag.UNCONVERGED,)
    assert [found[i] for i in (0, 1, 2, 8, 9)] == [()] * 5
    assert count_flags(found) == {
        "too_close": 1, "energy": 1, "not_finite": 1, "unconverged": 1, "committee": 1, "energy_too_low": 1,
    }  # fmt: skip


def test_a_committee_of_one_disagrees_with_nobody() -> None:
    frames = [bulk("Si")] * 3
    assert find_flags(frames, [-1.0] * 3, [0.0] * 3, [("converged", "")] * 3, None, SETTINGS) == [(), (), ()]


def test_nothing_has_no_flags() -> None:
    assert find_flags([], [], [], [], None, SETTINGS) == []
    assert count_flags([]) == {}


def test_the_committee_flag_adapts_to_the_generation() -> None:
    frames, ends = [bulk("Si")] * 5, [("converged", "")] * 5
    for usual in (1e-4, 1e-1):
        spreads = np.array([1, 1, 1, 1, 1.2 * SETTINGS.committee_factor]) * usual
        found = find_flags(frames, [-1.0] * 5, spreads, ends, None, SETTINGS)
        assert [bool(f) for f in found] == [False] * 4 + [True]


def test_a_reason_is_never_repeated() -> None:
    found = find_flags([bulk("Si")], [np.inf], [0.0], [("unsafe", "not_finite")], None, SETTINGS)
    assert found == [(Flag.NOT_FINITE,)]
    ends = [("converged", "")] * 2
    assert find_flags([bulk("Si")] * 2, [1.0] * 2, [np.inf, 0.1], ends, None, SETTINGS) == [(Flag.NOT_FINITE,), ()]


def test_where_nothing_is_sound_nothing_is_usual() -> None:
    found = find_flags([bulk("Si")], [1.0], [0.5], [("unsafe", "volume")], None, SETTINGS)
    assert found == [(Flag.VOLUME,)]


def test_columns_of_different_length_are_an_error() -> None:
    with pytest.raises(DataError, match="got 1 structures, 2 energies, 1 spreads, 1 ends"):
        find_flags([bulk("Si")], [1.0, 2.0], [0.0], [("converged", "")], None, SETTINGS)
