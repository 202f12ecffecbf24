"""A whole search by three workers: each job, whoever brought it forth, runs where its stage belongs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fireworks import FWorker
from fireworks.core.rocket_launcher import rapidfire
from fireworks.queue.queue_launcher import launch_rocket_to_queue
from fireworks.user_objects.queue_adapters.common_adapter import CommonAdapter
from jobflow import SETTINGS

from makers.stores import embedded_job_store
from workflows.cluster import STAGES, site_here, write_working_set
from workflows.launch import submit_search
from workflows.results import report
from workflows.routing import load_resources

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

BOOKKEEPING = ("collect", "store_inputs")


def stage_of(name: str) -> str:
    """Return whose resources a job should have; jobs that only collect and store count as light ones."""
    return "advance" if any(word in name for word in BOOKKEEPING) else name.split(maxsplit=1)[0]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "config"
    write_working_set(site_here(folder, "slurm", "localhost", "mine", None))
    monkeypatch.setenv("HULLSEEKER_RESOURCES", str(folder / "resources.yaml"))
    monkeypatch.setattr(SETTINGS, "JOB_STORE", embedded_job_store(tmp_path / "store"))
    return folder


def test_every_job_of_a_search_runs_on_the_worker_of_its_stage(tiny_config, launchpad, folder):
    submit_search(tiny_config(advance__max_generations=2), launchpad)
    workers = [FWorker.from_file(str(folder / f"{name}_fworker.yaml")) for name in ("light", "ml", "dft")]
    while any(launchpad.run_exists(worker) for worker in workers):
        for worker in workers:
            rapidfire(launchpad, worker, nlaunches=0, sleep_time=0, strm_lvl="CRITICAL")
    assert report(SETTINGS.JOB_STORE, "tiny").generations == 2

    resources = load_resources(folder / "resources.yaml")
    fireworks = list(launchpad.fireworks.find({}))
    assert {fw["state"] for fw in fireworks} == {"COMPLETED"}
    assert {fw["name"].split(maxsplit=1)[0] for fw in fireworks} == {*STAGES, "store_inputs"}
    for fw in fireworks:
        wanted = resources[stage_of(fw["name"])]
        assert {key: fw["spec"][key] for key in wanted} == wanted, fw["name"]
        [launch] = [launchpad.launches.find_one({"launch_id": n}) for n in fw["launches"]]
        assert launch["fworker"]["category"] == wanted["_category"], fw["name"]


def test_resources_reach_the_queue_script(tiny_config, launchpad, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(CommonAdapter, "submit_to_queue", lambda *_: 7)
    # FireWorks looks for the class in all of its modules, tests with marks of their own among them
    monkeypatch.setattr("fireworks.queue.queue_launcher.load_object", CommonAdapter.from_dict)
    submit_search(tiny_config(), launchpad)
    names = {"generate": "generate 000.0", "train": "train 000"}
    scripts = {}
    for stage in ("generate", "train", "label"):
        fw = launchpad.fireworks.find_one({"name": names.get(stage, f"{stage} 000")})
        launchpad.fireworks.update_one({"fw_id": fw["fw_id"]}, {"$set": {"state": "READY"}})
        adapter = CommonAdapter.from_file(str(folder / "reserve_qadapter.yaml"))
        place = tmp_path / stage
        place.mkdir()
        ran = launch_rocket_to_queue(
            launchpad, FWorker(), adapter, str(place), reserve=True, fw_id=fw["fw_id"], strm_lvl="CRITICAL"
        )
        assert ran == 7
        scripts[stage] = (place / "FW_submit.script").read_text().splitlines()
        assert any(line.endswith(f"singleshot --fw_id {fw['fw_id']}") for line in scripts[stage])
    assert "#SBATCH --time=04:00:00" in scripts["generate"]
    assert "#SBATCH --cpus-per-task=16" in scripts["train"]
    assert "#SBATCH --ntasks=64" in scripts["label"]
    assert any(line.endswith("OMP_NUM_THREADS=16") for line in scripts["train"])
