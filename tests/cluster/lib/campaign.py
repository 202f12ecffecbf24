"""A search on the cluster of the tests: configuration files, submission, launchers, and what became of it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from database import TIMEOUT_MS, Database, RealDatabase, connected
from jobflow import JobStore

from workflows.results import generations, query_phases, report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_node import SlurmNode

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PATIENCE = 240.0  # s, for a whole search on a busy machine
EXPIRATION = 12  # s without a sign of life after which a job counts as lost
DONE = {"COMPLETED"}
CALCULATIONS = "calculations.txt"

SEARCH: dict[str, Any] = {
    "system": "Cu-Au",
    "seed": 1,
    "generate": {"n_initial": 16, "n_structures": 8, "chunk_size": 8, "atoms": [1, 2], "prototype_share": 1.0},
    "relax": {"max_steps": 30, "fmax": 0.1, "stress_gpa": 1.0},
    "select": {"n_labels": 3},
    "label": {
        "door": "ase",
        "calculator": "cluster_calculators:logged",
        "settings": {"crash": "Au"},
        "relax_fmax": 0.05,
        "chunk_size": 8,
    },
    # a number of steps, not of seconds: the same model on any machine
    "train": {
        "max_steps": 80,
        "model": {
            "members": 2,
            "n_radial": 6,
            "l_max": 2,
            "max_factors": 3,
            "channels": 4,
            "mixed_channels": 4,
            "hidden": [16],
        },
    },
    "advance": {"final_window_ev": 0.1, "final_max": 3},
}
"""Two metals, cells of one or two atoms; some labels crash."""


def search(project: str, n_generations: int) -> dict[str, Any]:
    """Return the content of a search file."""
    content = copy.deepcopy(SEARCH) | {"project": project}
    content["advance"]["max_generations"] = n_generations
    return content


def wait_for(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Look again and again until something is so."""
    limit = time.monotonic() + patience
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"not within {patience:g} s: {what}")
        time.sleep(0.2)


def answer(store: JobStore, project: str) -> dict[str, Any]:
    """Return what a search found, without times and random identities."""
    done = report(store, project)
    if done is None:
        raise LookupError(f"{project} has no report")
    steps = generations(store, project)
    return {
        "stop": done.stop_reason,
        "counts": (done.generations, done.n_trials, done.n_labels),
        "generations": [(g.generation, g.made, g.refused, g.statuses, g.chosen, g.labels) for g in steps],
        "errors": [g.metrics for g in steps],
        "attempts": [g.state.attempts for g in steps],
        "history": [record.model_dump(mode="json", exclude={"hours"}) for record in steps[-1].state.history],
        "phases": [
            (p["phase_id"], p["formula"], p["enthalpy_per_atom"], p["e_above_hull"], p["times_found"], p["status"])
            for p in query_phases(store, project)
        ],
    }


@dataclass(frozen=True)
class Held:
    """A job that waits at its beginning, until it is let go.

    Parameters
    ----------
    file
        As long as it exists.
    """

    file: Path

    def process(self) -> int:
        """Return the launcher's process of the job that waits; 0 before it has begun."""
        held = self.file.with_suffix(".held")
        return int((held.read_text() if held.exists() else "") or 0)

    def release(self) -> None:
        """Let it go on."""
        self.file.unlink()


@dataclass
class Campaign:
    """One search, its folder, its environment and its launchers.

    Parameters
    ----------
    folder
        Where configuration, faults, logs and launch folders lie.
    database
        Where LaunchPad and job store are.
    slurm
        The queue; None for launchers that no queue starts.
    project
        Name of the search.
    generations
        How many it lasts.
    launchers
        How many work at once.
    walltime
        Of each launcher, HH:MM:SS.
    """

    folder: Path
    database: Database | RealDatabase
    slurm: SlurmNode | None
    project: str
    generations: int = 3
    launchers: int = 4
    walltime: str = "00:30:00"

    def __post_init__(self) -> None:
        """Write the configuration of FireWorks and jobflow."""
        for name in ("faults", "logs", "launches", "configuration", "scratch"):
            (self.folder / name).mkdir(parents=True)
        for name, content in self._files().items():
            (self.configuration / name).write_text(yaml.safe_dump(content))
        today = datetime.now().strftime("%Y-%m-%d")  # noqa: DTZ005 - FireWorks compares it with the local date
        self.command(*self._tool("lpad"), "reset", "--password", today)

    @property
    def launches(self) -> Path:
        """Where launchers work."""
        return self.folder / "launches"

    @property
    def configuration(self) -> Path:
        """Where the files of FireWorks and jobflow are."""
        return self.folder / "configuration"

    @property
    def environment(self) -> dict[str, str]:
        """What commands and jobs need."""
        own = {
            "PYTHONPATH": os.pathsep.join(map(str, (HERE.parent / "worker", HERE, ROOT))),
            "FW_CONFIG_FILE": str(self.configuration / "FW_config.yaml"),
            "JOBFLOW_CONFIG_FILE": str(self.configuration / "jobflow.yaml"),
            "CALCULATIONS": str(self.folder / CALCULATIONS),
            "FAULTS": str(self.folder / "faults"),
            "HULLSEEKER_SCRATCH": str(self.folder / "scratch"),
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
        }
        inherited = {name: value for name, value in os.environ.items() if name != "MONGOMOCK_SERVERSTORE_FILE"}
        return inherited | (self.slurm.environment if self.slurm else {}) | own

    def submit(self) -> str:
        """Submit the search with the program."""
        file = self.folder / "search.yaml"
        file.write_text(yaml.safe_dump(search(self.project, self.generations)))
        return self.hullseeker("submit", str(file))

    def resume(self) -> str:
        """Let the program find and mend what was lost."""
        return self.hullseeker("resume", "--project", self.project)

    def hullseeker(self, *arguments: str) -> str:
        """Run the program."""
        return self.command(sys.executable, "-c", "from workflows.cli import main; main()", *arguments)

    def command(self, *command: str) -> str:
        """Run something in the environment of the search."""
        done = subprocess.run(  # noqa: S603 - our own programs
            command,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[-3:])}: {done.stdout}{done.stderr}")
        return done.stdout

    @contextmanager
    def launching(self, folder: Path | None = None, *, spare: bool = False) -> Iterator[None]:
        """Let launchers run as long as there is work: ``qlaunch rapidfire -m 4``, or their like without Slurm.

        With ``spare`` they are also started for work that has yet to come.
        """
        folder = folder or self.launches
        if self.slurm is not None:
            rapidfire = ["rapidfire", "-m", str(self.launchers), "--nlaunches", "infinite", "--sleep", "1"]
            commands = [[*self._tool("qlaunch"), *(["--fill_mode"] if spare else []), *rapidfire]]
        else:
            commands = [[*self._tool("rlaunch"), "rapidfire", "--nlaunches", "0", "--sleep", "1"]] * self.launchers
        with (self.folder / "launchers.log").open("ab") as log:
            launchers = [
                subprocess.Popen(command, cwd=folder, env=self.environment, stdout=log, stderr=log)  # noqa: S603
                for command in commands
            ]
            try:
                yield
            finally:
                for launcher in launchers:
                    launcher.terminate()
                    launcher.wait()

    def _tool(self, name: str) -> list[str]:
        return [str(Path(sys.executable).with_name(name)), "-c", str(self.configuration)]

    def befall(self, name: str) -> Path:
        """Ask for a fault, as ``train 001.before.kill``; return its file."""
        file = self.folder / "faults" / name
        file.touch()
        return file

    def befallen(self, name: str) -> bool:
        """Whether it has happened, as ``train 001.before.killed``."""
        return (self.folder / "faults" / name).exists()

    def hold(self, job: str) -> Held:
        """Let a job wait before it does anything."""
        return Held(self.befall(f"{job}.before.hold"))

    def calculations(self) -> Counter[str]:
        """Return how often each calculation was begun."""
        return Counter((self.folder / CALCULATIONS).read_text().splitlines())

    def fireworks(self) -> list[dict[str, Any]]:
        """Return the fireworks: name, state, launches."""
        with connected(self.database) as client:
            fields = {"name": 1, "state": 1, "launches": 1, "archived_launches": 1, "fw_id": 1}
            return list(client[self.project].fireworks.find({}, fields))

    def lost(self) -> list[str]:
        """Return the names of jobs that are said to run and have not given a sign of life for too long."""
        limit = (datetime.now(UTC) - timedelta(seconds=EXPIRATION)).replace(tzinfo=None).isoformat()
        with connected(self.database) as client:
            running = client[self.project].launches.find({"state": "RUNNING"}, {"state_history": 1, "fw_id": 1})
            silent = [launch["fw_id"] for launch in running if launch["state_history"][-1]["updated_on"] < limit]
            found = client[self.project].fireworks.find({"fw_id": {"$in": silent}, "state": "RUNNING"}, {"name": 1})
            return [firework["name"] for firework in found]

    def states(self) -> set[str]:
        """Return the states in which fireworks are."""
        return {firework["state"] for firework in self.fireworks()}

    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.states() == DONE

    def wait_until_done(self) -> None:
        """Wait for the end; resume whenever jobs were lost or have failed."""
        while True:
            wait_for(lambda: self.is_done() or self.lost() or "FIZZLED" in self.states(), f"{self.project} is done")
            if self.is_done():
                return
            self.resume()

    def wait_until_held(self, held: Held) -> int:
        """Wait until a job has begun, and resume what was lost on the way to it; return its launcher's process."""
        while True:
            wait_for(lambda: held.process() or self.lost() or "FIZZLED" in self.states(), f"{held.file.stem} is held")
            if process := held.process():
                return process
            self.resume()

    def jobs(self) -> list[str]:
        """Return a line for each time that a job was begun."""
        return (self.folder / "faults" / "jobs.log").read_text().splitlines()

    @contextmanager
    def store(self) -> Iterator[JobStore]:
        """Open the results."""
        specification = yaml.safe_load((self.configuration / "jobflow.yaml").read_text())["JOB_STORE"]
        store = JobStore.from_dict_spec(specification)
        store.connect()
        try:
            yield store
        finally:
            store.close()

    def answer(self) -> dict[str, Any]:
        """Return what the search found."""
        with self.store() as store:
            return answer(store, self.project)

    def _files(self) -> dict[str, Any]:
        patient = {"mongoclient_kwargs": {"serverSelectionTimeoutMS": TIMEOUT_MS}}
        store = {"database": self.project, "uri": self.database.uri} | patient
        return {
            "FW_config.yaml": {
                "CONFIG_FILE_DIR": str(self.configuration),
                "PING_TIME_SECS": 1,
                "RUN_EXPIRATION_SECS": EXPIRATION,
                "WFLOCK_EXPIRATION_SECS": 15,
                "WFLOCK_EXPIRATION_KILL": True,
                "QUEUE_UPDATE_INTERVAL": 1,
            },
            "my_launchpad.yaml": {"name": self.project, "host": self.database.uri, "uri_mode": True} | patient,
            "my_fworker.yaml": {"name": "everything", "category": "", "query": "{}"},
            "my_qadapter.yaml": {
                "_fw_name": "CommonAdapter",
                "_fw_q_type": "SLURM",
                "rocket_launch": " ".join([*self._tool("rlaunch"), "rapidfire", "--nlaunches", "0", "--sleep", "1"]),
                "nodes": 1,
                "ntasks": 1,
                "cpus_per_task": 1,
                "walltime": self.walltime,
                "queue": "debug",
                "logdir": str(self.folder / "logs"),
            },
            "jobflow.yaml": {
                "JOB_STORE": {
                    "docs_store": {"type": "MongoStore", "collection_name": "outputs"} | store,
                    "additional_stores": {"data": {"type": "GridFSStore", "collection_name": "blobs"} | store},
                }
            },
        }
