import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.units import GPa
from pymatgen.core.composition import Composition

from csp.errors import ConfigError
from csp.geometry import pair_vectors
from csp.knowledge import Knowledge, reduced_formula

# Measured volumes of real crystals, Å^3 per formula unit, at their pressure in GPa.
CRYSTALS = [
    ("MgO", 0, 18.7),
    ("CaO", 0, 27.8),
    ("Al2O3", 0, 42.5),
    ("MgH2", 0, 30.7),
    ("Cu", 0, 11.8),
    ("CaH6", 150, 21.4),
]


@pytest.mark.parametrize(("formula", "pressure", "volume"), CRYSTALS, ids=[c[0] for c in CRYSTALS])
def test_first_volumes_are_within_a_quarter(formula: str, pressure: float, volume: float):
    counts = {str(symbol): int(n) for symbol, n in Composition(formula).get_el_amt_dict().items()}
    assert Knowledge.initial(tuple(counts), pressure).volume(counts) == pytest.approx(volume, rel=0.25)


def test_the_distance_matrix_follows_the_pairs():
    knowledge = Knowledge.initial(("Mg", "O"), 0.0, distances={"O-Mg": 1.6})
    matrix = knowledge.distance_matrix([12, 8, 12])
    assert matrix[0, 1] == knowledge.min_distance("Mg", "O") == 1.6
    assert (matrix == matrix.T).all()
    assert matrix[0, 2] == knowledge.min_distance("Mg", "Mg")


def test_knowledge_survives_json():
    knowledge = Knowledge.initial(("Mg", "Ca", "H"), 200.0)
    assert Knowledge.model_validate_json(knowledge.model_dump_json()) == knowledge


def test_pressure_shrinks():
    low, high = Knowledge.initial(("Ca", "H"), 0.0), Knowledge.initial(("Ca", "H"), 200.0)
    assert high.volume({"Ca": 1, "H": 6}) < 0.6 * low.volume({"Ca": 1, "H": 6})
    assert high.min_distance("Ca", "Ca") < low.min_distance("Ca", "Ca")
    assert np.isclose(low.min_distance("H", "H"), high.min_distance("H", "H"))


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        ({"Mg-F": 1.0}, "expected a pair"),
        ({"Mg-O": 0.0}, "above 0"),
        ({"Mg-O": 1.0, "O-Mg": 2.0}, "two distances"),
    ],
    ids=["pair", "zero", "twice"],
)
def test_given_distances_are_checked(distances: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        Knowledge.initial(("Mg", "O"), 0.0, distances=distances)


@pytest.mark.parametrize("pressure", [0.0, 200.0])
def test_every_element_has_room(pressure: float):
    for symbol in chemical_symbols[1:97]:
        knowledge = Knowledge.initial((symbol,), pressure)
        filling = np.pi / 6 * knowledge.min_distance(symbol, symbol) ** 3 / knowledge.volume({symbol: 1})
        assert 0.001 < filling < 0.46, symbol


def test_an_unknown_element_is_an_error():
    with pytest.raises(ConfigError, match="chemical symbols"):
        Knowledge.initial(("Mg", "Qq"), 0.0)


def test_formulae_are_reduced():
    assert reduced_formula({"Mg": 2, "Ca": 6, "H": 46}) == "Ca3H23Mg"


def _labelled(formula: str, volume: float, *, energy: float = 0.0, pressure: float = 0.0, force: float = 0.1) -> Atoms:
    """Make a CsCl cell (or a simple cube) of given volume with a given label."""
    symbols = list(Composition(formula).get_el_amt_dict())
    points = [[0, 0, 0], [0.5, 0.5, 0.5]][: len(symbols)]
    atoms = Atoms(symbols, scaled_positions=points, cell=[volume ** (1 / 3)] * 3, pbc=True)
    stress = np.array([1, 1, 1, 0, 0, 0]) * -pressure * GPa
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.full((len(atoms), 3), force), stress=stress)
    return atoms


def test_volumes_are_learned_from_labels():
    first = Knowledge.initial(("Mg", "O"), 0.0)
    true = 1.4 * first.volume({"Mg": 1, "O": 1})
    learned = first.learned([_labelled("MgO", true, energy=-10.0 + 0.01 * i) for i in range(20)])
    assert learned.volume({"Mg": 1, "O": 1}) == pytest.approx(true, rel=0.01)
    assert learned.volume({"Mg": 2, "O": 1}) > first.volume({"Mg": 2, "O": 1})
    assert learned.n_labels == 20


def test_a_compressed_label_is_brought_to_the_pressure_of_the_search():
    first = Knowledge.initial(("Mg",), 0.0)
    squeezed = Knowledge.initial(("Mg",), 10.0).volume({"Mg": 1})
    learned = first.learned([_labelled("Mg", squeezed, pressure=10.0)] * 30)
    assert learned.volume({"Mg": 1}) == pytest.approx(first.volume({"Mg": 1}), rel=0.02)


def test_distances_are_learned_but_never_those_that_were_given():
    frames = [_labelled("MgO", 19.0, energy=-10.0)] * 200
    seen = 19.0 ** (1 / 3) * np.sqrt(0.75)
    first = Knowledge.initial(("Mg", "O"), 0.0, distances={"O-O": 1.0})
    learned = first.learned(frames)
    bound = 1.3 * first.min_distance("Mg", "O")
    assert first.min_distance("Mg", "O") < learned.min_distance("Mg", "O") <= min(bound, 0.95 * seen)
    assert learned.min_distance("O", "O") == 1.0
    fixed = Knowledge.initial(("Mg", "O"), 0.0, distances={"Mg-O": 1.5}).learned(frames)
    assert fixed.min_distance("Mg", "O") == 1.5


def test_what_was_learned_can_be_forgotten_but_not_what_was_given():
    first = Knowledge.initial(("Mg", "O"), 0.0, distances={"Mg-O": 1.5}, volumes={"O": 9.0})
    learned = first.learned([_labelled("MgO", 40.0, energy=-10.0)] * 20)
    assert learned.volumes != first.volumes
    assert learned.first() == first


def test_estimated_distances_are_scaled_but_neither_given_nor_learned_ones():
    first = Knowledge.initial(("Mg", "O"), 0.0, distances={"Mg-O": 1.5})
    scaled = first.scaled(1.25)
    assert scaled.min_distance("O", "O") == 1.25 * first.min_distance("O", "O")
    assert scaled.min_distance("Mg", "O") == 1.5
    learned = first.learned([_labelled("MgO", 19.0, energy=-10.0)] * 20)
    assert learned.scaled(1.25) == learned


def test_wild_and_bare_crystals_have_no_say():
    first = Knowledge.initial(("Mg", "O"), 0.0)
    bare = Atoms("MgO", positions=[[0, 0, 0], [2, 0, 0]], cell=[4, 4, 4], pbc=True)
    assert first.learned([bare, _labelled("MgO", 50.0, force=80.0), _labelled("CaO", 30.0)]) == first


def test_shortest_distances_cover_skewed_cells():
    atoms = Atoms("Cu", cell=[[2.5, 0, 0], [12.1, 2.5, 0], [7.4, 19.9, 2.5]], pbc=True)
    first, second, vectors = pair_vectors(atoms, 2.6)
    assert np.linalg.norm(vectors, axis=1).min() == pytest.approx(_brute_shortest(atoms))
    assert (first == second).all()


def _brute_shortest(atoms: Atoms) -> float:
    n = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3), axis=-1).reshape(-1, 3)
    lengths = np.linalg.norm(n[(n != 0).any(axis=1)] @ atoms.cell.array, axis=1)
    return float(lengths.min())
