"""Submitting a search: what a job store must have, and what lands on the LaunchPad."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bson
import pytest
from jobflow import SETTINGS, JobStore
from jobflow.managers.fireworks import flow_to_workflow
from maggma.stores import MemoryStore

from csp.state import GenerationRecord, SearchState
from makers.errors import ConfigError
from makers.stores import EmbeddedStore, embedded_job_store
from workflows.launch import WORKERS, configured_store, submit_search
from workflows.search import SearchMaker

if TYPE_CHECKING:
    from workflows.config import SearchConfig


@pytest.fixture
def embedded(tmp_path, monkeypatch) -> JobStore:
    store = embedded_job_store(tmp_path / "store")
    store.connect()
    monkeypatch.setattr(SETTINGS, "JOB_STORE", store)
    return store


@pytest.mark.usefixtures("job_store")
def test_store_in_memory_is_refused(tiny_config, launchpad):
    with pytest.raises(ConfigError, match=r"JOB_STORE: expected a database, got .*JOBFLOW_CONFIG_FILE"):
        submit_search(tiny_config(), launchpad)
    assert launchpad.fireworks.count_documents({}) == 0


def test_store_without_a_place_for_blobs_is_refused(tiny_config, launchpad, tmp_path, monkeypatch):
    documents = EmbeddedStore("outputs", database_path=str(tmp_path / "documents"))
    monkeypatch.setattr(SETTINGS, "JOB_STORE", JobStore(documents, additional_stores={"other": MemoryStore()}))
    with pytest.raises(ConfigError, match=r"a store named `data` .*got \['other'\]"):
        submit_search(tiny_config(), launchpad)
    assert launchpad.fireworks.count_documents({}) == 0


@pytest.mark.usefixtures("embedded")
def test_search_lands_on_the_launchpad(tiny_config, launchpad):
    said = submit_search(tiny_config(), launchpad)
    assert "workflow of 7 fireworks" in said
    assert "hullseeker status --project tiny" in said
    [workflow] = launchpad.workflows.find({})
    assert workflow["name"] == "tiny"
    assert workflow["metadata"] == {"project": "tiny"}
    specs = {fw["name"]: fw["spec"] for fw in launchpad.fireworks.find({})}
    assert set(specs) == {f"generate 000.{i}" for i in range(3)} | {
        f"{stage} 000" for stage in ("select", "label", "train", "advance")
    }
    for name, spec in specs.items():
        stage = name.split()[0]
        assert (spec["_category"], spec["project"], spec["stage"]) == (WORKERS[stage]["_category"], "tiny", stage)


@pytest.mark.usefixtures("embedded")
def test_submission_shows_no_password(tiny_config, launchpad, monkeypatch):
    monkeypatch.setattr(launchpad, "uri_mode", True)
    monkeypatch.setattr(launchpad, "host", "mongodb://me:secret@db.example.org/fireworks?authSource=admin")
    said = submit_search(tiny_config(), launchpad)
    assert "db.example.org" in said
    assert "secret" not in said


RESOURCES = """
generate: &light {_category: light, _queueadapter: {walltime: "00:10:00"}}
select: *light
advance: *light
report: *light
relax: &ml {_category: ml, _queueadapter: {queue: gpu, gres: "gpu:1"}}
train: *ml
label: {_category: dft, _queueadapter: {queue: big, ntasks: 64}}
"""


@pytest.mark.usefixtures("embedded")
def test_resources_of_the_machine(tiny_config, launchpad, tmp_path, monkeypatch):
    file = tmp_path / "resources.yaml"
    file.write_text(RESOURCES)
    monkeypatch.setenv("HULLSEEKER_RESOURCES", str(file))
    submit_search(tiny_config(), launchpad)
    specs = {fw["name"]: fw["spec"] for fw in launchpad.fireworks.find({})}
    assert specs["train 000"]["_queueadapter"] == {"queue": "gpu", "gres": "gpu:1"}
    assert specs["label 000"]["_queueadapter"] == {"queue": "big", "ntasks": 64}
    assert specs["generate 000.0"]["_category"] == "light"


BAD_RESOURCES = {
    "missing file": (None, r"HULLSEEKER_RESOURCES.*cannot be read"),
    "yaml": ("label: [", "not valid YAML"),
    "nothing": ("", "expected the stages generate, relax"),
    "stage": (RESOURCES.replace("label:", "labels:"), "labels: no such stage; did you mean `label`"),
    "stages": ("label: {_category: dft}", "got none of generate, relax, select, train"),
    "key": (RESOURCES.replace("label: {_category", "label: {category"), "label: expected keys as `_category`"),
    "adapter": (RESOURCES.replace("{queue: big, ntasks: 64}", "big"), "label._queueadapter: expected keys and values"),
}


@pytest.mark.usefixtures("embedded")
@pytest.mark.parametrize(("content", "message"), BAD_RESOURCES.values(), ids=BAD_RESOURCES)
def test_bad_resources_are_refused(tiny_config, launchpad, tmp_path, monkeypatch, content, message):
    file = tmp_path / "resources.yaml"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("HULLSEEKER_RESOURCES", str(file))
    with pytest.raises(ConfigError, match=message):
        submit_search(tiny_config(), launchpad)
    assert launchpad.fireworks.count_documents({}) == 0


@pytest.mark.usefixtures("embedded")
def test_one_worker_may_do_everything(tiny_config, launchpad):
    submit_search(tiny_config(), launchpad, by_category=False)
    assert all("_category" not in fw["spec"] for fw in launchpad.fireworks.find({}))


def test_project_that_exists_is_refused(tiny_config, launchpad, finished, monkeypatch):
    monkeypatch.setattr(SETTINGS, "JOB_STORE", embedded_job_store(finished / "store"))
    with pytest.raises(ConfigError, match="project: the database holds a search 'tiny' already"):
        submit_search(tiny_config(), launchpad)
    assert launchpad.fireworks.count_documents({}) == 0
    assert "added other" in submit_search(tiny_config(project="other"), launchpad)


@pytest.mark.usefixtures("embedded")
def test_project_that_only_waits_on_the_launchpad_is_refused(tiny_config, launchpad):
    submit_search(tiny_config(), launchpad)
    with pytest.raises(ConfigError, match=r"project: the LaunchPad holds 'tiny' already"):
        submit_search(tiny_config(seed=2), launchpad)


def test_configured_store_is_connected(embedded):
    assert configured_store() is embedded
    assert embedded.count() == 0


def far_gone(config: SearchConfig) -> SearchState:
    """Return the state of a long search over many compositions: fifty generations, a thousand labelled formulas."""
    start = SearchMaker(config).start()
    near = {f"Mg{i}Ca{j}H46-0123abcd": 0.01 for i in range(1, 11) for j in range(1, 11)}
    record = GenerationRecord(
        generation=0,
        n_structures=500_000,
        bonds_scale=0.7,
        unsafe_fraction=0.1,
        walk_forward_mev=20.0,
        n_asked=500,
        n_labels=25_000,
        hull=tuple(near)[:20],
        near_hull=near,
        hours=100.0,
    )
    volumes = {f"Mg{i}Ca{j}H{k}": 5.0 for i in range(1, 11) for j in range(1, 11) for k in range(1, 11)}
    knowledge = start.knowledge.model_copy(update={"formula_volumes": volumes})
    changes = {"generation": 50, "knowledge": knowledge, "n_structures": 500_000, "history": (record,) * 50}
    return start.model_copy(update=changes)


def test_the_jobs_of_a_late_generation_fit_into_one_document(tiny_config):
    config = tiny_config(generate__chunk_size=10_000)
    state = far_gone(config)
    workflow = flow_to_workflow(SearchMaker(config, resources=WORKERS).generation(state))
    assert len(workflow.fws) == 2 * 50 + 5  # FireWorks writes them all into the launch of `advance`
    assert sum(len(bson.encode(fw.to_dict())) for fw in workflow.fws) < 1_000_000
    assert len(bson.encode(state.model_dump(mode="json"))) < 500_000


def test_specs_do_not_grow_with_the_number_of_structures(tiny_config):
    def size(n: int) -> int:
        config = tiny_config(generate__n_initial=n, generate__chunk_size=10_000)
        workflow = flow_to_workflow(SearchMaker(config, resources=WORKERS).make())
        return max(len(bson.encode(fw.to_dict())) for fw in workflow.fws)

    assert size(10_000) == pytest.approx(size(100), abs=16)
    assert size(10_000) < 20_000
