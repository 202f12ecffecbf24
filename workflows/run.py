"""Run a search in this process, without any server: results lie in a folder and survive it."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jobflow import Flow, run_locally

from makers.errors import ConfigError, StopError
from makers.scratch import SCRATCH_VARIABLE
from makers.stage import Stage, job_uuid
from makers.stores import embedded_job_store
from workflows.config import SearchConfig, load_config
from workflows.results import generations, report
from workflows.search import SearchMaker, job_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobflow import Job, JobStore

    from makers.outcomes import ReportDoc

logger = logging.getLogger(__name__)

SEARCH_FILE = "search.yaml"
STORE_FOLDER = "store"
JOBS_FOLDER = "jobs"
SCRATCH_FOLDER = "scratch"


def open_store(folder: Path | str) -> JobStore:
    """Open the results of an embedded search.

    Parameters
    ----------
    folder
        Folder of the search.

    Returns
    -------
    JobStore
        The connected store.

    Raises
    ------
    ConfigError
        If there is no search in the folder.
    """
    folder = Path(folder)
    if not (folder / SEARCH_FILE).is_file():
        raise ConfigError(f"{folder}: expected the folder of a search (with a {SEARCH_FILE}), found none")
    store = embedded_job_store(folder / STORE_FOLDER)
    store.connect()
    return store


def run_search(config: SearchConfig, folder: Path | str) -> ReportDoc:
    """Run a new search to its end.

    Parameters
    ----------
    config
        The search file.
    folder
        Where everything is kept; made here.

    Returns
    -------
    ReportDoc
        The answer.

    Raises
    ------
    ConfigError
        If the folder holds a search already or cannot be written.
    StopError
        If a job failed; names it.
    """
    folder = Path(folder)
    if (folder / SEARCH_FILE).exists():
        raise ConfigError(
            f"{folder}: holds a search already; go on with `hullseeker resume {folder}`, or give another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SEARCH_FILE).write_text(config.resolved_yaml(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: expected a folder that can be written, got: {error.strerror}") from error
    return _run(SearchMaker(config).make(), config, folder)


def resume_search(folder: Path | str) -> ReportDoc:
    """Go on with an interrupted search: finished jobs and finished labels are kept.

    Parameters
    ----------
    folder
        Folder of the search.

    Returns
    -------
    ReportDoc
        The answer; at once if the search had ended.

    Raises
    ------
    ConfigError
        If there is no search in the folder.
    StopError
        If a job failed; names it.
    """
    folder = Path(folder)
    store = open_store(folder)
    config = load_config(folder / SEARCH_FILE)
    answer = report(store, config.project)
    if answer is not None:
        return answer
    maker = SearchMaker(config)
    _check_same(maker, store, folder)
    done = generations(store, config.project)
    flow = maker.after(done[-1], store) if done else maker.make()
    return _run(unfinished(flow, store), config, folder)


def _check_same(maker: SearchMaker, store: JobStore, folder: Path) -> None:
    """Refuse to go on with what has become another search."""
    begun = store.count({"metadata.project": maker.config.project})
    same = store.count({"uuid": job_uuid(maker.run_id, job_name(Stage.GENERATE, 0, "0"))})
    if begun and not same:
        raise ConfigError(
            f"{folder / SEARCH_FILE}: system, pressure_gpa, seed, project, the physics of `label` or train.model have "
            "changed since the search began; take that back, or start another search in another folder"
        )


def unfinished(flow: Flow, store: JobStore) -> Flow:
    """Leave out the jobs whose output is stored: a job's identity follows from the search and its name.

    Parameters
    ----------
    flow
        Flow of one generation.
    store
        The connected store.

    Returns
    -------
    Flow
        What is still to do.
    """
    todo = [job for job in _jobs(flow) if not _is_done(job, store)]
    logger.info("resume: %d of %d jobs of %s are still to do", len(todo), len(list(_jobs(flow))), flow.name)
    return Flow([_detach(job) for job in todo], name=flow.name)


def _jobs(flow: Flow) -> list[Job]:
    return [job for job, _ in flow.iterflow()]


def _detach(job: Job) -> Job:
    job.hosts = []  # it leaves the flow that it was made in
    return job


def _is_done(job: Job, store: JobStore) -> bool:
    stored = store.query_one({"uuid": job.uuid}, properties=["output"], sort={"index": -1})
    return stored is not None and stored.get("output") is not None


def _run(flow: Flow, config: SearchConfig, folder: Path) -> ReportDoc:
    store = open_store(folder)
    with warnings.catch_warnings(), _listening() as failures, _scratch(folder / SCRATCH_FOLDER):
        warnings.filterwarnings("ignore", message="cd is deprecated", category=FutureWarning)  # monty, via jobflow
        run_locally(
            flow,
            store=store,
            log=False,
            create_folders=True,
            root_dir=_made(folder / JOBS_FOLDER),
            allow_external_references=True,
        )
    answer = report(store, config.project)
    if answer is None:
        job, error = failures.last
        raise StopError(
            f"{folder}: the job `{job}` failed ({error}); mend its cause and go on with `hullseeker resume {folder}`"
        )
    return answer


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """Let long jobs keep in the folder of the search what they have done, whatever the environment says."""
    before = os.environ.get(SCRATCH_VARIABLE)
    os.environ[SCRATCH_VARIABLE] = str(folder.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ[SCRATCH_VARIABLE]
        else:
            os.environ[SCRATCH_VARIABLE] = before


class _Failures(logging.Handler):
    """Remember the last job that failed: jobflow tells it to its log only.

    Failures that the search tolerates come before the one that ends it, and jobs that miss its output after it.
    """

    SAYS = " failed with exception:"
    FOLLOWS = "Could not resolve reference"

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.last = ("unknown", "see the log")

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the name of the job and the last line of its traceback."""
        name, said, trace = record.getMessage().partition(self.SAYS)
        error = trace.strip().splitlines()[-1] if said else self.FOLLOWS
        if self.FOLLOWS not in error:
            self.last = (name, error)


@contextmanager
def _listening() -> Iterator[_Failures]:
    failures, jobs = _Failures(), logging.getLogger("jobflow.managers.local")
    level = jobs.level
    jobs.addHandler(failures)
    jobs.setLevel(logging.INFO)
    try:
        yield failures
    finally:
        jobs.removeHandler(failures)
        jobs.setLevel(level)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
