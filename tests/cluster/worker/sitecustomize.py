"""Python imports this at its start where its folder is on PYTHONPATH: what befalls jobs of the cluster tests.

The folder named by the variable FAULTS is asked at some moments of each job:

taken    a launcher has taken it, and noted in FireWorks no launch yet
before   it has begun
amid     it has relaxed AMID["relax"] crystals, or trained AMID["train"] steps
stored   its blobs are stored, and the document that names them is not
after    its output is stored, and FireWorks does not know it yet
halfway  FireWorks has stored the jobs that it brought forth, and the workflow does not hold them yet

A file ``JOB.MOMENT.kill`` there ends the process as kill -9 does, once; ``JOB.MOMENT.hold`` lets the job wait until the
file is gone. Each job leaves a line in ``jobs.log``: its identity, name, process and partition; each step of a
relaxation or training one in ``steps.log``: the job and the number of the step.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ.get("FAULTS", ""))
AMID = {"relax": 3, "train": 20}


def befall(job: str, moment: str) -> None:
    """Do to a job what the test asks for."""
    hold = FOLDER / f"{job}.{moment}.hold"
    if hold.exists():
        (FOLDER / f"{job}.{moment}.held").write_text(str(os.getpid()))
    while hold.exists():
        time.sleep(0.05)
    kill = FOLDER / f"{job}.{moment}.kill"
    try:
        kill.rename(FOLDER / f"{job}.{moment}.killed")
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def note(log: str, *words: object) -> None:
    """Write a line."""
    with (FOLDER / log).open("a") as file:
        file.write("\t".join(map(str, words)) + "\n")


def current_job() -> str:
    """Return the name of the running job; empty outside of jobs."""
    job = sys.modules["jobflow"].CURRENT_JOB.job
    return job.name if job else ""


def watch_jobs(module) -> None:
    run = module.Job.run

    def watched(self, *args, **kwargs):
        partition = os.environ.get("SLURM_JOB_PARTITION", "none")
        note("jobs.log", f"{self.uuid}/{self.index}", self.name, os.getpid(), partition)
        befall(self.name, "before")
        response = run(self, *args, **kwargs)
        befall(self.name, "after")
        return response

    module.Job.run = watched


def watch_blobs(module) -> None:
    update = module.GridFSStore.update

    def watched(self, *args, **kwargs):
        update(self, *args, **kwargs)
        befall(current_job(), "stored")

    module.GridFSStore.update = watched


def watch_training(module) -> None:
    module.SAVE_SECONDS = -1.0  # after each step
    step = module._Run._step

    def watched(self, progress):
        if self.state.step == AMID["train"]:
            befall(current_job(), "amid")
        note("steps.log", current_job(), self.state.step)
        step(self, progress)

    module._Run._step = watched


def watch_relaxation(module) -> None:
    module.FLUSH_RESULTS = 1
    add = module.Journal.add

    def watched(self, result):
        add(self, result)
        note("steps.log", current_job(), result.index)
        self.added = getattr(self, "added", 0) + 1
        if self.added == AMID["relax"]:
            befall(current_job(), "amid")

    module.Journal.add = watched


def watch_launchpad(module) -> None:
    take, store = module.LaunchPad._get_a_fw_to_run, module.LaunchPad._upsert_fws

    def watched_taking(self, query=None, fw_id=None, checkout=True):  # noqa: FBT002 - FireWorks' signature
        firework = take(self, query, fw_id, checkout)
        if firework is not None and checkout:  # launchers also look whether there is something to take
            befall(firework.name, "taken")
        return firework

    def watched_storing(self, fws, *args, **kwargs):
        parents = [firework.name for firework in fws if firework.state == "COMPLETED"]
        brought_forth = any(firework.fw_id < 0 for firework in fws)
        stored = store(self, fws, *args, **kwargs)
        for name in parents if brought_forth else ():
            befall(name, "halfway")
        return stored

    module.LaunchPad._get_a_fw_to_run = watched_taking
    module.LaunchPad._upsert_fws = watched_storing


CHANGES = {
    "fireworks.core.launchpad": watch_launchpad,
    "jobflow.core.job": watch_jobs,
    "maggma.stores.gridfs": watch_blobs,
    "acnn.train.loop": watch_training,
    "acnn.relax.journal": watch_relaxation,
}


class Watcher(importlib.abc.MetaPathFinder):
    """Lets modules be loaded as always, and then changes them."""

    def find_spec(self, name, path=None, target=None):  # noqa: ARG002 - the import system's signature
        change = CHANGES.pop(name, None)
        if change is None:
            return None
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def load_and_change(module) -> None:
            load(module)
            change(module)

        spec.loader.exec_module = load_and_change
        return spec


if "FAULTS" in os.environ:
    sys.meta_path.insert(0, Watcher())
