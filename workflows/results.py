"""Read what a search has stored: generations, phases, the answer. The same for a folder and for MongoDB."""

from __future__ import annotations

import logging
import sqlite3
from typing import TYPE_CHECKING, Any, TypeVar

from maggma.stores import MemoryStore
from pydantic import BaseModel
from pymongo.errors import OperationFailure

from csp.state import Ledger
from makers.indexes import phase_store, phases_are_current
from makers.outcomes import GenerationDoc, ReportDoc
from makers.phases import PhaseBuilder
from makers.stage import Handle, Stage, newest_output

if TYPE_CHECKING:
    from jobflow import JobStore
    from maggma.core import Store

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=BaseModel)


def generations(store: JobStore, project: str) -> list[GenerationDoc]:
    """Return what each finished generation did.

    Parameters
    ----------
    store
        Connected job store.
    project
        The search.

    Returns
    -------
    list[GenerationDoc]
        In order.
    """
    # The first output of `advance` is its own document; later indices carry the end of the search that it spawned.
    outputs = _outputs(store, project, Stage.ADVANCE, index=1)
    return sorted((_parse(GenerationDoc, output) for output in outputs), key=lambda doc: doc.generation)


def ledger(store: JobStore, project: str) -> Ledger:
    """Return what a search has tried and found so far, by formula and by phase.

    Parameters
    ----------
    store
        Connected job store.
    project
        The search.

    Returns
    -------
    Ledger
        Empty before the first generation has finished.
    """
    newest = newest_output(store, project, Stage.ADVANCE)
    return Handle(newest["uuid"], "ledger").fetch(store).ledger if newest else Ledger()


def report(store: JobStore, project: str) -> ReportDoc | None:
    """Return the answer of a search.

    Parameters
    ----------
    store
        Connected job store.
    project
        The search.

    Returns
    -------
    ReportDoc or None
        None while the search goes on.
    """
    outputs = _outputs(store, project, Stage.REPORT, index=1)
    return _parse(ReportDoc, outputs[-1]) if outputs else None


def holds(store: JobStore, project: str) -> bool:
    """Say whether a store holds anything of a search; one document is read, by an index.

    Parameters
    ----------
    store
        Connected job store.
    project
        The search.

    Returns
    -------
    bool
        Whether the name is taken.
    """
    return any(store.docs_store.query({"metadata.project": project}, properties=["uuid"], limit=1))


def query_phases(
    store: JobStore,
    project: str,
    *,
    stable: bool = False,
    below: float | None = None,
    formula: str | None = None,
) -> list[dict[str, Any]]:
    """Return phases, the most stable first, after bringing the collection up to date if there is anything new.

    Nobody needs permission to write for this: without it, what is new is seen by the caller only.

    Parameters
    ----------
    store
        Connected job store.
    project
        The search.
    stable
        Only those on the hull of first-principles enthalpies.
    below
        Only those at most so far above it, eV/atom.
    formula
        Only this reduced formula.

    Returns
    -------
    list[dict]
        Documents of the `phases` collection.
    """
    criteria: dict[str, Any] = {"project": project}
    if stable:
        criteria["status"] = "stable"
    if below is not None:
        criteria["e_above_hull"] = {"$lte": below}
    if formula is not None:
        criteria["formula"] = formula
    found = list(_phases(store, project).query(criteria))
    unknown = float("inf")  # a phase that first principles have not seen comes last
    return sorted(
        found, key=lambda doc: (_or(doc["e_above_hull"], unknown), doc["e_above_hull_model"] or 0.0, doc["phase_id"])
    )


def _phases(store: JobStore, project: str) -> Store:
    if phases_are_current(store, project):
        return phase_store(store)
    builder = PhaseBuilder(store, project)
    docs = [builder.process_item(item) for item in builder.get_items()]
    try:
        builder.update_targets(docs)
    except (OperationFailure, OSError, sqlite3.Error) as error:
        logger.info("%s: the phases may not be written here (%s), only read", project, type(error).__name__)
        memory = MemoryStore(key="phase_key")
        memory.connect()
        memory.update(docs)
        return memory
    return phase_store(store)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _outputs(store: JobStore, project: str, stage: Stage, *, index: int) -> list[dict[str, Any]]:
    criteria = {"metadata.project": project, "metadata.stage": str(stage), "index": index}
    docs = store.query(criteria, properties=["uuid", "output", "completed_at"])
    # by job: two launches of one job that end at the same moment may leave two documents of the same content
    newest = {doc["uuid"]: doc["output"] for doc in sorted(docs, key=lambda doc: doc["completed_at"])}
    return [output for output in newest.values() if output]


def _parse(model: type[T], output: dict[str, Any]) -> T:
    # an output may hold more than its readable part: blobs
    return model.model_validate({key: value for key, value in output.items() if key in model.model_fields})
