"""A search on the cluster of the tests: configuration files, submission, launchers, and what became of it."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import working_set
import yaml
from database import Database, RealDatabase, connected
from fireworks import LaunchPad
from jobflow import JobStore
from working_set import EXPIRATION

from workflows.cluster import WORKERS
from workflows.jobs import read_jobs
from workflows.recover import Action, Trouble, diagnose, orphans
from workflows.results import generations, ledger, query_phases, report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from slurm_node import SlurmNode

    from workflows.recover import Case

PATIENCE = 240.0  # s, for a whole search on a busy machine
DONE = {"COMPLETED"}
CALCULATIONS = "calculations.txt"
CATEGORIES = ("light", "ml", "dft")
ROUNDING = {"rel_tol": 1e-6, "abs_tol": 1e-8}

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


class Way(StrEnum):
    """How workers are started."""

    PILOTS = "pilot jobs for everything"
    CATEGORIES = "pilot jobs by category"
    RESERVATIONS = "one queue job for each job"


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
        "ledger": ledger(store, project).model_dump(mode="json"),
        "history": [record.model_dump(mode="json", exclude={"hours"}) for record in steps[-1].state.history],
        "phases": [
            (p["phase_id"], p["formula"], p["enthalpy_per_atom"], p["e_above_hull"], p["times_found"], p["status"])
            for p in query_phases(store, project)
        ],
    }


def differences(found: Any, expected: Any, path: str = "answer") -> list[str]:  # noqa: ANN401 - any part of an answer
    """Compare two answers, numbers to ROUNDING: crystals relaxed in other company after a kill differ in last digits.

    Parameters
    ----------
    found, expected
        The same part of both.
    path
        Where it is.

    Returns
    -------
    list[str]
        What differs.
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping) and found.keys() == expected.keys():
        return [line for key in expected for line in differences(found[key], expected[key], f"{path}.{key}")]
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for k, (one, other) in pairs for line in differences(one, other, f"{path}[{k}]")]
    close = isinstance(expected, float) and isinstance(found, float) and math.isclose(found, expected, **ROUNDING)
    return [] if close or found == expected else [f"{path}: {found!r}, expected {expected!r}"]


AGAIN = 'while true; do "$@"; sleep 1; done'
"""Starts a launcher again whenever it ends: killed, or because the queue did not answer or refused a job."""


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


class Run(NamedTuple):
    """One time that a job was begun."""

    identity: str
    name: str
    process: str
    partition: str


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
        How many work at once; of each category where there is one for each.
    way
        How they are started: one of those that launchpad_config/README.md names.
    walltime
        Minutes that a queue job of any worker may last; after half of it, it takes nothing new.
    """

    folder: Path
    database: Database | RealDatabase
    slurm: SlurmNode | None
    project: str
    generations: int = 3
    launchers: int = 4
    way: Way = Way.PILOTS
    walltime: int = 30

    def __post_init__(self) -> None:
        """Let the program write the configuration of FireWorks and jobflow, and edit it."""
        for name in ("faults", "launches"):
            (self.folder / name).mkdir(parents=True)
        variables = {
            "CALCULATIONS": str(self.folder / CALCULATIONS),
            "FAULTS": str(self.folder / "faults"),
            "PYTHONWARNINGS": "ignore",
        }
        working_set.write(self.site, self.database, self.project, variables)
        self.allow(self.walltime)
        today = datetime.now().strftime("%Y-%m-%d")  # noqa: DTZ005 - FireWorks compares it with the local date
        self.command("lpad", "reset", "--password", today)

    @property
    def launches(self) -> Path:
        """Where launchers work."""
        return self.folder / "launches"

    @property
    def site(self) -> Path:
        """Where the files of FireWorks and jobflow are."""
        return self.folder / "site"

    @property
    def environment(self) -> dict[str, str]:
        """What a shell knows before it sources env.sh."""
        inherited = {name: value for name, value in os.environ.items() if name != "MONGOMOCK_SERVERSTORE_FILE"}
        return inherited | (self.slurm.environment if self.slurm else {})

    def allow(self, minutes: int) -> None:
        """Set the walltime of queue jobs to come."""
        for worker in WORKERS:
            working_set.set_walltime(self.site, worker, f"00:{minutes:02d}:00", minutes * 30)

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
        return self.command("hullseeker", *arguments)

    def command(self, *command: str) -> str:
        """Run something in the environment of the search."""
        done = subprocess.run(  # noqa: S603 - our own programs
            self._sourced(*command),
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
        """Let launchers run as long as there is work, by ``qlaunch``, or without Slurm by ``rlaunch``.

        With ``spare`` they are also started for work that has yet to come.
        """
        with (self.folder / "launchers.log").open("ab") as log:
            launchers = [
                subprocess.Popen(  # noqa: S603 - our own programs
                    self._sourced("bash", "-c", AGAIN, "bash", *command),
                    cwd=folder or self.launches,
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                for command in self._launchers(spare=spare)
            ]
            try:
                yield
            finally:
                for launcher in launchers:
                    os.killpg(launcher.pid, signal.SIGTERM)
                    launcher.wait()

    def _launchers(self, *, spare: bool) -> list[list[str]]:
        """Return the commands of launchpad_config/README.md."""
        site = self.site
        if self.slurm is None:
            return [["rlaunch", "-c", f"{site}", "rapidfire", "--nlaunches", "0"]] * self.launchers
        rapidfire = ["rapidfire", "-m", str(self.launchers), "--nlaunches", "infinite"]
        if self.way == Way.RESERVATIONS:
            return [["qlaunch", "-r", "-c", f"{site}", "-q", f"{site}/reserve_qadapter.yaml", *rapidfire]]
        if self.way == Way.CATEGORIES:
            files = [["-w", f"{site}/{w}_fworker.yaml", "-q", f"{site}/{w}_qadapter.yaml"] for w in CATEGORIES]
            return [["qlaunch", "-c", str(site), *each, *rapidfire] for each in files]
        return [["qlaunch", "-c", str(site), *(["--fill_mode"] if spare else []), *rapidfire]]

    def _sourced(self, *command: str) -> list[str]:
        return ["bash", "-c", f'source {self.site}/env.sh; exec "$@"', "bash", *command]

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

    def cases(self) -> list[Case]:
        """Return the jobs that ``hullseeker resume`` would speak of."""
        launchpad = LaunchPad()  # in this process FireWorks knows a double of its own only
        with connected(self.database) as client:
            for name in ("fireworks", "launches", "workflows"):
                setattr(launchpad, name, client[self.project][name])
            found = diagnose(launchpad, read_jobs(launchpad, self.project), EXPIRATION)
            return [*orphans(launchpad, self.project, EXPIRATION), *found]

    def lost(self) -> list[str]:
        """Return the names of jobs that are said to run and have not given a sign of life for too long."""
        return [case.name for case in self.cases() if case.trouble == Trouble.LOST]

    def is_in_trouble(self) -> bool:
        """Whether ``hullseeker resume`` would do something."""
        return any(case.action != Action.LEAVE for case in self.cases())

    def states(self) -> set[str]:
        """Return the states in which fireworks are."""
        return {firework["state"] for firework in self.fireworks()}

    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.states() == DONE

    def wait_until_lost(self, job: str) -> None:
        """Wait until a launcher is missed, and resume."""
        self.wait_for(lambda: job in self.lost(), f"the launcher of {job} is missed")
        self.resume()

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something; if it does not come, tell how things stand."""
        try:
            wait_for(condition, what)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self._standing()}") from None

    def _standing(self) -> str:
        """Describe what is not done, what the queue says, and the last words of the launchers."""
        waiting = [f"{fw['name']} {fw['state']} {fw['launches']}" for fw in self.fireworks() if fw["state"] not in DONE]
        queue = f"node {self.slurm.node_state()}, queue jobs {self.slurm.jobs('%A:%T:%r')}" if self.slurm else ""
        words = (self.folder / "launchers.log").read_text(errors="replace")[-1500:]
        return "\n".join([*waiting, *map(str, self.cases()), queue, words])

    def wait_until_done(self) -> None:
        """Wait for the end; resume whenever jobs were lost or have failed."""
        while True:
            self.wait_for(lambda: self.is_done() or self.is_in_trouble(), f"{self.project} is done")
            if self.is_done():
                return
            self.resume()

    def wait_until_held(self, held: Held) -> int:
        """Wait until a job has begun, and resume what was lost on the way to it; return its launcher's process."""
        while True:
            self.wait_for(lambda: held.process() or self.is_in_trouble(), f"{held.file.stem} is held")
            if process := held.process():
                return process
            self.resume()

    def has_begun(self, job: str) -> bool:
        """Whether a job was begun."""
        return any(run.name == job for run in self.runs())

    def runs(self) -> list[Run]:
        """Return each time that a job was begun."""
        log = self.folder / "faults" / "jobs.log"
        return [Run(*line.split("\t")) for line in (log.read_text() if log.exists() else "").splitlines()]

    def steps(self, job: str) -> list[int]:
        """Return the steps of a training, or the crystals of a relaxation, in the order in which they were done."""
        lines = (self.folder / "faults" / "steps.log").read_text().splitlines()
        return [int(line.split("\t")[1]) for line in lines if line.split("\t")[0] == job]

    @contextmanager
    def store(self) -> Iterator[JobStore]:
        """Open the results."""
        specification = yaml.safe_load((self.site / "jobflow.yaml").read_text())["JOB_STORE"]
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
