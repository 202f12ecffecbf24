"""Label a list of structures with an ASE calculator: reuse, calculate, validate, store each at once."""

from __future__ import annotations

import logging
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from makers.config import AseLabelConfig
from makers.documents import LabelKind, LabelStatus, LabelSummary
from makers.errors import LabelError
from makers.labelling.compute import Task
from makers.labelling.outcome import validate, validate_pressure
from makers.labelling.pool import LabelPool
from makers.labelling.records import find_statuses, label_store, write_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms
    from jobflow import JobStore

    from makers.labelling.outcome import Outcome
    from makers.labelling.records import LabelContext, Request

logger = logging.getLogger(__name__)


def label_structures(
    frames: Sequence[Atoms], context: LabelContext, job_store: JobStore, folder: Path | None = None
) -> LabelSummary:
    """Label structures through the ASE door.

    Labels of this project that exist and are ok are not calculated again. Each new label is in the collection
    `labels` before the next one is waited for: whatever ends this process loses only the labels in work.

    Parameters
    ----------
    frames
        Structures; ``info`` may hold ``reason`` and ``phase_id``.
    context
        Project, generation, kind, pressure and settings.
    job_store
        A connected job store.
    folder
        Where scratch folders are made; by default in the current one.

    Returns
    -------
    LabelSummary
        What became of them; ``statuses`` counts every structure that was asked for.

    Raises
    ------
    LabelError
        If the labelling processes cannot start.
    TypeError
        If the settings are of another door.
    """
    config = context.config
    if not isinstance(config, AseLabelConfig):
        raise TypeError("label_structures serves the door `ase` only: use LabelMaker")
    start = time.perf_counter()
    store = label_store(job_store)
    requests = [context.request(atoms) for atoms in frames]
    reused, missing = split_known(requests, find_statuses(store, context.project, (r.label_id for r in requests)))
    statuses = {request.label_id: LabelStatus.OK for request in reused}
    with LabelPool(config, folder or Path.cwd()) as pool:
        largest_first = sorted(missing.values(), key=lambda request: -len(request.atoms))  # workers finish together
        outcomes = pool.run([_task(request, context) for request in largest_first])
        for outcome in tqdm(outcomes, total=len(missing), desc="label", unit="label", disable=None, leave=False):
            label = context.document(missing[outcome.label_id], judge(outcome, context))
            write_label(store, label)
            statuses[label.label_id] = label.status
            if label.status != LabelStatus.OK:
                logger.warning("label %s (%s): %s, %s", label.label_id, label.formula, label.status, label.message)
    return summarise([request.label_id for request in requests], statuses, len(reused), start)


def split_known(requests: Sequence[Request], known: dict[str, LabelStatus]) -> tuple[list[Request], dict[str, Request]]:
    """Separate the labels that exist from those to calculate; of identical structures one is calculated.

    Parameters
    ----------
    requests
        All that is asked for.
    known
        Status of the labels that exist.

    Returns
    -------
    tuple
        Requests whose label exists and is ok, and the rest by identity.
    """
    reused = [request for request in requests if known.get(request.label_id) == LabelStatus.OK]
    missing = {r.label_id: r for r in requests if known.get(r.label_id) != LabelStatus.OK}
    return reused, missing


def judge(outcome: Outcome, context: LabelContext) -> Outcome:
    """Apply the validator of the settings.

    Parameters
    ----------
    outcome
        As the code left it.
    context
        Thresholds, kind and pressure.

    Returns
    -------
    Outcome
        With the status that is stored.
    """
    config = context.config
    outcome = validate(outcome, config.max_force)
    return validate_pressure(outcome, context.kind, context.pressure_gpa, config.pressure_tolerance_gpa)


def summarise(label_ids: list[str], statuses: dict[str, LabelStatus], reused: int, start: float) -> LabelSummary:
    """Count what became of labels.

    Parameters
    ----------
    label_ids
        One per structure that was asked for.
    statuses
        Status by label; one without a status was lost with its job and counts as crashed.
    reused
        Labels that existed.
    start
        When the stage began, of time.perf_counter.

    Returns
    -------
    LabelSummary
        The stage's document.
    """
    counts = Counter(str(statuses.get(label, LabelStatus.CRASHED)) for label in label_ids)
    return LabelSummary(
        asked=len(label_ids),
        statuses=dict(counts),
        reused=reused,
        label_ids=label_ids,
        seconds=time.perf_counter() - start,
    )


def check_failures(summary: LabelSummary, max_failed_fraction: float) -> None:
    """Stop the search when the labeller as such is at fault.

    Parameters
    ----------
    summary
        What became of the labels; they are stored.
    max_failed_fraction
        Largest share that may fail.

    Raises
    ------
    LabelError
        If more failed.
    """
    failed = summary.asked - summary.statuses.get(str(LabelStatus.OK), 0)
    if failed > max_failed_fraction * summary.asked:
        raise LabelError(
            f"{failed} of {summary.asked} labels failed ({summary.statuses}), more than label.max_failed_fraction = "
            f"{max_failed_fraction:g} allows: read the field `message` of the collection `labels`"
        )


def _task(request: Request, context: LabelContext) -> Task:
    atoms, config = request.atoms, context.config
    return Task(
        label_id=request.label_id,
        kind=LabelKind(context.kind),
        numbers=atoms.numbers.tolist(),
        positions=atoms.positions.tolist(),
        cell=atoms.cell.array.tolist(),
        pressure_gpa=context.pressure_gpa,
        fmax=config.relax_fmax,
        max_steps=config.relax_max_steps,
    )
