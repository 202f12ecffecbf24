"""Submit a search to FireWorks, and open its LaunchPad; with `jobs` and `recover` all that knows FireWorks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fireworks import FWorker, LaunchPad, fw_config
from fireworks.user_objects.queue_adapters.common_adapter import CommonAdapter
from jobflow import SETTINGS, JobStore
from jobflow.managers.fireworks import flow_to_workflow
from maggma.stores import MemoryStore
from pymongo.errors import PyMongoError

from makers.errors import ConfigError
from makers.indexes import ensure_indexes
from workflows.queue import ask
from workflows.reach import PATIENCE_MS, bare, explain, is_remote, require_answer, require_server
from workflows.results import holds
from workflows.routing import WORKERS, configured_resources
from workflows.search import SearchMaker

if TYPE_CHECKING:
    from maggma.core import Store

    from workflows.config import SearchConfig
    from workflows.queue import Queue

__all__ = ["WORKERS", "configured_store", "open_launchpad", "submit_search"]


def configured_store() -> JobStore:
    """Open the job store that jobflow is configured for.

    Returns
    -------
    JobStore
        The connected store.

    Raises
    ------
    ConfigError
        If it is the in-memory default, which loses everything with the process, lacks the store ``data``, or its
        server does not answer.
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
        If it lacks the additional store ``data``, or a server does not answer.
    """
    extra: dict[str, Store] = vars(store)["additional_stores"]  # jobflow leaves the attribute without a type
    if "data" not in extra:
        raise ConfigError(
            "JOB_STORE.additional_stores: expected a store named `data` for batches and models, got "
            f"{sorted(extra) or 'none'}; see launchpad_config/jobflow.yaml"
        )
    for each in (store.docs_store, extra["data"]):
        if is_remote(each):
            require_server(each)
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
        Whether each stage asks for the worker and the queue settings that `configured_resources` names.

    Returns
    -------
    str
        What was done and what to type next.

    Raises
    ------
    ConfigError
        If the job store cannot hold a search, or it or the LaunchPad holds one of this name already.
    """
    resources = configured_resources() if by_category else {}
    store = configured_store()
    ensure_indexes(store)
    if holds(store, config.project):
        raise ConfigError(
            f"project: the database holds a search {config.project!r} already; choose another name, or see "
            f"`hullseeker status --project {config.project}`"
        )
    launchpad = launchpad or open_launchpad()
    waiting = launchpad.get_wf_ids({"metadata.project": config.project, "state": {"$ne": "ARCHIVED"}})
    if waiting:
        raise ConfigError(
            f"project: the LaunchPad holds {config.project!r} already (workflow of firework {waiting[0]}); choose "
            f"another name, or archive it with `lpad archive -i {waiting[0]}`"
        )
    flow = SearchMaker(config, resources=resources).make()
    workflow = flow_to_workflow(flow, name=config.project, metadata={"project": config.project})
    ids = launchpad.add_wf(workflow)
    return (
        f"added {config.project} as workflow of {len(ids)} fireworks to {launchpad_address(launchpad)}\n"
        f"run it with `qlaunch rapidfire` or `rlaunch rapidfire`; watch it with "
        f"`hullseeker status --project {config.project}`"
    )


@dataclass(frozen=True)
class Setup:
    """How FireWorks is configured in this process.

    Parameters
    ----------
    folder
        Where it looks for its files.
    launchpad_file
        File of the LaunchPad; None if there is none.
    ping
        Time between two signs of life of a job, s.
    expiration
        Time without one after which a job counts as lost, s.
    kills_locks
        Whether a stale lock of a workflow is removed.
    """

    folder: Path
    launchpad_file: Path | None
    ping: float
    expiration: float
    kills_locks: bool


def fireworks_setup() -> Setup:
    """Return how FireWorks is configured in this process.

    Returns
    -------
    Setup
        As read from FW_config.yaml.
    """
    found = fw_config.config_to_dict()
    file = found["LAUNCHPAD_LOC"]
    return Setup(
        folder=Path(found["CONFIG_FILE_DIR"]).absolute(),
        launchpad_file=Path(file) if file else None,
        ping=found["PING_TIME_SECS"],
        expiration=found["RUN_EXPIRATION_SECS"],
        kills_locks=bool(found["WFLOCK_EXPIRATION_KILL"]),
    )


def open_launchpad() -> LaunchPad:
    """Open the configured LaunchPad.

    Returns
    -------
    LaunchPad
        Its server answers.

    Raises
    ------
    ConfigError
        If its file cannot be used, or the server does not answer; names the host and what to do.
    """
    setup = fireworks_setup()
    file = setup.launchpad_file or "my_launchpad.yaml"
    try:
        launchpad: LaunchPad = LaunchPad.auto_load()
    except Exception as error:  # YAML, FireWorks and pymongo each have their own
        raise ConfigError(
            f"{file}: cannot be used as a LaunchPad ({type(error).__name__}): compare `hullseeker init`"
        ) from error
    try:
        plain = launchpad.to_dict()
        plain["mongoclient_kwargs"] = {**launchpad.mongoclient_kwargs, "serverSelectionTimeoutMS": PATIENCE_MS}
        require_answer(LaunchPad.from_dict(plain).fw_id_assigner)
    except PyMongoError as error:
        launchpad.connection.close()
        raise ConfigError(explain(error, launchpad_address(launchpad), str(file))) from error
    return launchpad


def launchpad_address(launchpad: LaunchPad) -> str:
    """Return where a LaunchPad is, without credentials.

    Parameters
    ----------
    launchpad
        Any.

    Returns
    -------
    str
        Host, port and database.
    """
    if launchpad.uri_mode:
        return f"{bare(str(launchpad.host))} ({launchpad.name})"
    return f"{launchpad.host}:{launchpad.port}/{launchpad.name}"


def launchpad_faults(launchpad: LaunchPad) -> list[str]:
    """Return what keeps a LaunchPad from working.

    Parameters
    ----------
    launchpad
        A LaunchPad whose server answers.

    Returns
    -------
    list[str]
        Each with what to do; empty if it is ready.
    """
    if launchpad.fw_id_assigner.find_one({}) is None:
        return ["it was never set up: `lpad reset` does it, once, and erases what is there"]
    wanted = {
        "fireworks": ("fw_id", "state", "spec._category"),
        "launches": ("launch_id", "fw_id"),
        "workflows": ("nodes",),
    }
    faults = []
    for name, fields in wanted.items():
        keys = {tuple(key for key, _ in index["key"]) for index in launchpad.db[name].index_information().values()}
        faults += [
            f"{name} has no index on {field}: `lpad admin tuneup` makes them"
            for field in fields
            if (field,) not in keys
        ]
    return faults


def worker_category(file: Path) -> str | list[str]:
    """Return which category of stages a worker takes.

    Parameters
    ----------
    file
        Its YAML file.

    Returns
    -------
    str or list[str]
        Empty for all.
    """
    category: str | list[str] = FWorker.from_file(str(file)).category
    return category


def read_adapter(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a queue adapter and write a script by it.

    Parameters
    ----------
    file
        Its YAML file.

    Returns
    -------
    tuple
        Its settings with ``q_type``, and the commands by which it submits and counts.
    """
    adapter = CommonAdapter.from_file(str(file))
    adapter.get_script_str(".")
    return {**adapter, "q_type": adapter.q_type}, adapter.q_commands[adapter.q_type]


def ask_queue() -> Queue | None:
    """Ask the configured queue which jobs it knows.

    Returns
    -------
    Queue or None
        None if there is no queue adapter, or the queue does not answer here.
    """
    files = sorted(fireworks_setup().folder.glob("*_qadapter.yaml"))
    if not files:
        return None
    adapter, commands = read_adapter(files[0])  # all of a working set are for one queue
    return ask(adapter["q_type"], commands["status_cmd"])
