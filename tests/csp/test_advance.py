"""The search stops when it knows its answer or when its budget is spent, and always says why."""

import pytest
from pydantic import ValidationError

from csp.advance import Decision, StopReason, decide, to_near_hull
from csp.config import AdvanceConfig, SelectConfig
from csp.errors import DataError
from csp.hull import NearHull
from csp.knowledge import Knowledge
from csp.state import Ledger, Outcome, SearchState, initial_state, update_state

KNOWLEDGE = Knowledge.initial(["Mg", "Si"], 0.0)
SELECT = SelectConfig()
RULE = AdvanceConfig(
    max_generations=50,
    unchanged_generations=2,
    near_hull_ev=0.03,
    near_hull_slack_ev=0.002,
    walk_forward_mev=20,
    rediscoveries=3,
    min_attempts=40,
)
HULL = {"Mg-1": 0.0, "Si-1": 0.0, "Mg2Si-1": 0.0}
COUNTED = Ledger(
    attempts={"Mg": 10, "Si": 10, "Mg2Si": 10},
    times_found=dict.fromkeys(HULL, 5),
    hull_distances={"Mg": 0.0, "Si": 0.0, "Mg2Si": 0.0},
)
GOOD = Outcome(
    hull=tuple(HULL),
    near_hull=HULL,
    n_relaxed=100,
    n_unsafe=5,
    n_asked=20,
    n_labels=19,
    walk_forward_mev=8.0,
    started="2026-01-01T00:00:00+00:00",
    hours=0.5,
)
FIRST = GOOD.model_copy(update={"n_relaxed": 0, "n_unsafe": 0, "walk_forward_mev": None})


def begin() -> SearchState:
    return initial_state(knowledge=KNOWLEDGE, select=SELECT, n_structures=100, compositions=["Mg", "Si", "Mg2Si"])


def run(outcomes: list[Outcome], settings: AdvanceConfig = RULE) -> SearchState:
    state = begin()
    for number, outcome in enumerate(outcomes, start=1):
        later = outcome.model_copy(update={"hours": number * outcome.hours})  # since the search began
        state = update_state(state, later, KNOWLEDGE, SELECT, settings)
    return state


def ledger(*counted: Ledger) -> Ledger:
    found = Ledger()
    for part in counted:
        found = found.added(part)
    return found


FOUR = ledger(*[COUNTED] * 4)


def changed(**values: object) -> Outcome:
    return Outcome.model_validate(GOOD.model_dump() | values)


def counted(**values: object) -> Ledger:
    return Ledger.model_validate(COUNTED.model_dump() | values)


def conditions(decision: Decision) -> dict[str, bool]:
    return {c.name: c.holds for c in decision.conditions}


CONVERGING = [FIRST, GOOD, GOOD, GOOD]


def test_a_search_that_knows_its_answer_stops() -> None:
    decision = decide(run(CONVERGING), FOUR, RULE)
    assert decision.stop
    assert decision.reason is StopReason.CONVERGED
    assert all(conditions(decision).values())
    for words in ("has converged", "3 phases within 30 meV/atom", "3 generations (needs 2)", "8.0 meV/atom (needs",
                  "found 5 times (needs 3)", "had 40 attempts (needs 40", "do not hold: none"):  # fmt: skip
        assert words in decision.why


ONE_MISSING = {
    "unchanged": (changed(near_hull=HULL | {"Mg-2": 0.01}), COUNTED),
    "predictive": (changed(walk_forward_mev=20.1), COUNTED),
    "rediscovered": (GOOD, counted(times_found={"Mg-1": 5, "Si-1": 5, "Mg2Si-1": 2})),
    "attempted": (GOOD, counted(attempts={"Mg": 10, "Si": 9, "Mg2Si": 10})),
}


@pytest.mark.parametrize("name", ONE_MISSING)
def test_each_condition_alone_keeps_the_search_going(name: str) -> None:
    last, last_counted = ONE_MISSING[name]
    decision = decide(run([FIRST, GOOD, GOOD, last]), ledger(*[COUNTED] * 3, last_counted), RULE)
    assert not decision.stop
    assert decision.reason is None
    assert [k for k, holds in conditions(decision).items() if not holds] == [name]
    missing = next(c.text for c in decision.conditions if c.name == name)
    assert f"do not hold: {missing}." in decision.why
    assert decision.why.startswith("The search goes on")


def test_conditions_hold_at_their_limits() -> None:
    at_limit = counted(times_found=dict.fromkeys(HULL, 3))
    state = run([FIRST, GOOD, GOOD, changed(walk_forward_mev=20.0)])
    assert decide(state, ledger(*[COUNTED] * 3, at_limit), RULE).stop


def test_a_search_that_was_never_tried_is_only_stuck() -> None:
    decision = decide(run([FIRST, *[GOOD] * 10]), Ledger(), RULE)
    assert conditions(decision) == {"unchanged": True, "predictive": True, "rediscovered": False, "attempted": False}
    assert not decision.stop


def test_a_planned_composition_that_was_never_made_keeps_the_search_going() -> None:
    state = run(CONVERGING).model_copy(update={"compositions": ("Mg", "Mg3Si", "Si")})
    decision = decide(state, FOUR, RULE)
    assert conditions(decision)["attempted"] is False
    assert "the least tried of 4 compositions, Mg3Si, had 0 attempts" in decision.why


def test_a_hull_member_that_nobody_counted_was_found_zero_times() -> None:
    decision = decide(run(CONVERGING), counted(times_found={"Mg-1": 9, "Si-1": 9}), RULE)
    assert "Mg2Si-1, was found 0 times" in decision.why


def test_finds_are_remembered_when_a_phase_is_out_of_sight_and_follow_it_to_its_new_name() -> None:
    found = ledger(COUNTED, counted(times_found={"Mg-1": 9}))
    assert found.times_found == {"Mg-1": 9, "Si-1": 5, "Mg2Si-1": 5}
    found = ledger(
        COUNTED,
        counted(times_found={"Mg-2": 9}, aliases={"Mg-1": "Mg-2"}),
        counted(times_found={"Mg-3": 9}, aliases={"Mg-2": "Mg-3"}),
    )
    assert found.aliases == {"Mg-1": "Mg-3", "Mg-2": "Mg-3"}
    assert found.times_found == {"Si-1": 5, "Mg2Si-1": 5, "Mg-3": 9}


def test_the_ledger_adds_attempts_and_replaces_distances() -> None:
    found = ledger(COUNTED, Ledger(attempts={"Si": 2, "MgSi": 1}, hull_distances={"Si": 0.1, "MgSi": 0.4}))
    assert found.attempts == {"Mg": 10, "Mg2Si": 10, "MgSi": 1, "Si": 12}
    assert found.hull_distances == {"Mg": 0.0, "Si": 0.1, "Mg2Si": 0.0, "MgSi": 0.4}


@pytest.mark.parametrize(
    ("before", "after", "is_change"),
    [(0.0299, 0.0301, False), (0.0301, 0.0299, False), (0.0299, 0.0330, True), (0.0330, 0.0299, True),
     (0.0299, None, True), (0.0320, None, False), (None, 0.0310, False), (0.001, 0.029, False)],
)  # fmt: skip
def test_a_phase_that_flickers_at_the_edge_is_no_change(
    before: float | None,
    after: float | None,
    is_change: bool,  # noqa: FBT001 - a column of the table
) -> None:
    first = changed(near_hull=HULL | ({"x": before} if before is not None else {}))
    second = changed(near_hull=HULL | ({"x": after} if after is not None else {}))
    decision = decide(run([first, first, first, second, second]), FOUR, RULE)
    assert f"have not changed for {1 if is_change else 4} generations" in decision.why


def test_a_new_hull_member_starts_the_count_again() -> None:
    deeper = changed(hull=("Mg-1", "Si-1", "MgSi-1"), near_hull={"Mg-1": 0.0, "Si-1": 0.0, "MgSi-1": 0.0})
    state = run([FIRST, GOOD, GOOD, deeper])
    assert conditions(decide(state, FOUR, RULE))["unchanged"] is False


BUDGETS = {
    StopReason.MAX_GENERATIONS: (RULE.model_copy(update={"max_generations": 3}), "3 of 3 generations"),
    StopReason.MAX_LABELS: (RULE.model_copy(update={"max_labels": 60}), "60 of 60 labels"),
    StopReason.MAX_HOURS: (RULE.model_copy(update={"max_hours": 1.5}), "1.5 of 1.5 hours have passed"),
}


@pytest.mark.parametrize("reason", BUDGETS)
def test_a_spent_budget_stops_the_search_and_says_what_is_missing(reason: StopReason) -> None:
    settings, words = BUDGETS[reason]
    two, three = run([FIRST, GOOD]), run([FIRST, GOOD, GOOD])
    assert not decide(two, ledger(*[COUNTED] * 2), settings).stop
    decision = decide(three, ledger(*[COUNTED] * 3), settings)
    assert (decision.stop, decision.reason) == (True, reason)
    assert words in decision.why
    assert "unconverged" in decision.why
    assert "30 attempts (needs 40" in decision.why


def test_convergence_comes_before_a_spent_budget() -> None:
    settings = RULE.model_copy(update={"max_generations": 4})
    assert decide(run(CONVERGING), FOUR, settings).reason is StopReason.CONVERGED


def test_a_missing_metric_is_an_error_and_no_reason_to_stop() -> None:
    state = run([*CONVERGING, changed(walk_forward_mev=None)])
    with pytest.raises(DataError, match="generation 4 asked for 20 labels but has no walk-forward error"):
        decide(state, FOUR, RULE)


def test_a_generation_with_nothing_new_to_label_keeps_the_last_metric() -> None:
    idle = changed(walk_forward_mev=None, n_asked=0, n_labels=0)
    assert "8.0 meV/atom" in decide(run([FIRST, GOOD, idle, idle, idle]), FOUR, RULE).why
    with pytest.raises(DataError, match="generation 1"):
        decide(run([FIRST, changed(walk_forward_mev=None), idle]), FOUR, RULE)


def test_the_first_generation_is_not_the_last() -> None:
    decision = decide(run([FIRST]), COUNTED, RULE)
    assert not decision.stop
    assert "no walk-forward error yet" in decision.why


def test_a_loose_rule_still_wants_a_hull() -> None:
    loose = AdvanceConfig(unchanged_generations=1, rediscoveries=1, min_attempts=0, walk_forward_mev=1e9)
    empty = changed(hull=(), near_hull={})
    held = conditions(decide(run([empty, empty, empty], loose), Ledger(), loose))
    assert held["unchanged"] is False
    assert held["rediscovered"] is False


def test_nothing_finished_nothing_decided() -> None:
    with pytest.raises(DataError, match="no generation has finished"):
        decide(begin(), Ledger(), RULE)


def test_the_state_adds_up() -> None:
    state = run(CONVERGING)
    assert state.generation == 4
    assert [r.generation for r in state.history] == [0, 1, 2, 3]
    assert [r.n_labels for r in state.history] == [19, 38, 57, 76]
    assert state.n_labels == 76
    assert state.n_asked == 80  # failed ones too
    assert state.hours == pytest.approx(2.0)
    assert [r.hours for r in state.history] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert FOUR.attempts == {"Mg": 40, "Si": 40, "Mg2Si": 40}
    assert FOUR.times_found == dict.fromkeys(HULL, 5)
    assert [r.unsafe_fraction for r in state.history] == [0.0, 0.05, 0.05, 0.05]


def test_the_state_feeds_back() -> None:
    calm, wild = changed(n_unsafe=0), changed(n_unsafe=90)
    assert run([FIRST]).bonds_scale == SELECT.bonds_scale  # nothing was relaxed, nothing was learned
    assert run([FIRST]).n_structures == 100
    assert run([FIRST, calm]).bonds_scale > SELECT.bonds_scale
    assert run([FIRST, wild]).bonds_scale < SELECT.bonds_scale
    grown = run([FIRST, GOOD, GOOD])
    assert [r.n_structures for r in grown.history] == [100, 100, 200]
    assert grown.n_structures == 400


def test_the_state_survives_json_and_stays_small() -> None:
    state = run([FIRST, *[GOOD] * 19])
    text = state.model_dump_json()
    assert SearchState.model_validate_json(text) == state
    assert len(text) < 100_000


def test_the_state_never_changes() -> None:
    state = begin()
    with pytest.raises(ValidationError, match="frozen"):
        state.generation = 3  # type: ignore[misc] # the point of the test
    update_state(state, GOOD, KNOWLEDGE, SELECT, RULE)
    assert state == begin()


def test_an_impossible_outcome_is_an_error() -> None:
    with pytest.raises(DataError, match="101 unsafe structures of 100"):
        run([changed(n_unsafe=101)])
    with pytest.raises(ValidationError, match="finite"):
        changed(walk_forward_mev=float("nan"))
    with pytest.raises(ValidationError, match="n_relaxd"):
        changed(n_relaxd=3)


def test_phases_just_beyond_the_edge_are_kept_for_the_stop_rule() -> None:
    found = NearHull(members=("a",), e_above={"c": 0.0315, "a": 0.0, "b": 0.02, "d": 0.0325})
    assert list(to_near_hull(found, 0.002, 0.03).items()) == [("a", 0.0), ("b", 0.02), ("c", 0.0315)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_generation": 5}, "max_generation\n.*not permitted"),
        ({"max_generations": 0}, "greater than or equal to 1"),
        ({"walk_forward_mev": 0}, "greater than 0"),
        ({"growth": 0.5}, "greater than or equal to 1"),
    ],
    ids=["typo", "no generations", "no error", "shrinking"],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AdvanceConfig.model_validate(values)
