import numpy as np
import pytest
from ase import Atoms
from ase.geometry import get_distances

from csp.config import GenerateConfig
from csp.errors import ConfigError
from csp.generate import Generated, generate
from csp.knowledge import Knowledge

MG_CA_H = ("Mg", "Ca", "H")


def _make(elements: tuple[str, ...], pressure: float, n: int, *, seed: int = 1, **settings: object) -> Generated:
    knowledge = Knowledge.initial(elements, pressure)
    return generate(
        GenerateConfig.model_validate(settings), knowledge, elements=elements, n=n, seed=np.random.SeedSequence(seed)
    )


def _excess(atoms: Atoms, knowledge: Knowledge, scale: float = 1.0) -> float:
    """Least distance minus what is allowed, over all periodic images, by ASE: the oracle."""
    supercell = atoms.repeat(3)
    limit = knowledge.distance_matrix(supercell.numbers)[: len(atoms)] * scale
    distances = get_distances(atoms.positions + np.array([1, 1, 1]) @ atoms.cell.array, supercell.positions)[1]
    distances[distances < 1e-8] = np.inf
    return float((distances - limit).min())


def test_no_pair_is_below_its_minimum():
    knowledge = Knowledge.initial(MG_CA_H, 200.0)
    for atoms in _make(MG_CA_H, 200.0, 60).atoms:
        assert _excess(atoms, knowledge) > -1e-9


def test_the_same_seed_gives_the_same_crystals_whatever_else_is_made():
    few, many = _make(("Mg", "O"), 0.0, 12, compositions=("MgO",)), _make(("Mg", "O"), 0.0, 12, compositions=("MgO",))
    for a, b in zip(few.atoms, many.atoms, strict=True):
        assert (a.positions == b.positions).all()
        assert (a.cell.array == b.cell.array).all()


def test_counts_add_up():
    made = _make(("Mg", "O"), 0.0, 40, compositions=("MgO", "Mg2O"), atoms=(2, 12))
    assert made.asked == 40
    assert made.made == len(made.atoms)
    assert made.asked == made.made + sum(made.refused.values())


def test_a_crystal_carries_where_it_came_from():
    atoms = _make(("Cu",), 0.0, 1, compositions=("Cu",)).atoms[0]
    assert atoms.info["origin"] == "random"
    assert atoms.info["formula"] == "Cu"
    assert 1 <= atoms.info["space_group"] <= 230
    assert {"family", "lineage"} <= set(atoms.info)


def test_a_volume_that_cannot_hold_the_spheres_is_refused_not_violated():
    made = _make(("Cu",), 0.0, 5, compositions=("Cu",), distance_scale=3.0)
    assert made.made == 0
    assert made.refused == {"too_dense": 5}


def test_a_group_that_cannot_hold_the_atoms_is_refused():
    made = _make(("Cu",), 0.0, 3, compositions=("Cu",), formula_units=(1, 1), atoms=(1, 1), space_groups=(230,))
    assert made.made + made.refused.get("no_group", 0) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compositions": ("MgF2",)}, "contains F"),
        ({"compositions": ("MgO)",)}, "expected a formula"),
        ({"compositions": ("Mg30O30",), "atoms": (2, 16)}, "60 atoms per formula unit"),
        ({"element_ranges": {"Mg": (0.9, 0.95)}, "atoms": (2, 4)}, "widen one of"),
        ({"space_groups": (225,), "symmetry_operations": (1, 4)}, "symmetry"),
    ],
    ids=["foreign element", "no formula", "too large", "empty range", "no group"],
)
def test_settings_that_can_never_be_met_are_an_error(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        _make(("Mg", "O"), 0.0, 2, **settings)
