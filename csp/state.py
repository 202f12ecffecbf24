"""The state of a search from one generation to the next, and the ledger of what it has tried and found."""

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt

from csp.config import AdvanceConfig, SelectConfig
from csp.errors import DataError
from csp.feedback import next_bonds_scale, next_n_structures
from csp.knowledge import Knowledge


class Record(BaseModel):
    """Base of what is stored: immutable, unknown keys and infinities are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Outcome(Record):
    """What one generation came to: what the next state is made of."""

    hull: tuple[str, ...] = Field(description="Phases on the hull of the labels.")
    near_hull: dict[str, float] = Field(description="Phases near the hull of the labels, and their distance, eV/atom.")
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


class GenerationRecord(Record):
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
    hours: NonNegativeFloat = Field(description="Wall time since the search began, hours.")


class SearchState(Record):
    """Where a search stands: what the next generation needs besides the ledger, and a person would read."""

    generation: NonNegativeInt = Field(0, description="Generation that starts from this state.")
    knowledge: Knowledge = Field(description="Distances and volumes, as far as labels have shown them.")
    bonds_scale: float = Field(gt=0, le=1, description="A pair closer than this times its minimum is unsafe.")
    n_structures: int = Field(ge=1, description="Trial crystals of the next generation.")
    compositions: tuple[str, ...] = Field((), description="Reduced formulas that the stop rule waits for.")
    n_labels: NonNegativeInt = Field(0, description="Usable labels so far.")
    n_asked: NonNegativeInt = Field(0, description="Structures sent to first principles so far, failed ones too.")
    started: str | None = Field(None, description="When the first job of the search began, ISO 8601, UTC.")
    hours: NonNegativeFloat = Field(0.0, description="Wall time since then, pauses included, hours.")
    history: tuple[GenerationRecord, ...] = Field((), description="One record per finished generation.")


class Ledger(Record):
    """What is counted by composition and by phase.

    It grows with their number, to megabytes; so it travels beside the state, as a blob.
    """

    attempts: dict[str, NonNegativeInt] = Field(default_factory=dict, description="Crystals tried, by reduced formula.")
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

    def added(self, new: Self) -> Self:
        """Enter what a job has counted.

        Parameters
        ----------
        new
            Attempts of its own; finds, distances and names as they are now, where they are known.

        Returns
        -------
        Ledger
            Attempts added up; finds and distances replaced, those of phases out of sight kept; every former name with
            the name of today.
        """
        found = self.times_found | new.times_found
        renamed = {old: new.aliases.get(name, name) for old, name in self.aliases.items()}
        tried = self.attempts.keys() | new.attempts.keys()
        return type(self)(
            attempts={name: self.attempts.get(name, 0) + new.attempts.get(name, 0) for name in sorted(tried)},
            hull_distances=self.hull_distances | new.hull_distances,
            times_found={name: times for name, times in found.items() if name not in new.aliases},
            aliases=renamed | new.aliases,
        )


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
        hours=outcome.hours,
    )
    relaxed = outcome.n_relaxed > 0
    return SearchState(
        generation=state.generation + 1,
        knowledge=knowledge,
        bonds_scale=next_bonds_scale(state.bonds_scale, fraction, select) if relaxed else state.bonds_scale,
        n_structures=next_n_structures(state.n_structures, outcome.walk_forward_mev, advance),
        compositions=state.compositions,
        n_labels=n_labels,
        n_asked=state.n_asked + outcome.n_asked,
        started=state.started or outcome.started,
        hours=outcome.hours,
        history=(*state.history, record),
    )
