import numpy as np
import pytest
from pymatgen.core.composition import Composition

from csp.errors import ConfigError
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
    ("distances", "message"), [({"Mg-F": 1.0}, "expected a pair"), ({"Mg-O": 0.0}, "above 0")], ids=["pair", "zero"]
)
def test_given_distances_are_checked(distances: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        Knowledge.initial(("Mg", "O"), 0.0, distances=distances)


def test_an_unknown_element_is_an_error():
    with pytest.raises(ConfigError, match="chemical symbols"):
        Knowledge.initial(("Mg", "Qq"), 0.0)


def test_formulae_are_reduced():
    assert reduced_formula({"Mg": 2, "Ca": 6, "H": 46}) == "Ca3H23Mg"
