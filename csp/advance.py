"""When a search stops: it knows its answer, or its budget is spent, and it always says why."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np
from pydantic import Field

from csp.config import AdvanceConfig
from csp.errors import DataError
from csp.hull import NearHull
from csp.state import GenerationRecord, Ledger, Record, SearchState


class StopReason(StrEnum):
    """Why a search ended."""

    CONVERGED = "converged"
    MAX_GENERATIONS = "max_generations"
    MAX_LABELS = "max_labels"
    MAX_HOURS = "max_hours"


class Condition(Record):
    """One condition of the stop rule."""

    name: str
    holds: bool
    text: str = Field(description="The condition in words, with figures.")


class Decision(Record):
    """Whether a search goes on."""

    stop: bool
    reason: StopReason | None = Field(description="None while the search goes on.")
    why: str = Field(description="The reason in words, and which conditions hold and which do not.")
    conditions: tuple[Condition, ...]


def decide(state: SearchState, ledger: Ledger, settings: AdvanceConfig) -> Decision:
    """Decide whether a search goes on.

    It has converged when the set of phases near the hull, as labelled, has stood still, the model predicts new labels
    near the hull, every hull member was found again and again, and every composition was tried often enough. A search
    that is merely stuck fulfils only the first. Otherwise it ends when a budget is spent.

    Parameters
    ----------
    state
        The search after its last generation.
    ledger
        Attempts and finds so far.
    settings
        The stop rule and the budgets.

    Returns
    -------
    Decision
        With the reason, and every condition in words.

    Raises
    ------
    DataError
        If no generation has finished, or a generation that labelled something has no walk-forward error.
    """
    if not state.history:
        raise DataError("advance: nothing to decide, no generation has finished yet")
    conditions = (
        _unchanged(state.history, settings),
        _predictive(state.history, settings),
        _rediscovered(state.history[-1].hull, ledger, settings),
        _attempted(state.compositions, ledger, settings),
    )
    reason = StopReason.CONVERGED if all(c.holds for c in conditions) else _spent(state, settings)
    held = "; ".join(c.text for c in conditions if c.holds) or "none"
    open_ones = "; ".join(c.text for c in conditions if not c.holds) or "none"
    opening = "The search goes on" if reason is None else _OPENINGS[reason].format(s=settings, state=state)
    why = f"{opening}. Conditions that hold: {held}. Conditions that do not hold: {open_ones}."
    return Decision(stop=reason is not None, reason=reason, why=why, conditions=conditions)


def to_near_hull(found: NearHull, slack_ev: float, window_ev: float) -> dict[str, float]:
    """Keep the phases that the stop rule looks at.

    Parameters
    ----------
    found
        Phases near the hull.
    slack_ev
        What is kept beyond the window, eV/atom.
    window_ev
        The window, eV/atom.

    Returns
    -------
    dict[str, float]
        Distance by phase, eV/atom, nearest first.
    """
    near = sorted((height, name) for name, height in found.e_above.items() if height <= window_ev + slack_ev)
    return {name: height for height, name in near}


_OPENINGS = {
    StopReason.CONVERGED: "The search has converged",
    StopReason.MAX_GENERATIONS: "Stopped unconverged: {state.generation} of {s.max_generations} generations done",
    StopReason.MAX_LABELS: "Stopped unconverged: {state.n_asked} of {s.max_labels} labels spent",
    StopReason.MAX_HOURS: "Stopped unconverged: {state.hours:.1f} of {s.max_hours:g} hours have passed",
}


def _spent(state: SearchState, settings: AdvanceConfig) -> StopReason | None:
    """Name the first budget that is spent."""
    if settings.max_labels is not None and state.n_asked >= settings.max_labels:
        return StopReason.MAX_LABELS
    if settings.max_hours is not None and state.hours >= settings.max_hours:
        return StopReason.MAX_HOURS
    return StopReason.MAX_GENERATIONS if state.generation >= settings.max_generations else None


def _unchanged(history: Sequence[GenerationRecord], settings: AdvanceConfig) -> Condition:
    """Count the generations for which the near-hull set has stood still."""
    still = 0
    for before, after in zip(history[-2::-1], history[:0:-1], strict=True):
        if _changed(before.near_hull, after.near_hull, settings):
            break
        still += 1
    wanted = settings.unchanged_generations
    n_near = sum(height <= settings.near_hull_ev for height in history[-1].near_hull.values())
    text = (
        f"the {n_near} phases within {1000 * settings.near_hull_ev:g} meV/atom of the hull have not changed for "
        f"{still} generations (needs {wanted})"
    )
    return Condition(name="unchanged", holds=still >= wanted and n_near > 0, text=text)


def _changed(before: Mapping[str, float], after: Mapping[str, float], settings: AdvanceConfig) -> bool:
    """Say whether a phase entered or left the near-hull set by more than the slack."""
    edge, slack = settings.near_hull_ev, settings.near_hull_slack_ev
    for phase in before.keys() | after.keys():
        low, high = sorted((before.get(phase, np.inf), after.get(phase, np.inf)))
        if low <= edge < high and high - edge > slack:
            return True
    return False


def _predictive(history: Sequence[GenerationRecord], settings: AdvanceConfig) -> Condition:
    """Compare the last walk-forward error; a generation without new labels has none and passes on the one before."""
    error: float | None = None
    for record in reversed(history):
        error = record.walk_forward_mev
        if error is None and record.generation > 0 and record.n_asked > 0:
            raise DataError(
                f"advance: generation {record.generation} asked for {record.n_asked} labels but has no walk-forward "
                "error; without it nobody can say whether the search has converged"
            )
        if error is not None:
            break
    if error is None:
        text = f"no walk-forward error yet (needs at most {settings.walk_forward_mev:g} meV/atom)"
        return Condition(name="predictive", holds=False, text=text)
    text = f"the walk-forward error near the hull is {error:.1f} meV/atom (needs at most {settings.walk_forward_mev:g})"
    return Condition(name="predictive", holds=error <= settings.walk_forward_mev, text=text)


def _rediscovered(hull: Sequence[str], ledger: Ledger, settings: AdvanceConfig) -> Condition:
    """Find the hull member that was found least often."""
    wanted = settings.rediscoveries
    if not hull:
        return Condition(name="rediscovered", holds=False, text=f"no hull member yet (each needs {wanted} finds)")
    rarest = min(hull, key=lambda phase: (ledger.times_found.get(phase, 0), phase))
    least = ledger.times_found.get(rarest, 0)
    text = f"the rarest hull member, {rarest}, was found {least} times (needs {wanted})"
    return Condition(name="rediscovered", holds=least >= wanted, text=text)


def _attempted(compositions: Sequence[str], ledger: Ledger, settings: AdvanceConfig) -> Condition:
    """Find the composition that was tried least often."""
    formulas = sorted({*compositions, *ledger.attempts})
    wanted = settings.min_attempts
    if not formulas:
        return Condition(name="attempted", holds=False, text=f"no composition was tried (each needs {wanted} attempts)")
    rarest = min(formulas, key=lambda formula: (ledger.attempts.get(formula, 0), formula))
    least = ledger.attempts.get(rarest, 0)
    short = sum(ledger.attempts.get(formula, 0) < wanted for formula in formulas)
    text = (
        f"the least tried of {len(formulas)} compositions, {rarest}, had {least} attempts "
        f"(needs {wanted}; {short} have fewer)"
    )
    return Condition(name="attempted", holds=short == 0, text=text)
