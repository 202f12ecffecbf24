"""Stage `advance`: where the search stands, what it has learned, and whether it goes on."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from jobflow import Flow, Response

from csp.advance import Decision, decide, to_near_hull
from csp.hull import NearHull, formula_of, near_hull
from csp.select import choose_final
from csp.state import Ledger, Outcome, SearchState, update_state
from makers.blobs import LedgerBlob, StructureBatch
from makers.documents import (
    Document,
    GenerateCounts,
    LabelDoc,
    LabelKind,
    LabelSummary,
    RelaxCounts,
    SelectSummary,
    TrainSummary,
)
from makers.labelling import read_labels, to_training_frames
from makers.labelling.records import label_store
from makers.outcomes import NEAR_HULL_ERROR, AdvanceDoc, GenerationDoc, HullMember
from makers.phases import enthalpy_per_atom, gather, label_atoms, speaking_labels, under_todays_name
from makers.scratch import drop_checkpoints
from makers.stage import Stage, StageMaker, current_store, read_ledger, read_state, stage_job

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ase import Atoms
    from jobflow import JobStore

    from csp.config import AdvanceConfig, SelectConfig
    from makers.stage import Handle

logger = logging.getLogger(__name__)


class Search(Protocol):
    """What makes the flows that follow; `SearchMaker` of the workflows, which makers do not know."""

    def generation(self, state: SearchState) -> Flow:
        """Return the flow of the next generation."""
        ...

    def final(self, done: GenerationDoc, phases: StructureBatch) -> Flow:
        """Return the flow of the end."""
        ...

    def pool(self, generation: int) -> Handle:
        """Return where the candidates of a generation lie."""
        ...


class Summaries(Document):
    """What the stages of one generation report."""

    generated: list[GenerateCounts]
    relaxed: list[RelaxCounts]
    selected: SelectSummary
    labelled: LabelSummary
    trained: TrainSummary


@dataclass
class AdvanceMaker(StageMaker):
    """Update the hull and the state of the search; return the next generation, or the end with its reason.

    Parameters
    ----------
    project
        The search.
    fingerprint
        Label settings.
    settings
        The `advance` section of the search file.
    select
        Its `select` section: bounds of the feedback.
    name
        Job name.
    """

    project: str
    fingerprint: str
    settings: AdvanceConfig
    select: SelectConfig
    name: str = Stage.ADVANCE

    @stage_job()
    def make(
        self,
        search: Search,
        state: SearchState | Handle,
        ledger: Handle | None,
        counted: list[LedgerBlob],
        reported: dict[str, Any],
    ) -> Response[AdvanceDoc]:
        """Decide what comes next.

        Parameters
        ----------
        search
            Makes the flow of the next generation (`generation`) and of the end (`final`).
        state
            The search before this generation.
        ledger
            Attempts and finds before it; None at the start.
        counted
            What its jobs have counted.
        reported
            What its stages report: a `Summaries` as a dictionary.

        Returns
        -------
        Response
            An `AdvanceDoc`, replaced by what comes next.
        """
        store, state, found = current_store(), read_state(state), read_ledger(ledger)
        for part in counted:
            found = found.added(part.ledger)
        summaries = Summaries.model_validate(reported)
        labels = self._labels(store, found.aliases, state.generation)
        pressure = state.knowledge.pressure_gpa
        hull = labelled_hull(labels, pressure, self.settings)
        n_asked = count_asked(store, self.project, state.generation, summaries.labelled.label_ids)
        after = self._update(state, summaries, labels, hull, n_asked)
        decision = decide(after, found, self.settings)
        doc = self._document(summaries, hull_members(labels, hull, found, pressure), after, found, decision)
        logger.info("advance %03d: %s", state.generation, decision.why)
        drop_checkpoints(self.project, state.generation)
        return Response(output=doc, replace=self.follow(search, doc, found, store))

    def follow(self, search: Search, done: GenerationDoc, ledger: Ledger, store: JobStore) -> Flow:
        """Return what follows a finished generation; also how an interrupted search goes on.

        Parameters
        ----------
        search
            Makes the flows.
        done
            The generation.
        ledger
            Attempts and finds up to its end.
        store
            The connected job store.

        Returns
        -------
        Flow
            The next generation, or the end.
        """
        if not done.stop:
            return search.generation(done.state)
        labels = self._labels(store, ledger.aliases, done.generation)
        hull = labelled_hull(labels, done.state.knowledge.pressure_gpa, self.settings)
        pool = search.pool(done.generation).fetch(store)
        return search.final(done, final_phases(pool, labels, hull, self.settings))

    def _labels(self, store: JobStore, aliases: dict[str, str], until: int) -> list[LabelDoc]:
        """Read the single points so far, under the names that their phases go by today."""
        found = read_labels(store, self.project, self.fingerprint, kind=LabelKind.SINGLE_POINT, until=until)
        return [under_todays_name(label, aliases) for label in found]

    def _update(
        self, state: SearchState, done: Summaries, labels: list[LabelDoc], hull: NearHull, n_asked: int
    ) -> SearchState:
        new = [label for label in labels if label.generation == state.generation]
        started = state.started or min(counts.started for counts in done.generated)
        passed = datetime.now(UTC) - datetime.fromisoformat(started)
        outcome = Outcome(
            hull=hull.members,
            near_hull=to_near_hull(hull, self.settings.near_hull_slack_ev, self.settings.near_hull_ev),
            n_relaxed=sum(done.selected.statuses.values()),
            n_unsafe=done.selected.statuses.get("unsafe", 0),
            n_asked=n_asked,
            n_labels=len(new),
            walk_forward_mev=done.trained.walk_forward.get(NEAR_HULL_ERROR),
            started=started,
            hours=max(0.0, passed.total_seconds() / 3600),
        )
        knowledge = state.knowledge.first().learned(to_training_frames(labels))
        return update_state(state, outcome, knowledge, self.select, self.settings)

    def _document(
        self, done: Summaries, hull: list[HullMember], after: SearchState, ledger: Ledger, decision: Decision
    ) -> AdvanceDoc:
        return AdvanceDoc(
            project=self.project,
            generation=after.generation - 1,
            made=sum(counts.made for counts in done.generated),
            refused=_sum(counts.refused for counts in done.generated),
            statuses=done.selected.statuses,
            flags=done.selected.flags,
            chosen=done.selected.chosen,
            labels=done.labelled.statuses,
            metrics=done.trained.metrics,
            walk_forward=done.trained.walk_forward,
            hull=hull,
            state=after,
            ledger=LedgerBlob(ledger),
            stop=decision.stop,
            stop_reason=str(decision.reason) if decision.reason else None,
            why=decision.why,
        )


def count_asked(store: JobStore, project: str, generation: int, label_ids: Iterable[str]) -> int:
    """Count the structures of a generation that first principles were asked for, failed ones too.

    Labels that the project had from earlier generations cost nothing. What a job that was killed and launched again
    finds done is of this generation, and counts.

    Parameters
    ----------
    store
        Connected job store.
    project
        The search.
    generation
        The generation.
    label_ids
        Labels of its structures.

    Returns
    -------
    int
        Each label counts once.
    """
    earlier = label_store(store).query({"project": project, "generation": {"$lt": generation}}, properties=["label_id"])
    return len(set(label_ids) - {doc["label_id"] for doc in earlier})


def labelled_hull(labels: list[LabelDoc], pressure_gpa: float, settings: AdvanceConfig) -> NearHull:
    """Return the phases on and near the hull of first-principles enthalpies.

    Parameters
    ----------
    labels
        Successful single points.
    pressure_gpa
        Pressure, GPa.
    settings
        Width of what counts as near.

    Returns
    -------
    NearHull
        Phases; an element without a phase yet is stood in for by its lowest label, under the label's name.
    """
    speaking = speaking_labels(gather([], labels), labels, pressure_gpa)
    return near_hull(
        [label.phase_id or label.label_id for label in speaking],
        [label.formula for label in speaking],
        [enthalpy_per_atom(label, pressure_gpa) for label in speaking],
        max(settings.near_hull_ev + settings.near_hull_slack_ev, settings.final_window_ev),
    )


def hull_members(labels: list[LabelDoc], hull: NearHull, ledger: Ledger, pressure_gpa: float) -> list[HullMember]:
    """Describe the phases on and near the hull.

    Parameters
    ----------
    labels
        Successful single points.
    hull
        The phases.
    ledger
        Finds so far.
    pressure_gpa
        Pressure, GPa.

    Returns
    -------
    list[HullMember]
        Lowest first.
    """
    best: dict[str, LabelDoc] = {}
    for label in labels:
        name = label.phase_id or label.label_id
        if name in hull.e_above and (
            name not in best or enthalpy_per_atom(label, pressure_gpa) < enthalpy_per_atom(best[name], pressure_gpa)
        ):
            best[name] = label
    return [
        HullMember(
            phase_id=name,
            formula=best[name].formula,
            enthalpy_per_atom=enthalpy_per_atom(best[name], pressure_gpa),
            e_above_hull=height,
            times_found=ledger.times_found.get(name, 0),
        )
        for name, height in sorted(hull.e_above.items(), key=lambda item: (item[1], item[0]))
    ]


def final_phases(
    pool: StructureBatch, labels: list[LabelDoc], hull: NearHull, settings: AdvanceConfig
) -> StructureBatch:
    """Return the structures that first principles relax at the end.

    Parameters
    ----------
    pool
        Candidates after the last generation, with their height by the model.
    labels
        Successful single points.
    hull
        Phases near the hull of their enthalpies.
    settings
        Window and number.

    Returns
    -------
    StructureBatch
        Nearest to the hull first, labelled phases by their labels and others by the model; columns reason, phase_id.
    """
    labelled = {label.phase_id or label.label_id: label_atoms(label) for label in labels}
    places: dict[str, tuple[float, Atoms]] = {name: (height, labelled[name]) for name, height in hull.e_above.items()}
    for atoms in pool.to_atoms():
        name, height = atoms.info["phase_id"], atoms.info["e_above_hull"]
        if name not in labelled:
            places[name] = (height, atoms)
        elif name in places:
            places[name] = (places[name][0], atoms)  # the newest model's geometry starts nearest to the minimum
    names = sorted(places)
    choices = choose_final(
        [places[name][0] for name in names], [formula_of(places[name][1]) for name in names], settings
    )
    return StructureBatch.from_atoms(
        [places[names[c.index]][1] for c in choices],
        {"reason": [str(c.reason) for c in choices], "phase_id": [names[c.index] for c in choices]},
    )


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(total)
