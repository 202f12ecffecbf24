"""What all stages have in common: random numbers, identities, handles, and settings that survive FireWorks."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass

import numpy as np
import pytest
from ase.build import bulk
from fireworks import Firework
from jobflow import Flow, JobStore, Response, run_locally
from jobflow.managers.fireworks import flow_to_workflow
from maggma.stores import MemoryStore

from acnn.config import ModelConfig, RelaxConfig, TrainConfig
from csp.config import AdvanceConfig, GenerateConfig, SelectConfig
from csp.state import Ledger
from makers.advance import AdvanceMaker
from makers.blobs import LedgerBlob, ModelBlob, StructureBatch
from makers.documents import GenerateCounts, GenerateDoc
from makers.errors import ConfigError
from makers.generate import GenerateMaker
from makers.relax import RelaxMaker
from makers.report import ReportMaker
from makers.select import SelectMaker
from makers.stage import Handle, Stage, StageMaker, current_store, job_uuid, seed_sequence, stage_job
from makers.stores import embedded_job_store
from makers.train import TrainMaker


def draw(*arguments: object) -> int:
    return int(np.random.default_rng(seed_sequence(*arguments)).integers(2**62))


def test_random_numbers_are_reproducible_and_differ_between_jobs():
    assert draw(1, 3, Stage.GENERATE, 5) == draw(1, 3, Stage.GENERATE, 5)
    keys = list(itertools.product((1, 2), (0, 1, 2), (Stage.GENERATE, Stage.SELECT), (0, 1)))
    assert len({draw(*key) for key in keys}) == len(keys)


def test_random_numbers_are_the_same_for_ever():
    # Changing these changes what every search file finds; the order of the stages decides them.
    assert list(Stage) == ["generate", "relax", "select", "label", "train", "advance", "report"]
    assert seed_sequence(1, 3, Stage.TRAIN, 5).spawn_key == (3, 4, 5)
    assert list(seed_sequence(1, 0, Stage.GENERATE).generate_state(2)) == list(
        np.random.SeedSequence(1, spawn_key=(0, 0, 0)).generate_state(2)
    )


def test_identity_of_a_job_follows_from_search_and_name():
    assert job_uuid("search/1", "relax 001.0") == "28317b86-dca2-50ba-b090-6786cf383e82"
    assert job_uuid("search/1", "relax 001.0") != job_uuid("search/2", "relax 001.0")
    assert job_uuid("search/1", "relax 001.0") != job_uuid("search/1", "relax 001.1")


class Killed(BaseException):
    """The end of a process: no handler of errors sees it."""


@pytest.mark.parametrize("store", ["data", "documents"])
def test_a_kill_amid_storing_leaves_no_document_without_its_blob(job_store, store):
    @stage_job()
    def produce() -> dict[str, StructureBatch]:
        return {"batch": StructureBatch.from_atoms([bulk("Cu")])}

    def launch() -> None:
        job = produce()
        job.set_uuid("job-1")
        run_locally(job, store=job_store, log=False)

    def kill(*_: object, **__: object) -> None:
        raise Killed

    blobs = job_store.additional_stores["data"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr({"data": blobs, "documents": job_store.docs_store}[store], "update", kill)
        with pytest.raises(Killed):
            launch()
    assert job_store.count({}) == 0
    assert blobs.count({}) == (store == "documents")
    launch()
    assert len(Handle("job-1", "batch").fetch(job_store)) == 1


def test_handle_fetches_blobs_of_an_earlier_job(job_store):
    @stage_job(GenerateDoc)
    def produce() -> GenerateDoc:
        counts = GenerateCounts(asked=1, made=1, refused={}, seconds=0, started="")
        ledger = LedgerBlob(Ledger(attempts={"Cu": 1}))
        return GenerateDoc(batch=StructureBatch.from_atoms([bulk("Cu")]), ledger=ledger, counts=counts)

    job = produce()
    run_locally(job, store=job_store, log=False, raise_immediately=True)
    stored = json.dumps(job_store.query_one({"uuid": job.uuid})["output"])
    assert "npz" not in stored  # the bulk is elsewhere
    assert "attempts" not in stored
    assert Handle(job.uuid, "ledger").fetch(job_store).ledger == Ledger(attempts={"Cu": 1})
    assert Handle(job.uuid, "batch").fetch(job_store).to_atoms()[0].get_chemical_formula() == "Cu"
    assert Handle(job.uuid, "counts").fetch(job_store)["made"] == 1
    with pytest.raises(ValueError, match="nowhere"):
        Handle("nowhere", "batch").fetch(job_store)


def test_models_go_to_the_blob_store():
    store = JobStore(MemoryStore(), additional_stores={"data": MemoryStore()})
    store.connect()

    @stage_job()
    def train() -> dict[str, ModelBlob]:
        return {"model": ModelBlob(b"weights")}

    job = train()
    run_locally(job, store=store, log=False, raise_immediately=True)
    assert store.additional_stores["data"].count() == 1
    assert Handle(job.uuid, "model").fetch(store).content == b"weights"


def test_no_stage_runs_outside_of_its_job():
    with pytest.raises(RuntimeError, match="outside of its job"):
        current_store()


class FilesOfOneJob(MemoryStore):
    """Stands for the empty store that jobflow-remote gives to a job."""

    __module__ = "jobflow_remote.remote.data"


def results_seen_by_a_job_of_jobflow_remote(given: JobStore) -> list[str]:
    @stage_job()
    def look() -> list[str]:
        return [doc["uuid"] for doc in current_store().query({})]

    job = look()
    run_locally(job, store=given, log=False, raise_immediately=True)
    return given.get_output(job.uuid)


def test_jobs_of_jobflow_remote_reach_the_results_of_others(monkeypatch, tmp_path):
    results = embedded_job_store(tmp_path)
    results.connect()
    results.docs_store.update({"uuid": "earlier", "index": 1}, key=["uuid", "index"])
    monkeypatch.setattr("jobflow.SETTINGS.JOB_STORE", results)
    given = JobStore(FilesOfOneJob(), additional_stores={"data": MemoryStore()})
    assert results_seen_by_a_job_of_jobflow_remote(given) == ["earlier"]
    assert results.count({}) == given.count({}) == 1  # its output is for jobflow-remote to take


def test_jobs_of_jobflow_remote_say_if_they_cannot_reach_them(job_store):
    given = JobStore(FilesOfOneJob(), additional_stores={"data": job_store.additional_stores["data"]})
    with pytest.raises(ConfigError, match="JOBFLOW_CONFIG_FILE"):
        results_seen_by_a_job_of_jobflow_remote(given)


def test_tolerant_jobs_run_without_their_parents(job_store):
    @stage_job()
    def fails() -> None:
        raise RuntimeError("no")

    @stage_job(tolerant=True)
    def collects(parent: object) -> Response[str]:
        return Response(output=f"got {parent}")

    @stage_job()
    def needs(parent: object) -> Response[str]:
        return Response(output=f"got {parent}")

    first = fails()
    tolerant, strict = collects(first.output), needs(first.output)
    run_locally(Flow([first, tolerant, strict]), store=job_store, log=False)
    assert job_store.get_output(tolerant.uuid) == "got None"
    assert job_store.query_one({"uuid": strict.uuid}) is None


MAKERS = [
    GenerateMaker(("Cu", "Au"), 1, GenerateConfig(atoms=(1, 3))),
    RelaxMaker(5.0, RelaxConfig(fmax=0.03)),
    SelectMaker("p", "f", ("Cu", "Au"), 1, SelectConfig(n_labels=7)),
    TrainMaker("p", "f", ("Cu", "Au"), 5.0, 0.03, 1, TrainConfig(max_time=3.0), ModelConfig(members=2)),
    AdvanceMaker("p", "f", AdvanceConfig(max_generations=4), SelectConfig(n_labels=7)),
    ReportMaker("p", "Au-Cu"),
]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: type(maker).__name__)
def test_settings_survive_fireworks(maker):
    arguments = [None] * (maker.make.__wrapped__.__code__.co_argcount - 1)
    workflow = flow_to_workflow(maker.make(*arguments))
    stored = json.loads(json.dumps(workflow.fws[0].to_dict()))
    restored = Firework.from_dict(stored).tasks[0]["job"].function.__self__
    # containers become lists on the way; values and types of settings do not change
    assert type(restored) is type(maker)
    for name, value in vars(maker).items():
        got = getattr(restored, name)
        assert isinstance(got, str | list) or type(got) is type(value)
        assert got == value or (isinstance(got, list) and got == list(value))


@dataclass
class Custom(StageMaker):
    """A maker of somebody else."""

    settings: GenerateConfig
    name: str = "custom"


def test_makers_are_plain_data_in_the_database():
    plain = Custom(GenerateConfig(atoms=(1, 3))).as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["settings"]["atoms"] == [1, 3]
    assert Custom.from_dict(plain) == Custom(GenerateConfig(atoms=(1, 3)))
