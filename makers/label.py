"""Stage `label`: first principles for the chosen structures, tolerant of failures, through one of two doors."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jobflow import CURRENT_JOB, Flow, Job, Response

from makers.blobs import StructureBatch
from makers.config import AseLabelConfig
from makers.documents import LabelKind, LabelSummary
from makers.labelling.identity import settings_fingerprint
from makers.labelling.records import (
    LabelContext,
    find_statuses,
    label_store,
    read_labels,
    to_training_frames,
    write_label,
)
from makers.labelling.run import check_failures, judge, label_structures, split_known, summarise
from makers.resources import BOOKKEEPING, Resources, with_resources
from makers.stage import Handle, Stage, StageMaker, current_store, job_uuid, stage_job

if TYPE_CHECKING:
    from ase import Atoms
    from emmet.core.tasks import TaskDoc
    from jobflow import OutputReference

    from makers.config import Atomate2LabelConfig

__all__ = ["LabelMaker", "read_labels", "settings_fingerprint", "to_training_frames"]

logger = logging.getLogger(__name__)

DRIVER_SHARE = 40  # labels of atomate2 that one driver spawns: up to 18 kB each in one document of FireWorks


@dataclass
class LabelMaker(StageMaker):
    """Label a batch: a driver that spawns the jobs that calculate, and one that counts what became of them.

    The jobs are named after the driver: ``label 003`` spawns ``label 003.1``, ``label 003.2``, ... and
    ``label 003.collect``, whose output, a `LabelSummary`, is also the driver's. Many labels of atomate2 are shared out
    among drivers ``label 003.part1``, ``label 003.part2``, ..., which spawn ``label 003.part1.1`` and so on.

    Parameters
    ----------
    project
        Name of the search.
    settings
        The `label` section of the search file.
    pressure_gpa
        Pressure of final relaxations, GPa.
    resources
        Where jobs run, by stage: the calculating jobs get those of `label`, the bookkeeping those of `advance`.
    name
        Job name.
    """

    project: str
    settings: AseLabelConfig | Atomate2LabelConfig
    pressure_gpa: float = 0.0
    resources: Resources = field(default_factory=dict)
    name: str = Stage.LABEL

    @stage_job()
    def make(
        self,
        batch: StructureBatch | Handle,
        generation: int,
        kind: LabelKind = LabelKind.SINGLE_POINT,
        source: Handle | None = None,
    ) -> Response[LabelSummary]:
        """Plan the labels of a batch and spawn the jobs that calculate them.

        Parameters
        ----------
        batch
            Structures with the columns reason and phase_id, or where those of an earlier generation lie.
        generation
            Generation, from 0.
        kind
            Single points, or final relaxations at the pressure of the search.
        source
            Where the batch lies, if it is given by reference: the calculating jobs take their part from there, instead
            of carrying it with them.

        Returns
        -------
        Response
            Replaced by a flow whose output is a `LabelSummary`.
        """
        source = batch if isinstance(batch, Handle) else source
        structures = batch.fetch(current_store()) if isinstance(batch, Handle) else batch
        context = self.context(generation, LabelKind(kind))
        frames = structures.to_atoms()
        prefix = CURRENT_JOB.job.name
        if isinstance(self.settings, AseLabelConfig):
            jobs, parts, reused = _ase_jobs(self, self.settings, frames, context, source)
        elif len(frames) > DRIVER_SHARE:
            jobs, parts, reused = _drivers(self, self.settings, frames, context, source)
        else:
            jobs, parts, reused = _vasp_jobs(self, self.settings, frames, context)
        label_ids = [context.request(atoms).label_id for atoms in frames]
        last = _child(self, collect_labels(self, label_ids, parts, reused), "collect", BOOKKEEPING, context)
        return Response(replace=Flow([*jobs, last], output=last.output, name=prefix))

    def context(self, generation: int, kind: LabelKind) -> LabelContext:
        """Return what all labels of a batch have in common.

        Parameters
        ----------
        generation
            Generation, from 0.
        kind
            What is calculated.

        Returns
        -------
        LabelContext
            The context.
        """
        return LabelContext(self.project, generation, kind, self.pressure_gpa, self.settings)


@stage_job(LabelSummary)
def label_chunk(maker: LabelMaker, batch: StructureBatch | Handle, generation: int, kind: LabelKind) -> LabelSummary:
    """Label a chunk with an ASE calculator, in worker processes.

    Parameters
    ----------
    maker
        Project, settings and pressure.
    batch
        The chunk, or where it lies; columns reason and phase_id.
    generation
        Generation, from 0.
    kind
        What is calculated.

    Returns
    -------
    LabelSummary
        What became of the chunk.
    """
    store = current_store()
    batch = batch.fetch(store) if isinstance(batch, Handle) else batch
    summary = label_structures(batch.to_atoms(), maker.context(generation, LabelKind(kind)), store)
    logger.info(
        "labels: %d asked, %d reused, %s, %.1f s", summary.asked, summary.reused, summary.statuses, summary.seconds
    )
    return summary


@stage_job(LabelSummary, tolerant=True)
def keep_label(
    maker: LabelMaker, batch: StructureBatch, generation: int, kind: LabelKind, task: TaskDoc | None
) -> LabelSummary:
    """Turn the document of one atomate2 job into a label; a job that failed has none.

    Parameters
    ----------
    maker
        Project, settings and pressure.
    batch
        The one structure.
    generation
        Generation, from 0.
    kind
        What was calculated.
    task
        The task document of atomate2, or None.

    Returns
    -------
    LabelSummary
        What became of the label.
    """
    from makers.labelling.vasp import outcome_of_task  # noqa: PLC0415 - imports atomate2, eight seconds

    start = time.perf_counter()
    context = maker.context(generation, LabelKind(kind))
    request = context.request(batch.to_atoms()[0])
    label = context.document(request, judge(outcome_of_task(request, context, task), context))
    write_label(label_store(current_store()), label)
    return summarise([label.label_id], {label.label_id: label.status}, 0, start)


@stage_job(LabelSummary, tolerant=True)
def collect_labels(
    maker: LabelMaker, label_ids: list[str], parts: list[LabelSummary | None], reused: int
) -> LabelSummary:
    """Count what became of all labels; what a failed job did not store has crashed.

    Parameters
    ----------
    maker
        Project and settings.
    label_ids
        One per structure that was asked for.
    parts
        What the jobs reported; None for jobs that failed.
    reused
        Labels that existed and got no job.

    Returns
    -------
    LabelSummary
        The stage's document.

    Raises
    ------
    LabelError
        If more labels failed than the settings allow; all are stored.
    """
    start = time.perf_counter()
    done = [LabelSummary.model_validate(part) for part in parts if part is not None]
    statuses = find_statuses(label_store(current_store()), maker.project, label_ids)
    summary = summarise(label_ids, statuses, reused + sum(part.reused for part in done), start)
    summary = summary.model_copy(update={"seconds": summary.seconds + sum(part.seconds for part in done)})
    check_failures(summary, maker.settings.max_failed_fraction)
    return summary


def _child(maker: LabelMaker, job: Job, name: str, stage: str, context: LabelContext) -> Job:
    """Give a spawned job its name, its resources, what it is found by, and an identity that a second launch repeats."""
    driver = CURRENT_JOB.job
    job.name = f"{driver.name}.{name}"
    job.set_uuid(job_uuid(driver.uuid, job.name))
    found_by = {"project": maker.project, "stage": str(Stage.LABEL), "generation": context.generation}
    job.update_metadata(found_by, dynamic=False)
    return with_resources(job, stage, maker.resources)


def _ase_jobs(
    maker: LabelMaker,
    settings: AseLabelConfig,
    frames: list[Atoms],
    context: LabelContext,
    source: Handle | None,
) -> tuple[list[Job], list[OutputReference], int]:
    jobs = []
    size = settings.chunk_size
    for number, first in enumerate(range(0, len(frames), size), start=1):
        rows = (first, min(first + size, len(frames)))
        chunk = replace(source, rows=rows) if source else StructureBatch.from_atoms(frames[slice(*rows)])
        each = label_chunk(maker, chunk, context.generation, context.kind)
        jobs.append(_child(maker, each, str(number), Stage.LABEL, context))
    return jobs, [each.output for each in jobs], 0


def _drivers(
    maker: LabelMaker,
    settings: Atomate2LabelConfig,
    frames: list[Atoms],
    context: LabelContext,
    source: Handle | None,
) -> tuple[list[Job], list[OutputReference], int]:
    """Spawn one driver for each part of a batch: what a driver spawns lies in one document of FireWorks."""
    lenient = replace(maker, settings=settings.model_copy(update={"max_failed_fraction": 1.0}))  # the whole decides
    jobs = []
    for number, first in enumerate(range(0, len(frames), DRIVER_SHARE), start=1):
        rows = (first, min(first + DRIVER_SHARE, len(frames)))
        part = replace(source, rows=rows) if source else StructureBatch.from_atoms(frames[slice(*rows)])
        each = lenient.make(part, context.generation, context.kind)
        jobs.append(_child(maker, each, f"part{number}", BOOKKEEPING, context))
    return jobs, [each.output for each in jobs], 0


def _vasp_jobs(
    maker: LabelMaker, settings: Atomate2LabelConfig, frames: list[Atoms], context: LabelContext
) -> tuple[list[Job], list[OutputReference], int]:
    from makers.labelling.vasp import build_maker, to_structure  # noqa: PLC0415 - imports atomate2, eight seconds

    make: Any = build_maker(settings, context.kind, context.pressure_gpa).make  # jobflow's decorator has no type
    requests = [context.request(atoms) for atoms in frames]
    known = find_statuses(label_store(current_store()), maker.project, (r.label_id for r in requests))
    jobs, parts = [], []
    reused, missing = split_known(requests, known)
    numbers = {request.label_id: n for n, request in reversed(list(enumerate(requests, start=1)))}
    for label_id, request in missing.items():
        number = numbers[label_id]
        each = _child(maker, make(to_structure(request.atoms)[0]), str(number), Stage.LABEL, context)
        batch = StructureBatch.from_atoms([request.atoms])
        keep = keep_label(maker, batch, context.generation, context.kind, each.output)
        jobs += [each, _child(maker, keep, f"{number}.keep", BOOKKEEPING, context)]
        parts.append(keep.output)
    return jobs, parts, len(reused)
