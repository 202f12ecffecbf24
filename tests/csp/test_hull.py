"""The hull agrees with pymatgen, knows every composition, and complains where it must."""

import time

import numpy as np
import pytest
from ase.build import bulk
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core.composition import Composition

from csp.errors import DataError
from csp.hull import Hull, atomic_fractions, formula_of, near_hull

TOLERANCE_EV = 1e-9


def random_entries(rng: np.random.Generator, elements: list[str], n: int) -> tuple[list[str], np.ndarray]:
    formulas = list(elements)
    while len(formulas) < n:
        amounts = rng.integers(0, 7, len(elements))
        if amounts.any():
            formulas.append("".join(f"{e}{k}" for e, k in zip(elements, amounts, strict=True) if k))
    enthalpies = rng.normal(-2, 0.4, n)
    enthalpies[: len(elements)] = rng.normal(-2, 0.4, len(elements))
    return formulas, enthalpies


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("elements", [["Mg"], ["Mg", "Si"], ["Mg", "Ca", "H"], ["Be", "P", "N", "O"]], ids="-".join)
def test_it_agrees_with_pymatgen(elements: list[str], seed: int) -> None:
    formulas, enthalpies = random_entries(np.random.default_rng(seed), elements, 60)
    hull = Hull.from_entries(formulas, enthalpies)
    compositions = [Composition(f) for f in formulas]
    diagram = PhaseDiagram([PDEntry(c, e * c.num_atoms) for c, e in zip(compositions, enthalpies, strict=True)])
    expected = enthalpies - [diagram.get_hull_energy_per_atom(c) for c in compositions]
    assert np.abs(hull.e_above_many(formulas, enthalpies) - expected).max() < TOLERANCE_EV
    stable = {entry.composition.reduced_formula for entry in diagram.stable_entries}
    assert {compositions[i].reduced_formula for i in hull.members} == stable


@pytest.mark.parametrize("seed", range(5))
def test_members_are_on_the_hull_and_nothing_is_below(seed: int) -> None:
    formulas, enthalpies = random_entries(np.random.default_rng(seed), ["Mg", "Ca", "H"], 300)
    hull = Hull.from_entries(formulas, enthalpies)
    distances = hull.e_above_many(formulas, enthalpies)
    assert distances.min() > -TOLERANCE_EV
    assert np.abs(distances[list(hull.members)]).max() < TOLERANCE_EV
    assert (distances > TOLERANCE_EV).sum() == len(formulas) - len(hull.members)


def test_the_order_of_entries_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    formulas, enthalpies = random_entries(rng, ["Mg", "Si"], 50)
    order = rng.permutation(50)
    shuffled = Hull.from_entries([formulas[i] for i in order], enthalpies[order])
    plain = Hull.from_entries(formulas, enthalpies)
    assert sorted(int(order[i]) for i in shuffled.members) == list(plain.members)
    assert np.abs(shuffled.at(formulas) - plain.at(formulas)).max() < TOLERANCE_EV


def test_a_new_compound_below_the_hull_has_a_negative_distance() -> None:
    hull = Hull.from_entries(["Mg", "Si", "Mg2Si"], [-1.5, -5.4, -3.0])
    assert hull.e_above("MgSi", -4.5) == pytest.approx(-4.5 + (0.75 * 3.0 + 0.25 * 5.4))
    assert hull.e_above("Mg4Si2", -3.1) == pytest.approx(-0.1)
    assert hull.e_above("Mg2Si", -2.9) == pytest.approx(0.1)


def test_one_element_is_a_system_too() -> None:
    hull = Hull.from_entries(["H2", "H", "H8"], [-3.2, -3.1, -3.3])
    assert hull.members == (2,)
    assert hull.e_above("H", -3.1) == pytest.approx(0.2)


def test_equal_entries_count_once() -> None:
    assert Hull.from_entries(["Mg", "Mg2", "Si"], [-1.5, -1.5, -5.0]).members == (0, 2)


def test_a_compound_above_its_elements_is_no_member() -> None:
    hull = Hull.from_entries(["Mg", "Si", "MgSi"], [-1.0, -5.0, -2.9])
    assert hull.members == (0, 1)
    assert hull.e_above("MgSi", -2.9) == pytest.approx(0.1)


def test_ten_thousand_candidates_take_seconds() -> None:
    formulas, enthalpies = random_entries(np.random.default_rng(0), ["Mg", "Ca", "H"], 10_000)
    start = time.process_time()
    Hull.from_entries(formulas, enthalpies).e_above_many(formulas, enthalpies)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("formulas", "enthalpies", "message"),
    [
        (["Mg2Si", "Mg"], [-1, -1], "Mg-Si: missing end member Si;"),
        (["Mg2Si"], [-1], "missing end members Mg, Si;"),
        ([], [], "at least one entry"),
        (["Mg", "Si"], [-1], "expected 2 enthalpies"),
        (["Mg", "Si"], [-1, np.nan], r"entry 1 \(Si\) has no finite enthalpy"),
        (["Mg", "Unobtainium"], [-1, -1], "Unobtainium"),
        (["Mg", ""], [-1, -1], "formula ''"),
        (["Mg", "Si0"], [-1, -1], "no atoms"),
    ],
    ids=["one missing", "all missing", "empty", "short", "not finite", "unreadable", "no formula", "no atoms"],
)
def test_bad_entries_are_named(formulas: list[str], enthalpies: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Hull.from_entries(formulas, enthalpies)


def test_a_foreign_element_is_named() -> None:
    hull = Hull.from_entries(["Mg", "Si"], [-1, -5])
    with pytest.raises(DataError, match="MgO: expected only Mg, Si, got O"):
        hull.e_above("MgO", -3.0)
    with pytest.raises(DataError, match="expected 2 enthalpies"):
        hull.e_above_many(["Mg", "Si"], [-1.0])


def test_a_phase_counts_with_its_lowest_label() -> None:
    found = near_hull(
        ["mg", "si", "a", "a", "b", "c"],
        ["Mg", "Si", "Mg2Si", "Mg4Si2", "Mg2Si", "MgSi"],
        [-1.5, -5.0, -2.6, -3.0, -2.98, -1.0],
        window_ev=0.05,
    )
    assert found.members == ("a", "mg", "si")
    assert found.e_above == {"a": 0.0, "mg": 0.0, "si": 0.0, "b": pytest.approx(0.02)}


def test_a_worse_label_within_the_window_does_not_lift_a_phase() -> None:
    found = near_hull(["mg", "a", "a", "b"], ["Mg", "Mg", "Mg", "Mg"], [-1.5, -1.45, -1.48, -1.4], window_ev=0.2)
    assert found.e_above == {"mg": 0.0, "a": pytest.approx(0.02), "b": pytest.approx(0.1)}


def test_near_hull_does_not_depend_on_order() -> None:
    rng = np.random.default_rng(2)
    formulas, enthalpies = random_entries(rng, ["Mg", "Si"], 40)
    names = [f"p{i // 2}" for i in range(40)]
    order = rng.permutation(40)
    shuffled = near_hull([names[i] for i in order], [formulas[i] for i in order], enthalpies[order], 0.2)
    assert shuffled == near_hull(names, formulas, enthalpies, 0.2)


def test_near_hull_wants_a_phase_for_each_formula() -> None:
    with pytest.raises(DataError, match="one phase per formula, got 1 phases, 2 formulas"):
        near_hull(["a"], ["Mg", "Si"], [-1, -1], 0.1)


def test_formulas_are_reduced_and_alphabetical() -> None:
    assert formula_of(bulk("MgO", "rocksalt", a=4.2) * (2, 1, 1)) == "MgO"
    assert formula_of(bulk("H", "fcc", a=2.0) * (2, 2, 1)) == "H"  # never H2: one name for one composition
    assert np.allclose(atomic_fractions(["Mg2Si", "Si"], ["Si", "Mg"]), [[1 / 3, 2 / 3], [1, 0]])
