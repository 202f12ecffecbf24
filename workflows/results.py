"""Read what a search has stored: generations, phases, the answer. The same for a folder and for MongoDB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from makers.outcomes import GenerationDoc, ReportDoc
from makers.phases import PHASES, PhaseBuilder
from makers.stage import Stage
from makers.stores import sibling_store

if TYPE_CHECKING:
    from jobflow import JobStore

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


def projects(store: JobStore) -> list[str]:
    """Return the names of the searches in a store.

    Parameters
    ----------
    store
        Connected job store.

    Returns
    -------
    list[str]
        Sorted.
    """
    docs = store.query({}, properties=["metadata"])
    return sorted({doc["metadata"]["project"] for doc in docs if doc.get("metadata", {}).get("project")})


def query_phases(
    store: JobStore,
    project: str,
    *,
    stable: bool = False,
    below: float | None = None,
    formula: str | None = None,
) -> list[dict[str, Any]]:
    """Return phases, the most stable first, after bringing the collection up to date.

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
    PhaseBuilder(store, project).build()
    criteria: dict[str, Any] = {"project": project}
    if stable:
        criteria["status"] = "stable"
    if below is not None:
        criteria["e_above_hull"] = {"$lte": below}
    if formula is not None:
        criteria["formula"] = formula
    found = list(sibling_store(store, PHASES).query(criteria))
    unknown = float("inf")  # a phase that first principles have not seen comes last
    return sorted(found, key=lambda doc: (_or(doc["e_above_hull"], unknown), doc["e_above_hull_model"] or 0.0))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _outputs(store: JobStore, project: str, stage: Stage, *, index: int) -> list[dict[str, Any]]:
    criteria = {"metadata.project": project, "metadata.stage": str(stage), "index": index}
    docs = store.query(criteria, properties=["output", "completed_at"])
    return [doc["output"] for doc in sorted(docs, key=lambda doc: doc["completed_at"]) if doc.get("output")]


def _parse(model: type[T], output: dict[str, Any]) -> T:
    return model.model_validate({key: value for key, value in output.items() if not key.startswith("@")})
