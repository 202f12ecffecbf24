"""Python imports this at its start where its folder is on PYTHONPATH: what befalls jobs of the cluster tests.

The folder named by the variable FAULTS is asked before and after each job. A file ``JOB.before.kill`` or
``JOB.after.kill`` there ends the process as kill -9 does, once: before the job, or when its output is stored and
FireWorks does not know it yet. ``JOB.before.hold`` lets the job wait until the file is gone. Each job leaves a line in
``jobs.log``.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

FOLDER = os.environ.get("FAULTS")
JOBS = "jobflow.core.job"


def befall(job: str, moment: str) -> None:
    """Do to a job what the test asks for."""
    folder = Path(FOLDER or "")
    hold = folder / f"{job}.{moment}.hold"
    if hold.exists():
        (folder / f"{job}.{moment}.held").write_text(str(os.getpid()))
    while hold.exists():
        time.sleep(0.05)
    kill = folder / f"{job}.{moment}.kill"
    try:
        kill.rename(folder / f"{job}.{moment}.killed")
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def watch(module) -> None:
    """Let every job ask before and after."""
    run = module.Job.run

    def watched(self, *args, **kwargs):
        with (Path(FOLDER or "") / "jobs.log").open("a") as log:
            log.write(f"{self.uuid}/{self.index}\t{self.name}\t{os.getpid()}\n")
        befall(self.name, "before")
        response = run(self, *args, **kwargs)
        befall(self.name, "after")
        return response

    module.Job.run = watched


class Watcher(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets jobflow's module of jobs be loaded as always, and then changes it."""

    def find_spec(self, name, path=None, target=None):  # noqa: ARG002 - the import system's signature
        if name != JOBS:
            return None
        sys.meta_path.remove(self)
        self.spec = importlib.util.find_spec(name)
        return importlib.util.spec_from_loader(name, self, origin=self.spec.origin)

    def create_module(self, spec):  # noqa: ARG002 - the import system's signature
        return importlib.util.module_from_spec(self.spec)

    def exec_module(self, module) -> None:
        self.spec.loader.exec_module(module)
        watch(module)


if FOLDER:
    sys.meta_path.insert(0, Watcher())
