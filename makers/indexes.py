"""The indexes of the collections of a search, made by the program; and whether the phases are up to date."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

from makers.documents import LabelStatus
from makers.labelling.records import label_store
from makers.stage import Stage
from makers.stores import sibling_store

if TYPE_CHECKING:
    from jobflow import JobStore
    from maggma.core import Store

PHASES = "phases"
BASIS = "built_from"
"""Field of a phase: identity of the labels and candidates that it was built from."""

OUTPUT_INDEXES = ("uuid", "index", "name", "metadata.project", "metadata.stage", "metadata.generation", "completed_at")
PHASE_INDEXES = ("project", "phase_id", "formula", "chemsys", "status", "e_above_hull", "pressure_gpa", BASIS)
BLOB_INDEXES = ("blob_uuid", "job_uuid")


def ensure_indexes(store: JobStore) -> None:
    """Make the indexes of all collections; those that exist are left, and stores without indexes are passed over.

    Parameters
    ----------
    store
        A connected job store.
    """
    _ensure(store.docs_store, OUTPUT_INDEXES)
    label_store(store)
    phase_store(store)
    extras: dict[str, Store] = vars(store)["additional_stores"]  # jobflow leaves the attribute without a type
    for extra in extras.values():
        _ensure(extra, BLOB_INDEXES)


def phase_store(store: JobStore) -> Store:
    """Return the collection of phases, with its indexes where the store has any.

    Parameters
    ----------
    store
        A connected job store.

    Returns
    -------
    Store
        Connected; it shares the job store's connection, so it must not be closed.
    """
    phases = sibling_store(store, PHASES, key="phase_key")
    _ensure(phases, PHASE_INDEXES, unique="phase_key")
    return phases


def phase_basis(store: JobStore, project: str) -> str:
    """Return the identity of what the phases of a search are built from.

    Parameters
    ----------
    store
        A connected job store.
    project
        The search.

    Returns
    -------
    str
        Another one as soon as there are new labels, candidates or generations.
    """
    criteria = {
        "metadata.project": project,
        "metadata.stage": {"$in": [str(Stage.SELECT), str(Stage.ADVANCE)]},
        "index": 1,
    }
    outputs = store.docs_store.query(criteria, properties=["uuid", "completed_at"])
    parts = sorted(f"{doc['uuid']} {doc.get('completed_at')}" for doc in outputs)
    n_labels = label_store(store).count({"project": project, "status": str(LabelStatus.OK)})
    return hashlib.sha256("\n".join([*parts, str(n_labels)]).encode()).hexdigest()[:16]


def phases_are_current(store: JobStore, project: str) -> bool:
    """Say whether the phases of a search were built from all that is known by now.

    Parameters
    ----------
    store
        A connected job store.
    project
        The search.

    Returns
    -------
    bool
        False also before there are any, and after a builder that was interrupted.
    """
    phases = phase_store(store)
    n = phases.count({"project": project})
    return n > 0 and n == phases.count({"project": project, BASIS: phase_basis(store, project)})


def _ensure(store: Store, fields: tuple[str, ...], unique: str | None = None) -> None:
    with contextlib.suppress(NotImplementedError):  # kinds of stores that have no indexes
        if unique is not None:
            store.ensure_index(unique, unique=True)
        for field in fields:
            store.ensure_index(field)
