"""A whole search by the daemon of jobflow-remote: each job is a process that its shell scheduler starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from campaign import CALCULATIONS, answer, differences, search, wait_for
from database import Database, connected
from jobflow import JobStore
from working_set import HERE, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("jobflow_remote", reason="jobflow-remote has its own environment: `make remote`")

PROJECT = "tiny"
GENERATIONS = 2
PATIENCE = 600  # s for the whole search on a busy machine
EAGER = {"delay_checkout": 0.1, "delay_check_run_status": 0.1, "delay_advance_status": 0.1, "max_step_attempts": 1}
BROKEN = {"FAILED", "REMOTE_ERROR"}
SUBMIT = """
import sys
from jobflow_remote import submit_flow
from workflows.config import load_config
from workflows.search import SearchMaker
submit_flow(SearchMaker(load_config(sys.argv[1])).make(), worker="here")
"""


@dataclass
class RemoteProject:
    """A project of jobflow-remote with a worker on this machine.

    Parameters
    ----------
    folder
        Where its configuration, logs and launch folders lie.
    database
        Where queue and results are.
    """

    folder: Path
    database: Database

    def __post_init__(self) -> None:
        """Write the configuration of jobflow-remote, and jobflow's own for the jobs."""
        self.variables = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{HERE}:{ROOT}",
            "PYTHONWARNINGS": "ignore",
            "JOBFLOW_CONFIG_FILE": str(self.folder / "jobflow.yaml"),
            "CALCULATIONS": str(self.folder / CALCULATIONS),
        }
        worker = {
            "type": "local",
            "scheduler_type": "shell",
            "work_dir": str(self.folder / "work"),
            "pre_run": "\n".join(f"export {name}={value}" for name, value in self.variables.items()),
        }
        project = {
            "name": PROJECT,
            "runner": EAGER,
            "workers": {"here": worker},
            "queue": {"store": {"type": "MongoStore", "collection_name": "jobs"} | self.place},
            "jobstore": self.results,
        }
        (self.folder / f"{PROJECT}.yaml").write_text(yaml.safe_dump(project))
        (self.folder / "jobflow.yaml").write_text(yaml.safe_dump({"JOB_STORE": self.results}))
        (self.folder / "search.yaml").write_text(yaml.safe_dump(search(PROJECT, GENERATIONS)))

    @property
    def place(self) -> dict[str, Any]:
        """Where the database is, for stores of maggma."""
        host, _, port = self.database.address.partition(":")
        return {"host": host, "port": int(port), "database": PROJECT}

    @property
    def results(self) -> dict[str, Any]:
        """Specification of the job store."""
        blobs = {"type": "GridFSStore", "collection_name": "blobs"} | self.place
        outputs = {"type": "MongoStore", "collection_name": "outputs"} | self.place
        return {"docs_store": outputs, "additional_stores": {"data": blobs}}

    def run(self, program: str, *arguments: str) -> None:
        """Run a program of jobflow-remote's environment in that of the project."""
        own = {"JFREMOTE_PROJECTS_FOLDER": str(self.folder), "JFREMOTE_PROJECT": PROJECT}
        done = subprocess.run(  # noqa: S603 - our own programs
            [str(Path(sys.executable).with_name(program)), *arguments],
            env=os.environ | self.variables | own,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def jobs(self) -> list[tuple[str, str, str | None]]:
        """Return name, state and error of each job."""
        with connected(self.database) as client:
            found = client[PROJECT].jobs.find({}, {"job.name": 1, "state": 1, "error": 1, "remote.error": 1})
            return [(j["job"]["name"], j["state"], j["error"] or j["remote"]["error"]) for j in found]

    def is_at_rest(self) -> bool:
        """Whether everything is done, or something has gone wrong."""
        states = {state for _, state, _ in self.jobs()}
        return states == {"COMPLETED"} or bool(states & BROKEN)


@pytest.fixture
def project(tmp_path, database) -> Iterator[RemoteProject]:
    """Return a project whose database is empty and whose daemon runs."""
    made = RemoteProject(tmp_path, database)
    made.run("jf", "admin", "reset", "--yes")
    made.run("jf", "runner", "start", "--single")
    yield made
    made.run("jf", "runner", "stop", "--wait")


@pytest.mark.remote
@pytest.mark.loopback
def test_search_by_the_daemon(project, reference):
    expected, calculations = reference(GENERATIONS)
    project.run("python", "-c", SUBMIT, "search.yaml")
    wait_for(project.is_at_rest, "the search is done", PATIENCE)
    jobs = project.jobs()
    assert jobs == [(name, "COMPLETED", None) for name, _, _ in jobs]
    store = JobStore.from_dict_spec(project.results)
    store.connect()
    assert not differences(answer(store, PROJECT), expected)
    store.close()
    assert Counter((project.folder / CALCULATIONS).read_text().splitlines()) == calculations
