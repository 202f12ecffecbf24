"""The stage as jobs: chunks, summary, stores, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ase.build import bulk
from jobflow import Flow, JobStore, run_locally
from jobflow.managers.fireworks import flow_to_workflow
from monty.json import MontyDecoder, MontyEncoder

from makers.advance import count_asked
from makers.blobs import StructureBatch
from makers.config import AseLabelConfig
from makers.documents import LabelKind, LabelStatus, LabelSummary
from makers.label import LabelMaker
from makers.labelling import read_labels, settings_fingerprint
from makers.labelling.records import label_store, write_label
from makers.resources import with_resources
from makers.stage import Handle
from makers.stores import embedded_job_store

if TYPE_CHECKING:
    from ase import Atoms

HERE = Path(__file__).parent
PATIENCE = 60.0  # s for a subprocess on a busy machine

pytestmark = pytest.mark.integration


def frames(n: int, symbol: str = "Cu") -> list[Atoms]:
    result = []
    for seed in range(n):
        atoms = bulk(symbol, cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.info = {"reason": "stable", "phase_id": f"phase-{seed}"}
        result.append(atoms)
    return result


def run(maker: LabelMaker, batch: StructureBatch | Handle, store: JobStore, kind: str = "single_point") -> list[str]:
    job = maker.make(batch, 3, LabelKind(kind))
    job.name = "label 003"
    responses = run_locally(job, store=store, log=False, raise_immediately=True, ensure_success=True)
    assert job.uuid in responses
    return [job.uuid, *(uuid for uuid in responses if uuid != job.uuid)]


def test_batch_is_labelled_in_chunks(job_store: JobStore) -> None:
    config = AseLabelConfig(calculator="emt", workers=2, chunk_size=3)
    maker = LabelMaker("search", config, resources={"label": {"_category": "dft"}})
    uuid, *others = run(maker, StructureBatch.from_atoms(frames(5)), job_store)
    summary = LabelSummary.model_validate(job_store.get_output(uuid))
    assert (summary.asked, summary.statuses, summary.reused) == (5, {"ok": 5}, 0)
    assert len(others) == 3
    names = {doc["name"] for doc in job_store.query()}
    assert {"label 003", "label 003.1", "label 003.2", "label 003.collect"} <= names

    labels = read_labels(job_store, "search", settings_fingerprint(config))
    assert {label.label_id for label in labels} == set(summary.label_ids)
    assert {(label.reason, label.generation) for label in labels} == {("stable", 3)}
    assert read_labels(job_store, "another") == []

    uuid, *_ = run(maker, StructureBatch.from_atoms(frames(6)), job_store)
    again = LabelSummary.model_validate(job_store.get_output(uuid))
    assert (again.asked, again.reused, again.statuses) == (6, 5, {"ok": 6})


def test_batch_of_an_earlier_generation_is_fetched(job_store: JobStore) -> None:
    batch = json.loads(json.dumps(StructureBatch.from_atoms(frames(1)), cls=MontyEncoder))
    job_store.update({"uuid": "earlier", "index": 1, "output": {"chosen": batch}}, save={"data": "chosen"})
    uuid, *_ = run(LabelMaker("p", AseLabelConfig(calculator="emt")), Handle("earlier", "chosen"), job_store)
    assert LabelSummary.model_validate(job_store.get_output(uuid)).statuses == {"ok": 1}


def test_chunks_travel_as_a_place_and_rows(job_store: JobStore) -> None:
    batch = json.loads(json.dumps(StructureBatch.from_atoms(frames(5)), cls=MontyEncoder))
    job_store.update({"uuid": "select", "index": 1, "output": {"chosen": batch}}, save={"data": "chosen"})
    maker = LabelMaker("p", AseLabelConfig(calculator="emt", chunk_size=2))
    driver = maker.make(StructureBatch.from_atoms(frames(5)), 3, source=Handle("select", "chosen"))
    driver.name = "label 003"
    first, again = driver.run(job_store).replace.jobs, driver.run(job_store).replace.jobs
    assert [job.function_args[1].rows for job in first[:3]] == [(0, 2), (2, 4), (4, 5)]
    assert max(len(json.dumps(job.as_dict(), cls=MontyEncoder)) for job in first) < 10_000
    # a second launch of the driver brings forth the same jobs, not others beside them
    assert [job.uuid for job in first] == [job.uuid for job in again]
    assert len({job.uuid for job in first[:-1]}) == 4
    assert {(j.metadata["project"], j.metadata["stage"], j.metadata["generation"]) for j in first[:-1]} == {
        ("p", "label", 3)
    }
    uuid, *_ = run(maker, Handle("select", "chosen"), job_store)
    assert LabelSummary.model_validate(job_store.get_output(uuid)).statuses == {"ok": 5}


def test_a_failure_never_replaces_a_success(job_store: JobStore) -> None:
    maker = LabelMaker("p", AseLabelConfig(calculator="emt"))
    run(maker, StructureBatch.from_atoms(frames(1)), job_store)
    [label] = read_labels(job_store, "p")
    store = label_store(job_store)
    write_label(store, label.model_copy(update={"status": LabelStatus.CRASHED, "message": "a launch believed dead"}))
    assert read_labels(job_store, "p") == [label]
    assert [doc["label_key"] for doc in store.query()] == [f"p/{label.label_id}"]


def test_labels_of_later_generations_are_left_out(job_store: JobStore) -> None:
    maker = LabelMaker("p", AseLabelConfig(calculator="emt"))
    run(maker, StructureBatch.from_atoms(frames(1)), job_store)  # of generation 3
    assert len(read_labels(job_store, "p", until=3)) == 1
    assert read_labels(job_store, "p", until=2) == []
    ids = [label.label_id for label in read_labels(job_store, "p")]
    assert count_asked(job_store, "p", 3, [*ids, *ids, "crashed and never stored"]) == 2
    assert count_asked(job_store, "p", 4, ids) == 0  # it was there


def test_every_spawned_job_asks_for_its_worker(job_store: JobStore) -> None:
    resources = {"label": {"_category": "dft"}, "advance": {"_category": "light"}}
    maker = LabelMaker("p", AseLabelConfig(calculator="emt", chunk_size=1), resources=resources)
    driver = with_resources(maker.make(StructureBatch.from_atoms(frames(2)), 0), "label", resources)
    driver.name = "label 000"
    spawned = driver.run(job_store).replace
    workers = {job.name: job.config.manager_config.get("_category") for job in spawned.jobs}
    assert workers == {
        "label 000.1": "dft",
        "label 000.2": "dft",
        "label 000.collect": "light",
        "store_inputs": "light",
    }
    assert not any(job.config.pass_manager_config for job in spawned.jobs if job.name != "store_inputs")


def test_empty_batch_is_no_failure(job_store: JobStore) -> None:
    uuid, *_ = run(LabelMaker("p", AseLabelConfig(calculator="emt")), StructureBatch.from_atoms([]), job_store)
    assert LabelSummary.model_validate(job_store.get_output(uuid)).asked == 0


def test_too_many_failures_fail_the_stage_after_storing_all(
    job_store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    config = AseLabelConfig(calculator="label_calculators:faulty", max_failed_fraction=0.4)
    chosen = [*frames(1), bulk("Au", cubic=True)[:3]]  # three gold atoms raise
    chosen[1].info = {"reason": "unsafe", "phase_id": ""}
    job = LabelMaker("p", config).make(StructureBatch.from_atoms(chosen), 0)
    with pytest.raises(RuntimeError, match="did not finish"):
        run_locally(job, store=job_store, log=False, ensure_success=True)
    assert {str(label.status) for label in read_labels(job_store, "p", status=None)} == {"ok", "crashed"}


def test_a_lost_chunk_counts_as_crashed(job_store: JobStore) -> None:
    config = AseLabelConfig(calculator="no_such_package.module:make", max_failed_fraction=1.0)
    job = LabelMaker("p", config).make(StructureBatch.from_atoms(frames(2)), 0)
    run_locally(job, store=job_store, log=False)  # the chunk's job fails, the collector runs nevertheless
    assert LabelSummary.model_validate(job_store.get_output(job.uuid)).statuses == {"crashed": 2}


def test_maker_survives_the_database() -> None:
    maker = LabelMaker("p", AseLabelConfig(calculator="gpaw", settings={"mode": {"name": "pw", "ecut": 200}}), 5.0)
    job = maker.make(StructureBatch.from_atoms(frames(1)), 1, LabelKind.RELAXATION)
    spec = flow_to_workflow(Flow([job])).fws[0].to_dict()["spec"]  # what FireWorks writes
    restored = MontyDecoder().process_decoded(spec["_tasks"][0]["job"]).function.__self__
    assert restored == maker
    assert settings_fingerprint(restored.settings) == settings_fingerprint(maker.settings)
    assert len(json.dumps(spec)) < 10_000  # bytes


SCRIPT = """
import sys
from pathlib import Path
from jobflow import run_locally
sys.path.insert(0, sys.argv[2])
from test_label_maker import frames
from makers.blobs import StructureBatch
from makers.config import AseLabelConfig
from makers.label import LabelMaker
from makers.stores import embedded_job_store

config = AseLabelConfig(
    calculator="label_calculators:faulty", workers=2, settings={"seconds": 0.3, "pids": sys.argv[3]}
)
job = LabelMaker("p", config).make(StructureBatch.from_atoms(frames(40)), 0)
run_locally(job, store=embedded_job_store(sys.argv[1]), log=False)
"""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_interruption_loses_no_finished_label(how: signal.Signals, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), str(HERE), str(pids)]
    search = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)  # noqa: S603 - our own script
    store = embedded_job_store(tmp_path / "store")
    store.connect()
    labels = label_store(store)
    limit = time.monotonic() + PATIENCE
    while labels.count() < 3:  # read by this process while that one writes
        assert time.monotonic() < limit
        assert search.poll() is None
        time.sleep(0.1)
    search.send_signal(how)
    assert search.wait(timeout=10) != 0
    workers = [int(path.name) for path in pids.iterdir()]
    assert len(workers) == 2
    limit = time.monotonic() + 10
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < limit
        time.sleep(0.1)
    kept = read_labels(store, "p")
    assert 3 <= len(kept) < 40
    assert all(label.forces is not None for label in kept)
