"""Every job lands on the worker of its stage, whoever spawns it."""

from __future__ import annotations

import pytest
from fireworks import FWorker
from fireworks.core.rocket_launcher import rapidfire
from jobflow import SETTINGS, Flow, Response, job
from jobflow.managers.fireworks import flow_to_workflow

from makers.resources import with_resources
from makers.stage import stage_job
from makers.stores import embedded_job_store

RESOURCES = {
    "advance": {"_category": "light"},
    "train": {"_category": "gpu"},
    "label": {"_category": "dft", "_queueadapter": {"nodes": 4}},
}


@stage_job()
def calculate(depth: int, after: int = 0) -> Response[int]:
    """Spawn a label job in a replacement flow, which spawns another one as an addition, and a detour."""
    del after
    if not depth:
        return Response(output=0)
    child = with_resources(calculate(depth - 1), "label", RESOURCES)
    child.name = f"label {depth}"
    other = with_resources(calculate(0, child.output if depth == 2 else 0), "advance", RESOURCES)
    other.name = f"collect {depth}"
    if depth == 2:
        return Response(replace=Flow([child, other], output=child.output))
    return Response(output=depth, addition=child, detour=other)


@job
def plain_driver() -> Response[int]:
    """Spawn a label job without taking care."""
    child = with_resources(calculate(0), "label", RESOURCES)
    child.name = "label"
    return Response(replace=child)


@pytest.fixture
def run(launchpad, tmp_path, monkeypatch):
    monkeypatch.setattr(SETTINGS, "JOB_STORE", embedded_job_store(tmp_path / "store"))

    def run(flow) -> dict[str, dict]:
        launchpad.add_wf(flow_to_workflow(flow))
        rapidfire(launchpad, FWorker(), nlaunches=0, sleep_time=0, strm_lvl="CRITICAL")
        fireworks = list(launchpad.fireworks.find({}))
        assert {fw["state"] for fw in fireworks} == {"COMPLETED"}
        return {fw["name"]: fw["spec"] for fw in fireworks}

    return run


def test_spawned_jobs_keep_their_own_worker(run):
    driver = with_resources(calculate(2), "train", RESOURCES)
    driver.name = "train"
    specs = run(driver)
    assert specs["train"]["_category"] == "gpu"
    for name in ("label 2", "label 1"):
        assert (specs[name]["_category"], specs[name]["_queueadapter"]) == ("dft", {"nodes": 4})
    for name in ("collect 2", "collect 1", "store_inputs"):
        assert (specs[name]["_category"], "_queueadapter" in specs[name]) == ("light", False)


def test_without_the_rule_the_driver_would_overwrite_them(run):
    # the trap itself: if jobflow mends it one day, the rule may go
    driver = plain_driver()
    driver.update_config({"manager_config": {"_category": "gpu"}})
    assert run(driver)["label"]["_category"] == "gpu"


def test_resources_of_one_job_are_its_own():
    first, second = calculate(0), calculate(0)
    with_resources(first, "label", RESOURCES).config.manager_config["_queueadapter"]["nodes"] = 8
    assert with_resources(second, "label", RESOURCES).config.manager_config["_queueadapter"]["nodes"] == 4
    assert first.config.pass_manager_config is False
    assert with_resources(calculate(0), "report", RESOURCES).config.manager_config == {}
