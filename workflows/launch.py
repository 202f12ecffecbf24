"""Submit a search to FireWorks; the only module that knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fireworks import LaunchPad
from jobflow import SETTINGS, JobStore
from jobflow.managers.fireworks import flow_to_workflow
from maggma.stores import MemoryStore

from makers.errors import ConfigError
from workflows.results import projects
from workflows.search import SearchMaker

if TYPE_CHECKING:
    from maggma.core import Store

    from makers.resources import Resources
    from workflows.config import SearchConfig

WORKERS: Resources = {
    "generate": {"_category": "light"},
    "relax": {"_category": "ml"},
    "select": {"_category": "light"},
    "label": {"_category": "dft"},
    "train": {"_category": "ml"},
    "advance": {"_category": "light"},
    "report": {"_category": "light"},
}
"""Category of the worker of each stage; a worker without a category runs everything."""


def configured_store() -> JobStore:
    """Open the job store that jobflow is configured for.

    Returns
    -------
    JobStore
        The connected store.

    Raises
    ------
    ConfigError
        If it is the in-memory default, which loses everything with the process, or lacks the store ``data``.
    """
    store: JobStore = SETTINGS.JOB_STORE
    if type(store.docs_store) is MemoryStore:
        raise ConfigError(
            "JOB_STORE: expected a database, got jobflow's in-memory default, which forgets every result; "
            "name jobflow.yaml in the environment variable JOBFLOW_CONFIG_FILE (see launchpad_config/)"
        )
    return require_data(store)


def require_data(store: JobStore) -> JobStore:
    """Connect a job store that has a place for blobs.

    Parameters
    ----------
    store
        Any job store.

    Returns
    -------
    JobStore
        The same, connected.

    Raises
    ------
    ConfigError
        If it lacks the additional store ``data``.
    """
    extra: dict[str, Store] = vars(store)["additional_stores"]  # jobflow leaves the attribute without a type
    if "data" not in extra:
        raise ConfigError(
            "JOB_STORE.additional_stores: expected a store named `data` for batches and models, got "
            f"{sorted(extra) or 'none'}; see launchpad_config/jobflow.yaml"
        )
    store.connect()
    return store


def submit_search(config: SearchConfig, launchpad: LaunchPad | None = None, *, by_category: bool = True) -> str:
    """Add a search to the LaunchPad.

    Parameters
    ----------
    config
        The search file.
    launchpad
        Where; by default the configured one.
    by_category
        Whether each stage asks for the category of worker in ``WORKERS``.

    Returns
    -------
    str
        What was done and what to type next.

    Raises
    ------
    ConfigError
        If the job store cannot hold a search, or it or the LaunchPad holds one of this name already.
    """
    store = configured_store()
    if config.project in projects(store):
        raise ConfigError(
            f"project: the database holds a search {config.project!r} already; choose another name, or see "
            f"`hullseeker status --project {config.project}`"
        )
    launchpad = launchpad or LaunchPad.auto_load()
    waiting = launchpad.get_wf_ids({"metadata.project": config.project, "state": {"$ne": "ARCHIVED"}})
    if waiting:
        raise ConfigError(
            f"project: the LaunchPad holds {config.project!r} already (workflow of firework {waiting[0]}); choose "
            f"another name, or archive it with `lpad archive -i {waiting[0]}`"
        )
    flow = SearchMaker(config, resources=WORKERS if by_category else {}).make()
    workflow = flow_to_workflow(flow, name=config.project, metadata={"project": config.project})
    ids = launchpad.add_wf(workflow)
    return (
        f"added {config.project} as workflow of {len(ids)} fireworks to {launchpad.host}/{launchpad.name}\n"
        f"run it with `qlaunch rapidfire` or `rlaunch rapidfire`; watch it with "
        f"`hullseeker status --project {config.project}`"
    )
