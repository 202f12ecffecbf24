"""A whole search by Slurm: `hullseeker submit`, `qlaunch rapidfire`, and the answer in the database."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import bson
import pytest
import working_set
from campaign import Way, differences, wait_for
from database import LARGEST, connected

from workflows.cluster import STAGES

if TYPE_CHECKING:
    from campaign import Campaign

GENERATIONS = 3
TWO_HOURS = {"walltime": "02:00:00"}
TIMEOUT = 10  # s after which a worker of the light stages takes nothing new


def assert_each_job_ran_once(search: Campaign) -> None:
    fireworks = search.fireworks()
    assert [(fw["name"], len(fw["launches"]), fw["archived_launches"]) for fw in fireworks] == [
        (fw["name"], 1, []) for fw in fireworks
    ]
    begun = Counter(run.identity for run in search.runs())
    assert set(begun.values()) == {1}
    assert len(begun) == len(fireworks)


def assert_each_stage_has_its_worker(search: Campaign, stages: set[str]) -> None:
    """Compare the partition in which each job ran; those that only collect or store are light."""
    light = {run.name for run in search.runs() if run.name == "store_inputs" or run.name.endswith(".collect")}
    found = {(run.name if run.name in light else run.name.split()[0], run.partition) for run in search.runs()}
    assert found == {(name, STAGES.get(name, "light")) for name in {*stages, *light}}
    assert light


def largest_documents(search: Campaign) -> dict[str, int]:
    """Return the size of the largest document of each collection."""
    with connected(search.database) as client:
        database = client[search.project]
        return {
            name: max((len(bson.encode(doc)) for doc in database[name].find()), default=0)
            for name in database.list_collection_names()
        }


@pytest.mark.slurm
@pytest.mark.loopback
def test_search_by_four_launchers_of_slurm(campaign, reference):
    search = campaign(generations=GENERATIONS)
    assert "my_qadapter.yaml: submits by sbatch" in search.hullseeker("doctor")
    assert "added tiny" in search.submit()
    with search.launching():
        wait_for(search.is_done, "the search is done")
    assert_each_job_ran_once(search)
    assert len({run.process for run in search.runs()}) > 1  # several launchers had work
    answer, calculations = reference(GENERATIONS)
    assert not differences(search.answer(), answer)
    assert search.calculations() == calculations
    assert [found["crashed"] for *_, found in answer["generations"] if "crashed" in found]
    sizes = largest_documents(search)
    assert {"fireworks", "launches", "workflows", "outputs", "labels", "phases", "blobs.chunks"} <= set(sizes)
    assert max(sizes.values()) < LARGEST, sizes


@pytest.mark.slurm
@pytest.mark.loopback
def test_each_category_has_its_worker_which_takes_nothing_new_after_its_time(campaign):
    search = campaign(generations=2, way=Way.CATEGORIES, launchers=1)
    working_set.set_walltime(search.site, "light", "00:10:00", TIMEOUT)
    first = search.hold("generate 000.0")
    search.submit()
    with search.launching():
        wait_for(first.process, "the first job has begun")
        process = str(first.process())  # it may have run other jobs before
        time.sleep(TIMEOUT)
        first.release()
        wait_for(lambda: search.has_begun("relax 001.0"), "a generation that the search brought forth is relaxed")
    assert [run.name for run in search.runs() if run.process == process][-1] == "generate 000.0"
    assert_each_stage_has_its_worker(search, set(STAGES) - {"report"})


@pytest.mark.slurm
@pytest.mark.loopback
def test_one_queue_job_for_each_job_of_which_one_is_cancelled(campaign, slurm):
    search = campaign(generations=1, way=Way.RESERVATIONS)
    working_set.edit(search.site / "resources.yaml", lambda stages: stages["label"]["_queueadapter"].update(TWO_HOURS))
    search.submit()
    slurm.open("dft", to_all=False)
    with search.launching():
        wait_for(lambda: slurm.jobs("%A", "-p", "dft"), "a label waits in the queue")
        [number, limit] = slurm.jobs("%A %l", "-p", "dft")
        assert limit == "2:00:00"
        time.sleep(2 * working_set.TIMES["QUEUE_UPDATE_INTERVAL"])
        assert "no job is lost, failed or forgotten" in search.resume()
        slurm.run("scancel", number)
        wait_for(lambda: number not in slurm.jobs(), "the label has left the queue")
        assert f"its queue job {number} is gone" in search.resume()
        slurm.open("dft")
        wait_for(lambda: search.has_begun("train 000"), "the labels are there")
    runs = search.runs()
    assert len({run.process for run in runs}) == len({run.identity for run in runs}) == len(runs)
    assert_each_stage_has_its_worker(search, {"generate", "select", "label", "train"})


@pytest.mark.mongo
def test_search_on_a_real_mongodb(real_campaign, reference):
    search = real_campaign(generations=GENERATIONS)
    search.submit()
    with search.launching():
        wait_for(search.is_done, "the search is done")
    assert_each_job_ran_once(search)
    answer, calculations = reference(GENERATIONS)
    assert not differences(search.answer(), answer)
    assert search.calculations() == calculations
    sizes = largest_documents(search)
    assert max(sizes.values()) < LARGEST, sizes
