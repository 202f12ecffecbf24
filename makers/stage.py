"""What every stage has in common: how its job is declared, named, seeded, and how it reaches earlier results."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jobflow import CURRENT_JOB, SETTINGS, Job, JobConfig, JobStore, Maker, OnMissing, job
from maggma.stores import MemoryStore
from monty.json import MontyDecoder, MSONable, jsanitize
from pydantic import BaseModel

from csp.state import Ledger, SearchState
from makers.blobs import LedgerBlob, ModelBlob, StructureBatch, write_blobs_first
from makers.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

Stored = TypeVar("Stored", bound=BaseModel)

NAMESPACE = uuid.UUID("5c8f3a50-6a1d-4e0c-9a42-8f1d3a2b7c11")


class Stage(StrEnum):
    """The stages of a search: the only names of them, in files, jobs, settings and output."""

    GENERATE = "generate"
    RELAX = "relax"
    SELECT = "select"
    LABEL = "label"
    TRAIN = "train"
    ADVANCE = "advance"
    REPORT = "report"


class StageMaker(Maker):
    """Base of the makers of stages: settings survive FireWorks.

    A job names its function with the maker that it is bound to, and jobflow leaves pydantic objects in there as they
    are; FireWorks then writes them as text, and the worker gets a string where settings should be.
    """

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, settings included."""
        plain: dict[str, Any] = jsanitize(super().as_dict(), strict=True, enum_values=True)
        return plain


def stage_job(
    output_schema: type[BaseModel] | None = None, *, tolerant: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Job]]:
    """Declare the ``make`` of a stage: its blobs go to the store ``data``, and the job sees the store.

    They are stored before the document that names them.

    Parameters
    ----------
    output_schema
        Document that the job returns; None for drivers, which spawn further jobs.
    tolerant
        Whether the job runs although a parent failed; the parent's output is then None.

    Returns
    -------
    Callable
        The decorator.
    """
    config = JobConfig(
        expose_store=True,
        pass_manager_config=False,  # a driver would else overwrite the worker of everything that it spawns
        on_missing_references=OnMissing.NONE if tolerant else OnMissing.ERROR,
    )
    declare = job(data=[StructureBatch, ModelBlob, LedgerBlob], output_schema=output_schema, config=config)

    def decorate(make: Callable[..., Any]) -> Callable[..., Job]:
        @wraps(make)
        def safely_stored(*args: object, **kwargs: object) -> object:
            write_blobs_first(_given_store())
            return make(*args, **kwargs)

        declared: Callable[..., Job] = declare(safely_stored)
        return declared

    return decorate


def current_store() -> JobStore:
    """Return the job store in which the results of the whole search lie, for use within one of its jobs.

    jobflow-remote gives a job a store of its own, empty files from which it takes the output when the job has ended.
    Jobs of a search read what others have found and keep each label as soon as it is known, so they then ask for the
    store that jobflow is configured for where they run.

    Returns
    -------
    JobStore
        The connected store.

    Raises
    ------
    ConfigError
        If jobflow-remote runs the job and jobflow is configured for no store.
    RuntimeError
        If called outside of a stage's job.
    """
    store = _given_store()
    if not type(store.docs_store).__module__.startswith("jobflow_remote."):
        return store
    store = SETTINGS.JOB_STORE
    if type(store.docs_store) is MemoryStore:
        raise ConfigError(
            "jobflow-remote gives its jobs an empty store, and jobflow is configured for no other here: let the "
            "worker's pre_run export JOBFLOW_CONFIG_FILE, a file that names the project's JOB_STORE"
        )
    store.connect()
    return store


def _given_store() -> JobStore:
    """Return the store into which jobflow will write the output of the running job."""
    store = CURRENT_JOB.store
    if store is None:
        raise RuntimeError("no job is running here: a stage's function was called outside of its job")
    return store


def stored_already(schema: type[Stored]) -> Stored | None:
    """Return what another launch of the running job has stored: its result is in use, and must not be replaced.

    Parameters
    ----------
    schema
        Document of the job's output.

    Returns
    -------
    Document or None
        With its blobs; None if there is nothing, or not everything.
    """
    job: Any = CURRENT_JOB.job
    try:
        output = current_store().get_output(job.uuid, which=job.index, load=True)
        return schema.model_validate(MontyDecoder().process_decoded(output))
    except ValueError:  # no output, or one without its blob
        return None


def job_uuid(run_id: str, name: str) -> str:
    """Return the identity of a job: the same search and the same name give the same one.

    A search that is resumed finds by it what is done already.

    Parameters
    ----------
    run_id
        Identity of the search.
    name
        Name of the job, unique in the search.

    Returns
    -------
    str
        A UUID.
    """
    return str(uuid.uuid5(NAMESPACE, f"{run_id}/{name}"))


def seed_sequence(seed: int, generation: int, stage: Stage, chunk: int = 0) -> np.random.SeedSequence:
    """Return the random numbers of one job, independent of every other job's and of the number of workers.

    Parameters
    ----------
    seed
        Seed of the search.
    generation
        Generation, from 0.
    stage
        The stage.
    chunk
        Chunk within the stage.

    Returns
    -------
    numpy.random.SeedSequence
        The sequence.
    """
    return np.random.SeedSequence(seed, spawn_key=(generation, list(Stage).index(stage), chunk))


@dataclass(frozen=True)
class Handle(MSONable):
    """Where an output of an earlier generation lies.

    Within a generation jobs refer to each other by jobflow's references. Across generations those are refused by
    FireWorks (a workflow must contain every job that it refers to), so a job is given the place and looks itself.

    Parameters
    ----------
    uuid
        The job.
    attribute
        Which part of its output.
    rows
        First and one past the last structure of a batch; None for all of it.
    """

    uuid: str
    attribute: str
    rows: tuple[int, int] | None = None

    def fetch(self, store: JobStore) -> Any:  # noqa: ANN401 - whatever the job has stored
        """Fetch the output, blobs included.

        Parameters
        ----------
        store
            The job store.

        Returns
        -------
        Any
            The stored object, decoded.
        """
        # A driver's later outputs, if there are any, are those of what it was replaced by.
        found = store.get_output(self.uuid, which="first")[self.attribute]
        if isinstance(found, dict) and "blob_uuid" in found:  # else nothing of the output's blobs is needed
            found = store.get_output(self.uuid, which="first", load=True)[self.attribute]
        found = MontyDecoder().process_decoded(found)
        return found if self.rows is None else found.part(*self.rows)


def newest_output(store: JobStore, project: str, stage: Stage) -> dict[str, Any] | None:
    """Return what the newest finished generation's job of a stage has stored, without blobs.

    Parameters
    ----------
    store
        Connected job store.
    project
        The search.
    stage
        The stage.

    Returns
    -------
    dict or None
        The output and the ``uuid`` of its job; None before there is one.
    """
    criteria = {"metadata.project": project, "metadata.stage": str(stage), "index": 1}
    docs = list(store.query(criteria, properties=["uuid", "metadata", "output"]))
    docs = [doc for doc in docs if doc.get("output")]
    newest = max(docs, key=lambda doc: doc["metadata"]["generation"], default=None)
    return {"uuid": newest["uuid"]} | newest["output"] if newest else None


def read_state(given: SearchState | Handle) -> SearchState:
    """Return the state that a job was given, or fetch it: it grows, and is not copied into every job.

    Parameters
    ----------
    given
        The state, or where it lies.

    Returns
    -------
    SearchState
        The state.
    """
    return given if isinstance(given, SearchState) else SearchState.model_validate(given.fetch(current_store()))


def read_ledger(given: Handle | None) -> Ledger:
    """Fetch the ledger of a search.

    Parameters
    ----------
    given
        Where it lies; None before a generation has finished.

    Returns
    -------
    Ledger
        Attempts and finds so far.
    """
    return given.fetch(current_store()).ledger if given else Ledger()
