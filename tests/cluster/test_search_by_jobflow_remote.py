"""A whole search by the runner of jobflow-remote: each job a process that its shell scheduler starts."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from campaign import CALCULATIONS, answer, differences, search
from jobflow import JobStore
from working_set import CODE

from workflows.config import parse_config
from workflows.search import SearchMaker

if TYPE_CHECKING:
    from database import Database

jobflow_remote = pytest.importorskip("jobflow_remote", reason="jobflow-remote has its own environment: `make remote`")

PROJECT = "tiny"
GENERATIONS = 2
PATIENCE = 600  # s for the whole search on a busy machine
EAGER = {"delay_checkout": 0.1, "delay_check_run_status": 0.1, "delay_advance_status": 0.1, "max_step_attempts": 1}


def configure(folder: Path, database: Database) -> dict[str, Any]:
    """Write a project of jobflow-remote and jobflow's own configuration; return the specification of the job store."""
    host, _, port = database.address.partition(":")
    there = {"host": host, "port": int(port), "database": PROJECT}
    results = {
        "docs_store": {"type": "MongoStore", "collection_name": "outputs"} | there,
        "additional_stores": {"data": {"type": "GridFSStore", "collection_name": "blobs"} | there},
    }
    (folder / "jobflow.yaml").write_text(yaml.safe_dump({"JOB_STORE": results}))
    variables = {
        "PATH": f"{Path(sys.executable).parent}:$PATH",
        "PYTHONPATH": CODE,
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "JOBFLOW_CONFIG_FILE": str(folder / "jobflow.yaml"),
        "CALCULATIONS": str(folder / CALCULATIONS),
    }
    worker = {
        "type": "local",
        "scheduler_type": "shell",
        "work_dir": str(folder / "work"),
        "pre_run": "\n".join(f"export {name}={value}" for name, value in variables.items()),
    }
    project = {
        "name": PROJECT,
        "runner": EAGER,
        "workers": {"here": worker},
        "queue": {"store": {"type": "MongoStore", "collection_name": "jobs"} | there},
        "jobstore": results,
    }
    (folder / f"{PROJECT}.yaml").write_text(yaml.safe_dump(project))
    return results


@pytest.mark.remote
@pytest.mark.loopback
@pytest.mark.filterwarnings("ignore:Unclosed MongoClient:ResourceWarning")  # left by submit_flow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # monty's, wherever jobflow-remote makes folders
def test_search_by_the_runner_of_jobflow_remote(tmp_path, monkeypatch, database, reference):
    manager = pytest.importorskip("jobflow_remote.config.manager")
    runner = pytest.importorskip("jobflow_remote.jobs.runner")
    expected, calculations = reference(GENERATIONS)
    results = configure(tmp_path, database)
    monkeypatch.setattr(jobflow_remote.SETTINGS, "projects_folder", str(tmp_path))
    monkeypatch.setattr(jobflow_remote.SETTINGS, "project", PROJECT)
    flow = SearchMaker(parse_config(search(PROJECT, GENERATIONS))).make()
    with closing(manager.ConfigManager().get_project().get_job_controller()) as controller:
        controller.reset()
        jobflow_remote.submit_flow(flow, worker="here")
        gc.collect()  # its connection, which it does not close
        there = runner.Runner()
        there.run_all_jobs(max_seconds=PATIENCE)
        there.cleanup()
        jobs = controller.get_jobs_info()
    assert {(job.name, job.state.value, job.error) for job in jobs} == {(job.name, "COMPLETED", None) for job in jobs}
    with closing(JobStore.from_dict_spec(results)) as store:
        store.connect()
        assert not differences(answer(store, PROJECT), expected)
    assert Counter((tmp_path / CALCULATIONS).read_text().splitlines()) == calculations
