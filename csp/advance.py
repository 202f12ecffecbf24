"""The state of a search from one generation to the next, what it learns about itself, and when it stops."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt

from csp.config import AdvanceConfig, SelectConfig
from csp.errors import DataError
from csp.feedback import next_bonds_scale, next_n_structures
from csp.hull import NearHull
from csp.knowledge import Knowledge


class _Record(BaseModel):
    """Base of what is stored: immutable, unknown keys and infinities are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Outcome(_Record):
    """What one generation came to: everything that the next state is made of."""

    attempts: dict[str, NonNegativeInt] = Field(description="Crystals tried per reduced formula, this generation.")
    times_found: dict[str, NonNegativeInt] = Field(
        description="How often each phase near the hull was found by independent trials in all generations so far."
    )
    aliases: dict[str, str] = Field(
        default_factory=dict, description="Phases that turned out to be another one: former name, name."
    )
    hull_distances: dict[str, float] = Field(
        description="Least possible distance from the model's hull by formula, eV/atom."
    )
    hull: tuple[str, ...] = Field(description="Phases on the hull of the labels.")
    near_hull: dict[str, float] = Field(description="Phases near the hull of the labels, and their distance, eV/atom.")
    best_enthalpies: dict[str, float] = Field(description="Lowest labelled enthalpy by reduced formula, eV/atom.")
    n_relaxed: NonNegativeInt = Field(description="Relaxations of this generation.")
    n_unsafe: NonNegativeInt = Field(description="Unsafe ones among them.")
    n_asked: NonNegativeInt = Field(
        description="Structures sent to first principles in this generation, failed ones too."
    )
    n_labels: NonNegativeInt = Field(description="Labels that came back usable in this generation.")
    walk_forward_mev: float | None = Field(
        description="Error of the model on the new labels near the hull before it saw them, meV/atom; None where there "
        "was no model or nothing to label."
    )
    started: str | None = Field(None, description="When the first job of the search began, ISO 8601, UTC.")
    hours: NonNegativeFloat = Field(description="Wall time since then, hours.")


class GenerationRecord(_Record):
    """One line of the history of a search."""

    generation: NonNegativeInt
    n_structures: NonNegativeInt = Field(description="Trial crystals.")
    bonds_scale: float = Field(description="Scale of the minimum distances below which a pair was unsafe.")
    unsafe_fraction: float = Field(ge=0, le=1, description="Share of unsafe relaxations.")
    walk_forward_mev: float | None = Field(
        description="Error on new labels near the hull, meV/atom; None if not known."
    )
    n_asked: NonNegativeInt = Field(description="Structures sent to first principles.")
    n_labels: NonNegativeInt = Field(description="Usable labels so far, all generations.")
    hull: tuple[str, ...] = Field(description="Phases on the hull of the labels.")
    near_hull: dict[str, float] = Field(description="Phases near the hull of the labels, eV/atom above it.")
    best_enthalpies: dict[str, float] = Field(description="Lowest labelled enthalpy by reduced formula, eV/atom.")
    hours: NonNegativeFloat = Field(description="Wall time since the search began, hours.")


class SearchState(_Record):
    """Everything that the next generation needs, and that a person would read."""

    generation: NonNegativeInt = Field(0, description="Generation that starts from this state.")
    knowledge: Knowledge = Field(description="Distances and volumes, as far as labels have shown them.")
    bonds_scale: float = Field(gt=0, le=1, description="A pair closer than this times its minimum is unsafe.")
    n_structures: int = Field(ge=1, description="Trial crystals of the next generation.")
    compositions: tuple[str, ...] = Field((), description="Reduced formulas that the stop rule waits for.")
    attempts: dict[str, NonNegativeInt] = Field(default_factory=dict, description="Crystals tried so far, by formula.")
    hull_distances: dict[str, float] = Field(
        default_factory=dict,
        description="Least distance from the model's hull that the committee leaves possible, by formula, eV/atom.",
    )
    times_found: dict[str, NonNegativeInt] = Field(
        default_factory=dict, description="Independent finds of each phase near the hull, in all generations."
    )
    aliases: dict[str, str] = Field(
        default_factory=dict, description="Phases that turned out to be another one: former name, name of today."
    )
    n_labels: NonNegativeInt = Field(0, description="Usable labels so far.")
    n_asked: NonNegativeInt = Field(0, description="Structures sent to first principles so far, failed ones too.")
    started: str | None = Field(None, description="When the first job of the search began, ISO 8601, UTC.")
    hours: NonNegativeFloat = Field(0.0, description="Wall time since then, pauses included, hours.")
    history: tuple[GenerationRecord, ...] = Field((), description="One record per finished generation.")


class StopReason(StrEnum):
    """Why a search ended."""

    CONVERGED = "converged"
    MAX_GENERATIONS = "max_generations"
    MAX_LABELS = "max_labels"
    MAX_HOURS = "max_hours"


class Condition(_Record):
    """One condition of the stop rule."""

    name: str
    holds: bool
    text: str = Field(description="The condition in words, with figures.")


class Decision(_Record):
    """Whether a search goes on."""

    stop: bool
    reason: StopReason | None = Field(description="None while the search goes on.")
    why: str = Field(description="The reason in words, and which conditions hold and which do not.")
    conditions: tuple[Condition, ...]


def initial_state(
    *, knowledge: Knowledge, select: SelectConfig, n_structures: int, compositions: Sequence[str] = ()
) -> SearchState:
    """Begin a search.

    Parameters
    ----------
    knowledge
        First estimates of distances and volumes.
    select
        Has the first ``bonds_scale``.
    n_structures
        Trial crystals of the first generation that relaxes.
    compositions
        Reduced formulas that must have had their attempts before the search may stop; those that are attempted
        anyway need not be named.

    Returns
    -------
    SearchState
        The state that generation 0 starts from.
    """
    return SearchState(
        knowledge=knowledge,
        bonds_scale=select.bonds_scale,
        n_structures=n_structures,
        compositions=tuple(sorted(set(compositions))),
    )


def update_state(
    state: SearchState, outcome: Outcome, knowledge: Knowledge, select: SelectConfig, advance: AdvanceConfig
) -> SearchState:
    """Make the state of the next generation.

    Parameters
    ----------
    state
        The state that the finished generation started from.
    outcome
        What it came to.
    knowledge
        Distances and volumes, learned again with the new labels.
    select
        Bounds and targets of ``bonds_scale``.
    advance
        Growth of the number of trial crystals.

    Returns
    -------
    SearchState
        With ``generation`` one higher and one more record in its history.

    Raises
    ------
    DataError
        If more relaxations are unsafe than there were.
    """
    if outcome.n_unsafe > outcome.n_relaxed:
        raise DataError(f"advance: {outcome.n_unsafe} unsafe structures of {outcome.n_relaxed} relaxed")
    fraction = outcome.n_unsafe / outcome.n_relaxed if outcome.n_relaxed else 0.0
    n_labels = state.n_labels + outcome.n_labels
    record = GenerationRecord(
        generation=state.generation,
        n_structures=state.n_structures,
        bonds_scale=state.bonds_scale,
        unsafe_fraction=fraction,
        walk_forward_mev=outcome.walk_forward_mev,
        n_asked=outcome.n_asked,
        n_labels=n_labels,
        hull=tuple(sorted(outcome.hull)),
        near_hull=outcome.near_hull,
        best_enthalpies=outcome.best_enthalpies,
        hours=outcome.hours,
    )
    relaxed = outcome.n_relaxed > 0
    return SearchState(
        generation=state.generation + 1,
        knowledge=knowledge,
        bonds_scale=next_bonds_scale(state.bonds_scale, fraction, select) if relaxed else state.bonds_scale,
        n_structures=next_n_structures(state.n_structures, outcome.walk_forward_mev, advance),
        compositions=state.compositions,
        attempts=_added(state.attempts, outcome.attempts),
        hull_distances=state.hull_distances | outcome.hull_distances,
        times_found={k: n for k, n in (state.times_found | outcome.times_found).items() if k not in outcome.aliases},
        aliases=joined_aliases(state.aliases, outcome.aliases),
        n_labels=n_labels,
        n_asked=state.n_asked + outcome.n_asked,
        started=state.started or outcome.started,
        hours=outcome.hours,
        history=(*state.history, record),
    )


def joined_aliases(before: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Follow names that changed again.

    Parameters
    ----------
    before
        Former names of phases and the names that they had before this generation.
    new
        Names that changed in this generation.

    Returns
    -------
    dict[str, str]
        Every former name and the name of today.
    """
    return {old: new.get(name, name) for old, name in before.items()} | dict(new)


def decide(state: SearchState, settings: AdvanceConfig) -> Decision:
    """Decide whether a search goes on.

    It has converged when the set of phases near the hull, as labelled, has stood still, the model predicts new labels
    near the hull, every hull member was found again and again, and every composition was tried often enough. A search
    that is merely stuck fulfils only the first. Otherwise it ends when a budget is spent.

    Parameters
    ----------
    state
        The search after its last generation.
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
        _rediscovered(state, settings),
        _attempted(state, settings),
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


def _rediscovered(state: SearchState, settings: AdvanceConfig) -> Condition:
    """Find the hull member that was found least often."""
    hull, wanted = state.history[-1].hull, settings.rediscoveries
    if not hull:
        return Condition(name="rediscovered", holds=False, text=f"no hull member yet (each needs {wanted} finds)")
    rarest = min(hull, key=lambda phase: (state.times_found.get(phase, 0), phase))
    least = state.times_found.get(rarest, 0)
    text = f"the rarest hull member, {rarest}, was found {least} times (needs {wanted})"
    return Condition(name="rediscovered", holds=least >= wanted, text=text)


def _attempted(state: SearchState, settings: AdvanceConfig) -> Condition:
    """Find the composition that was tried least often."""
    formulas = sorted({*state.compositions, *state.attempts})
    wanted = settings.min_attempts
    if not formulas:
        return Condition(name="attempted", holds=False, text=f"no composition was tried (each needs {wanted} attempts)")
    rarest = min(formulas, key=lambda formula: (state.attempts.get(formula, 0), formula))
    least = state.attempts.get(rarest, 0)
    short = sum(state.attempts.get(formula, 0) < wanted for formula in formulas)
    text = (
        f"the least tried of {len(formulas)} compositions, {rarest}, had {least} attempts "
        f"(needs {wanted}; {short} have fewer)"
    )
    return Condition(name="attempted", holds=short == 0, text=text)


def _added(before: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
    return {name: before.get(name, 0) + new.get(name, 0) for name in sorted(before.keys() | new.keys())}
