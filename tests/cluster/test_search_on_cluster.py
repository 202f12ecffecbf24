"""A whole search by Slurm: `hullseeker submit`, `qlaunch rapidfire`, and the answer in the database."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import bson
import pytest
from campaign import wait_for
from database import LARGEST, connected

if TYPE_CHECKING:
    from campaign import Campaign

GENERATIONS = 3


def assert_each_job_ran_once(search: Campaign) -> None:
    fireworks = search.fireworks()
    assert [(fw["name"], len(fw["launches"]), fw["archived_launches"]) for fw in fireworks] == [
        (fw["name"], 1, []) for fw in fireworks
    ]
    begun = Counter(line.split("\t")[0] for line in search.jobs())
    assert set(begun.values()) == {1}
    assert len(begun) == len(fireworks)


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
    assert "added tiny" in search.submit()
    with search.launching():
        wait_for(search.is_done, "the search is done")
    assert_each_job_ran_once(search)
    assert len({line.split("\t")[2] for line in search.jobs()}) > 1  # processes: several launchers had work
    answer, calculations = reference(GENERATIONS)
    assert search.answer() == answer
    assert search.calculations() == calculations
    assert [found["crashed"] for *_, found in answer["generations"] if "crashed" in found]
    sizes = largest_documents(search)
    assert {"fireworks", "launches", "workflows", "outputs", "labels", "phases", "blobs.chunks"} <= set(sizes)
    assert max(sizes.values()) < LARGEST, sizes


@pytest.mark.mongo
def test_search_on_a_real_mongodb(real_campaign, reference):
    search = real_campaign
    search.submit()
    with search.launching():
        wait_for(search.is_done, "the search is done")
    assert_each_job_ran_once(search)
    answer, calculations = reference(GENERATIONS)
    assert search.answer() == answer
    assert search.calculations() == calculations
    sizes = largest_documents(search)
    assert max(sizes.values()) < LARGEST, sizes
