"""The working set of the tests: what `hullseeker init --scheduler slurm` writes, edited as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from database import TIMEOUT_MS, Database, RealDatabase

from workflows.cluster import WORKERS

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CODE = os.pathsep.join(map(str, (HERE.parent / "worker", HERE, ROOT)))
EXPIRATION = 12  # s without a sign of life after which a job counts as lost
TIMES = {
    "PING_TIME_SECS": 1,
    "RUN_EXPIRATION_SECS": EXPIRATION,
    "WFLOCK_EXPIRATION_SECS": 15,
    "QUEUE_UPDATE_INTERVAL": 1,
    "RAPIDFIRE_SLEEP_SECS": 1,
}
"""Settings of FW_config.yaml under which the tests end within minutes."""
PARTITIONS = {"my": "debug", "light": "light", "ml": "ml", "dft": "dft", "reserve": None}
"""Of each worker; none for `qlaunch -r`, where resources.yaml names it and -m counts the jobs of all."""
ONE_THREAD = "OMP_NUM_THREADS=1"


def write(folder: Path, database: Database | RealDatabase, project: str, variables: dict[str, str]) -> None:
    """Let the program write the working set; give its jobs one core and its environment some variables.

    Parameters
    ----------
    folder
        Where.
    database
        The double, by host and port, or a real MongoDB, by its address.
    project
        Name of the database.
    variables
        Added to env.sh.
    """
    where = ["--host", database.address] if isinstance(database, Database) else []
    tool = Path(sys.executable).with_name("hullseeker")
    subprocess.run(  # noqa: S603 - our own program
        [str(tool), "init", str(folder), "--scheduler", "slurm", "--database", project, *where],
        env=os.environ | {"PYTHONPATH": CODE},
        capture_output=True,
        check=True,
    )
    edit(folder / "FW_config.yaml", lambda settings: settings.update(TIMES))
    for name in (*WORKERS, "reserve"):
        edit(folder / f"{name}_qadapter.yaml", partial(_fit, partition=PARTITIONS[name]))
    edit(folder / "resources.yaml", _fit_stages)
    with (folder / "env.sh").open("a") as file:
        file.writelines(f"export {name}={value}\n" for name, value in ({"PYTHONPATH": CODE} | variables).items())
    if isinstance(database, RealDatabase):
        edit(folder / "my_launchpad.yaml", lambda there: there.update(host=database.uri, uri_mode=True))
        edit(folder / "jobflow.yaml", lambda content: _by_uri(content["JOB_STORE"], project, database.uri))


def edit(file: Path, change: Callable[[Any], None]) -> None:
    """Change the content of a YAML file.

    Parameters
    ----------
    file
        The file.
    change
        Changes what it holds, in place.
    """
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(yaml.safe_dump(content))


def set_walltime(folder: Path, worker: str, walltime: str, timeout: int) -> None:
    """Set how long the queue job of a worker may last, and after how long it takes nothing new.

    Parameters
    ----------
    folder
        The working set.
    worker
        First word of its files.
    walltime
        HH:MM:SS.
    timeout
        s.
    """

    def change(adapter: dict[str, Any]) -> None:
        command, _, _ = adapter["rocket_launch"].rpartition(" --timeout ")
        adapter.update(walltime=walltime, rocket_launch=f"{command} --timeout {timeout}")

    edit(folder / f"{worker}_qadapter.yaml", change)


def _fit(adapter: dict[str, Any], partition: str | None) -> None:
    """Ask for one core of a partition."""
    threads = f"OMP_NUM_THREADS={adapter['cpus_per_task']}"
    one_core = {"ntasks": 1, "cpus_per_task": 1, "pre_rocket": adapter["pre_rocket"].replace(threads, ONE_THREAD)}
    adapter.update(one_core, queue=partition)


def _fit_stages(stages: dict[str, Any]) -> None:
    for stage in ("generate", "relax", "label"):  # the others refer to them
        _fit(stages[stage]["_queueadapter"], PARTITIONS[stages[stage]["_category"]])


def _by_uri(stores: dict[str, Any], project: str, uri: str) -> None:
    patient = {"mongoclient_kwargs": {"serverSelectionTimeoutMS": TIMEOUT_MS}}
    for store in (stores["docs_store"], stores["additional_stores"]["data"]):
        kept = {key: store[key] for key in ("type", "collection_name")}
        store.clear()
        store.update(kept | {"database": project, "uri": uri} | patient)
