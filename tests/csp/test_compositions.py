from collections import Counter

import numpy as np
import pytest
from pymatgen.core.composition import Composition

from csp.compositions import CompositionRule, charge_balanced, plan_compositions, reduced_compositions
from csp.config import GenerateConfig
from csp.errors import ConfigError
from csp.knowledge import reduced_formula

SYSTEM = ("Mg", "Ca", "H")


def _plan(n: int, *, seed: int = 0, attempts=None, hull_distances=None, **settings: object) -> Counter[str]:
    cells = plan_compositions(
        SYSTEM,
        GenerateConfig.model_validate(settings),
        np.random.default_rng(seed),
        n,
        attempts=attempts,
        hull_distances=hull_distances,
    )
    return Counter(map(reduced_formula, cells))


def test_reduced_compositions_are_all_there_once():
    rows = reduced_compositions(2, 4).tolist()
    assert sorted(rows) == [[0, 1], [1, 0], [1, 1], [1, 2], [1, 3], [2, 1], [3, 1]]


def test_every_subsystem_gets_its_share():
    plan = _plan(600, atoms=(1, 12))
    orders = Counter()
    for formula, n in plan.items():
        orders[sum(symbol in formula for symbol in ("Mg", "Ca")) + ("H" in formula)] += n
    assert orders[1] == pytest.approx(100, abs=3)
    assert orders[2] == pytest.approx(200, abs=3)
    assert orders[3] == pytest.approx(300, abs=3)
    assert {"Ca", "H", "Mg"} <= set(plan)


def test_simple_formulae_are_not_lost_among_the_many_complicated_ones():
    plan = _plan(6000, atoms=(1, 40), formula_units=(1, 1))
    ternary = {formula: n for formula, n in plan.items() if all(symbol in formula for symbol in ("Mg", "Ca", "H"))}
    sizes = Counter()
    for formula, n in ternary.items():
        sizes[round(Composition(formula).num_atoms)] += n
    shares = [sum(sizes[s] for s in range(first, first + 8)) / sum(sizes.values()) for first in (3, 11, 19, 27, 33)]
    assert all(0.15 < share < 0.3 for share in shares), shares
    assert ternary["CaHMg"] > 20 * max(ternary.get(formula, 0) for formula in ("Ca13H13Mg14", "Ca7H23Mg10"))


def test_cells_hold_whole_formula_units_within_the_range():
    settings = GenerateConfig(atoms=(6, 20), formula_units=(2, 3), compositions=("MgCaH3", "MgH2"))
    for cell in plan_compositions(SYSTEM, settings, np.random.default_rng(1), 100):
        assert 6 <= sum(cell.values()) <= 20
        assert cell["Mg"] in (2, 3)


def test_more_is_spent_near_the_hull_and_less_on_what_was_tried():
    even = _plan(3000, atoms=(1, 4))
    near = _plan(3000, atoms=(1, 4), hull_distances={"CaH2": 0.0, "Ca2H": 2.0})
    assert near["CaH2"] > 2 * near["Ca2H"]
    unseen = _plan(3000, atoms=(1, 4), hull_distances={"Ca2H": 2.0})
    assert unseen["CaH2"] == pytest.approx(near["CaH2"], rel=0.2)
    tried = _plan(3000, atoms=(1, 4), attempts={"H2Mg": 500})
    assert 0 < tried["H2Mg"] < 0.15 * even["H2Mg"]


def test_formulae_are_understood_in_any_order():
    one = _plan(500, atoms=(1, 4), attempts={"CaH2": 1000})
    two = _plan(500, atoms=(1, 4), attempts={"H2Ca": 1000})
    assert one == two


def test_ranges_hold():
    for cell in plan_compositions(
        SYSTEM, GenerateConfig(element_ranges={"H": (0.5, 0.8)}), np.random.default_rng(1), 200
    ):
        assert 0.5 <= cell.get("H", 0) / sum(cell.values()) <= 0.8


def test_charges_balance():
    formulae = np.array([[1, 0, 2], [1, 0, 1], [1, 1, 4], [1, 0, 0], [0, 3, 1]])
    assert charge_balanced(formulae, SYSTEM).tolist() == [True, False, True, True, False]


def test_the_rule_agrees_with_the_plan():
    settings = GenerateConfig(atoms=(2, 12), element_ranges={"Ca": (0.1, 0.5)}, charge_balanced=True)
    rule = CompositionRule(SYSTEM, settings)
    for cell in plan_compositions(SYSTEM, settings, np.random.default_rng(1), 200):
        assert not rule.objection(cell)


@pytest.mark.parametrize(
    ("settings", "counts", "objection"),
    [
        ({}, {"Ca": 1, "H": 2}, ""),
        ({}, {"Ca": 4, "H": 9}, "atoms"),
        ({}, {"Ca": 1}, "atoms"),
        ({}, {"Ca": 1, "F": 2}, "composition"),
        ({"formula_units": (1, 2)}, {"Ca": 3, "H": 6}, "formula_units"),
        ({"formula_units": (2, 8)}, {"Ca": 1, "H": 2}, "formula_units"),
        ({"element_ranges": {"Ca": (0.1, 0.5)}}, {"Mg": 1, "H": 2}, "composition"),
        ({"charge_balanced": True}, {"Ca": 1, "H": 3}, "composition"),
        ({"compositions": ("MgH2",)}, {"Ca": 1, "H": 2}, "composition"),
        ({"compositions": ("Mg2H4",)}, {"Mg": 1, "H": 2}, "formula_units"),
        ({"compositions": ("Mg2H4", "MgH2"), "formula_units": (2, 3)}, {"Mg": 3, "H": 6}, ""),
        ({"compositions": ("Mg2H4", "MgH2"), "formula_units": (2, 3)}, {"Mg": 1, "H": 2}, "formula_units"),
    ],
)
def test_the_rule_tells_what_it_objects_to(settings: dict[str, object], counts: dict[str, int], objection: str):
    rule = CompositionRule(SYSTEM, GenerateConfig.model_validate({"atoms": (2, 12)} | settings))
    assert rule.objection(counts) == objection


def test_a_rule_with_a_range_of_a_foreign_element_is_an_error():
    with pytest.raises(ConfigError, match="got F"):
        CompositionRule(SYSTEM, GenerateConfig(element_ranges={"F": (0.0, 0.5)}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"atoms": (2, 8), "formula_units": (9, 12)}, "no composition of Mg-Ca-H"),
        ({"element_ranges": {"F": (0.0, 0.5)}}, "got F"),
        ({"element_ranges": {"H": (0.0, 0.3), "Mg": (0.0, 0.3), "Ca": (0.0, 0.3)}}, "widen one of"),
        ({"compositions": ("MgH0.5",)}, "whole numbers"),
        ({"compositions": ("MgCaF",)}, "contains F"),
        ({"compositions": ("MgH2", "MgH3"), "charge_balanced": True}, "balance MgH3"),
        ({"compositions": ("MgH2", "MgH5"), "element_ranges": {"H": (0.5, 0.8)}}, "MgH5 is 0.833 H"),
        ({"compositions": ("MgH2",), "element_ranges": {"F": (0.0, 0.5)}}, "got F"),
    ],
    ids=["units", "foreign range", "empty ranges", "fractional", "foreign", "charges", "out of range", "strange"],
)
def test_what_can_never_be_is_an_error(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        _plan(10, **settings)


def test_a_system_too_large_to_list_says_so():
    with pytest.raises(ConfigError, match=r"lower generate\.atoms"):
        plan_compositions(("Li", "Be", "B", "C", "N", "O"), GenerateConfig(atoms=(2, 60)), np.random.default_rng(0), 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"atoms": (5, 2)}, "least <= most"),
        ({"space_groups": (0,)}, "1 to 230"),
        ({"space_groups": ()}, "at least one number"),
        ({"compositions": ()}, "at least one formula"),
        ({"element_ranges": {"H": (0.6, 0.5)}}, "element_ranges.H"),
        ({"random_share": 0, "prototype_share": 0, "mutation_share": 0}, "one above 0"),
        ({"space_group": (1,)}, "Extra inputs"),
    ],
    ids=["atoms", "group 0", "no groups", "no formulae", "range", "shares", "misspelled"],
)
def test_settings_are_checked(settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        GenerateConfig.model_validate(settings)
