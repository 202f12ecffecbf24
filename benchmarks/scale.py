"""What the engine costs: searches whose science costs nothing, by several launchers, on the database's test double.

Ten generations of a thousand labels have the shape of a search (generate, relax, select, label, train, advance; blobs
of 10,000 crystals, of a model, of a ledger of 30,000 formulas), but every job returns at once. What remains is
FireWorks, jobflow and the database:

    python benchmarks/scale.py --out benchmarks/results/scale.json

Compared are one workflow that grows by a generation at a time, and one workflow for each generation; and few fat label
jobs or one job for each label. The double is not MongoDB: read ratios and numbers of jobs, not seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bson
import numpy as np
from jobflow import CURRENT_JOB, Flow, Job, JobConfig, JobStore, OnMissing, Response, job
from pymongo import MongoClient

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster" / "lib"))
from database import Database

from csp.state import Ledger
from makers.blobs import LedgerBlob, ModelBlob, StructureBatch
from makers.stores import sibling_store

if TYPE_CHECKING:
    from fireworks import LaunchPad

N_ATOMS = 12
MODEL_BYTES = 1_000_000
N_FORMULAS = 30_000
BLOBS = [StructureBatch, ModelBlob, LedgerBlob]
POLL = 0.2  # s between looks at the LaunchPad


def crystals(n: int) -> StructureBatch:
    """Return crystals that nobody looks at."""
    rng = np.random.default_rng(0)
    return StructureBatch(
        numbers=np.full(n * N_ATOMS, 29, dtype=np.int16),
        positions=rng.random((n * N_ATOMS, 3)),
        cells=np.tile(np.eye(3), (n, 1, 1)),
        counts=np.full(n, N_ATOMS, dtype=np.int32),
    )


@job(data=BLOBS)
def make_batch(n: int) -> dict[str, Any]:
    """Stand for generate and relax: a blob and a few counts."""
    return {"batch": crystals(n), "made": n}


@job(data=BLOBS)
def choose(batches: list[StructureBatch], n: int) -> dict[str, Any]:
    """Stand for select: read blobs, write those that are labelled."""
    return {"chosen": crystals(n), "seen": sum(len(batch) for batch in batches)}


@job
def label(chosen: StructureBatch, generation: int, per_job: int) -> Response[int]:
    """Stand for the driver of label: as many jobs as the batch has parts."""
    parts = [label_part(generation, first, per_job) for first in range(0, len(chosen), per_job)]
    for number, part in enumerate(parts):
        part.name = f"label {generation:03d}.{number}"
    last = count([part.output for part in parts])
    return Response(replace=Flow([*parts, last], output=last.output))


@job(config=JobConfig(expose_store=True))
def label_part(generation: int, first: int, n: int) -> int:
    """Stand for a job that labels: a document for each label, written as soon as it is there."""
    store = sibling_store(CURRENT_JOB.store, "labels", key="label_id")
    store.ensure_index("label_id")
    for number in range(first, first + n):
        forces = [[0.0, 0.0, 0.0]] * N_ATOMS
        store.update([{"label_id": f"{generation}/{number}", "energy": 0.0, "forces": forces, "positions": forces}])
    return n


@job(config=JobConfig(on_missing_references=OnMissing.NONE))
def count(parts: list[int]) -> int:
    """Stand for the collector."""
    return sum(part or 0 for part in parts)


@job(data=BLOBS)
def train(n: int) -> dict[str, Any]:
    """Stand for train: a blob of the size of a model."""
    return {"model": ModelBlob(os.urandom(MODEL_BYTES)), "n": n}


@job(data=BLOBS)
def advance(trained: int, generation: int, shape: dict[str, int]) -> Response[dict[str, Any]]:
    """Stand for advance: write a ledger of many formulas, and bring forth the next generation, or end."""
    formulas = [f"Mg{i}Ca{j}H" for i in range(N_FORMULAS // 100) for j in range(100)]
    ledger = Ledger(attempts=dict.fromkeys(formulas, 1), hull_distances=dict.fromkeys(formulas, 0.123456789))
    last = generation + 1 == shape["generations"]
    output = {"n": trained, "ledger": LedgerBlob(ledger)}
    return Response(output=output, replace=None if last else build(generation + 1, shape))


def build(generation: int, shape: dict[str, int]) -> Flow:
    """Return one generation."""
    made = make_batch(shape["structures"])
    relaxed = make_batch(shape["structures"])
    chosen = choose([made.output["batch"], relaxed.output["batch"]], shape["labels"])
    labelled = label(chosen.output["chosen"], generation, shape["per_job"])
    trained = train(labelled.output)
    advanced = advance(trained.output["n"], generation, shape)
    jobs: list[Job] = [made, relaxed, chosen, labelled, trained, advanced]
    for each, name in zip(jobs, ("generate", "relax", "select", "label", "train", "advance"), strict=True):
        each.name = f"{name} {generation:03d}"
    return Flow(jobs, output=advanced.output, name=f"generation {generation:03d}")


def connect(port: int) -> tuple[LaunchPad, JobStore]:
    """Open the LaunchPad and the job store, and let jobflow use the latter."""
    from fireworks import LaunchPad  # noqa: PLC0415 - reads its settings when imported
    from jobflow import SETTINGS  # noqa: PLC0415

    place = {"database": "results", "host": "127.0.0.1", "port": port}
    store = JobStore.from_dict_spec(
        {
            "docs_store": {"type": "MongoStore", "collection_name": "outputs"} | place,
            "additional_stores": {"data": {"type": "GridFSStore", "collection_name": "blobs"} | place},
        }
    )
    SETTINGS.JOB_STORE = store
    return LaunchPad(host="127.0.0.1", port=port, name="launchpad", strm_lvl="CRITICAL"), store


def launch(port: int) -> None:
    """Run what is ready until nothing is left, as ``rlaunch rapidfire`` does."""
    from fireworks import FWorker  # noqa: PLC0415
    from fireworks.core.rocket_launcher import rapidfire  # noqa: PLC0415

    launchpad, _ = connect(port)
    Path(f"ready.{os.getpid()}").touch()
    rapidfire(launchpad, FWorker(), nlaunches=-1, sleep_time=0.2, strm_lvl="CRITICAL")


def simulate(name: str, shape: dict[str, int], launchers: int, *, growing: bool, limit: float) -> dict[str, Any]:
    """Run one search and say what it cost."""
    from jobflow.managers.fireworks import flow_to_workflow  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder) / "database", largest=16 * 1024 * 1024)
        database.start()
        launchpad, store = connect(database.port)
        launchpad.reset("", require_password=False, max_reset_wo_password=10**9)
        store.connect()
        store.ensure_index("uuid")
        command = [sys.executable, __file__, "--launch", str(database.port)]
        workers = [subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) for _ in range(launchers)]  # noqa: S603 - this program
        try:
            while len(list(Path(folder).glob("ready.*"))) < launchers:
                time.sleep(POLL)
            start = time.perf_counter()
            ends = []
            n_flows = 1 if growing else shape["generations"]
            for number in range(n_flows):
                flow = build(number, shape if growing else shape | {"generations": number + 1})
                launchpad.add_wf(flow_to_workflow(flow))
                while launchpad.fireworks.count_documents({"state": {"$ne": "COMPLETED"}}):
                    if time.perf_counter() - start > limit:
                        break
                    if launchpad.fireworks.count_documents({"state": "FIZZLED"}):
                        raise RuntimeError("a job failed")
                    time.sleep(POLL)
                ends.append(time.perf_counter() - start)
            return {"name": name, "growing": growing, "launchers": launchers, "shape": shape} | measured(
                database, ends, limit
            )
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
            store.close()
            database.kill()


def measured(database: Database, ends: list[float], limit: float) -> dict[str, Any]:
    """Return what the database holds and how long it took."""
    with MongoClient(database.uri) as client:
        launchpad, results = client["launchpad"], client["results"]
        states = Counter(doc["state"] for doc in launchpad.fireworks.find({}, {"state": 1}))
        launches = launchpad.launches.count_documents({})
        done = launchpad.fireworks.count_documents({"name": {"$regex": "^advance"}, "state": "COMPLETED"})
        sizes = {
            f"{base.name}.{name}": max((len(bson.encode(doc)) for doc in base[name].find()), default=0)
            for base, name in (
                (launchpad, "fireworks"),
                (launchpad, "launches"),
                (launchpad, "workflows"),
                (results, "outputs"),
            )
        }
        return {
            "seconds": ends[-1],
            "cut off": ends[-1] >= limit,
            "generations done": done,
            "seconds per generation": ends[-1] / max(done, 1),
            "fireworks": sum(states.values()),
            "launches": launches,
            "labels": results.labels.count_documents({}),
            "largest document, bytes": sizes,
        }


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launch", type=int, help="be a launcher of the database on this port")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--structures", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3, help="of all but the searches of a job for each label")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for one search")
    asked = parser.parse_args()
    if asked.launch is not None:
        launch(asked.launch)
        return
    base = {"generations": asked.generations, "structures": asked.structures}
    fat, thin = {"labels": asked.labels, "per_job": 100}, {"labels": asked.labels, "per_job": 1}
    overhead = {"generations": 1, "structures": asked.structures, "labels": 500, "per_job": 100}
    often = [
        ("one generation", overhead, 1, True),
        ("labels in jobs of 100", base | fat, 4, True),
        ("labels in jobs of 100", base | fat, 4, False),
    ]
    once = [
        ("a job for each label", base | thin | {"labels": asked.labels // 5}, 4, True),
        ("a job for each label", base | thin | {"labels": asked.labels // 5}, 4, False),
    ]
    results = []
    for name, shape, launchers, growing in [*often * asked.repeats, *once]:  # in turn: others use the machine too
        results.append(simulate(name, shape, launchers, growing=growing, limit=asked.limit))
        found = results[-1]
        kind = "growing" if growing else "separate"
        print(
            f"{name:24} {kind:9} {launchers} launchers: {found['seconds']:7.1f} s, {found['fireworks']} fireworks, "
            f"{found['launches']} launches, {found['labels']} labels",
            flush=True,
        )
    report = {
        "results": results,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "cores used": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "versions": {name: version(name) for name in ("fireworks", "jobflow", "maggma", "pymongo", "mongomock")},
    }
    if asked.out:
        asked.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
