"""The test double for MongoDB: what pymongo, FireWorks and jobflow rely on, also after kill -9."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import gridfs
import pytest
from database import Database, connected
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, OperationFailure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pymongo import MongoClient

pytestmark = pytest.mark.loopback

LARGEST = 50_000


@pytest.fixture
def double(tmp_path) -> Iterator[Database]:
    database = Database(tmp_path / "database", LARGEST)
    database.start()
    yield database
    database.kill()


@pytest.fixture
def client(double) -> Iterator[MongoClient[dict[str, Any]]]:
    with connected(double) as connection:
        yield connection


def test_documents_are_found_in_order_and_in_batches(client):
    crystals = client.lab.crystals
    crystals.insert_many([{"number": i, "state": "odd" if i % 2 else "even"} for i in range(300)])
    crystals.create_index("state")
    assert [doc["number"] for doc in crystals.find({"state": "odd"}).batch_size(7)] == list(range(1, 300, 2))
    assert [doc["number"] for doc in crystals.find().sort("number", -1).skip(2).limit(2)] == [297, 296]
    assert crystals.count_documents({"state": "even", "number": {"$lt": 10}}) == 5
    counted = crystals.aggregate(
        [{"$match": {"number": {"$gte": 100}}}, {"$group": {"_id": "$state", "n": {"$sum": 1}}}]
    )
    assert {row["_id"]: row["n"] for row in counted} == {"even": 100, "odd": 100}


def test_an_index_follows_what_changes(client):
    crystals = client.lab.crystals
    crystals.create_index("tags")
    crystals.insert_many([{"_id": i, "tags": ["new"]} for i in range(3)])
    crystals.update_one({"_id": 1}, {"$push": {"tags": "hot"}})
    crystals.update_many({"_id": {"$gte": 1}}, {"$pull": {"tags": "new"}})
    crystals.delete_one({"_id": 2})
    assert [doc["_id"] for doc in crystals.find({"tags": "new"})] == [0]
    assert [doc["_id"] for doc in crystals.find({"tags": {"$in": ["hot", "cold"]}})] == [1]


def test_a_unique_index_refuses_and_leaves_no_trace(client):
    jobs = client.lab.jobs
    jobs.create_index("number", unique=True)
    jobs.insert_many([{"number": 1}, {"number": 2}])
    with pytest.raises(DuplicateKeyError):
        jobs.insert_one({"number": 1})
    with pytest.raises(DuplicateKeyError):
        jobs.update_one({"number": 2}, {"$set": {"number": 1}})
    assert sorted(doc["number"] for doc in jobs.find()) == [1, 2]


def test_what_a_dropped_index_refused_is_taken_also_after_kill_9(double, client):
    jobs = client.lab.jobs
    jobs.create_index("number", unique=True)
    jobs.create_index("state")
    jobs.insert_one({"number": 1})
    jobs.drop_index("number_1")
    double.kill()
    double.start()
    assert set(jobs.index_information()) == {"_id_", "state_1"}  # reads are tried again when a connection is gone
    jobs.insert_one({"number": 1})
    jobs.drop_indexes()
    assert set(jobs.index_information()) == {"_id_"}
    assert jobs.count_documents({"number": 1}) == 2
    with pytest.raises(OperationFailure, match="index not found"):
        jobs.drop_index("state_1")


def test_a_counter_counts_every_client_once(double, client):
    client.lab.counter.insert_one({"n": 0})

    def count() -> None:
        with connected(double) as own:
            for _ in range(50):
                own.lab.counter.find_one_and_update({}, {"$inc": {"n": 1}}, return_document=ReturnDocument.AFTER)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.lab.counter.find_one()["n"] == 200


def test_what_grows_too_large_is_refused_and_stays_as_it_was(client):
    lab = client.lab.lab
    lab.insert_one({"_id": 1, "results": []})
    with pytest.raises(OperationFailure, match="too large"):
        lab.update_one({"_id": 1}, {"$push": {"results": "x" * LARGEST}})
    with pytest.raises(OperationFailure, match="too large"):
        lab.insert_one({"_id": 2, "results": "x" * LARGEST})
    assert list(lab.find()) == [{"_id": 1, "results": []}]


def test_everything_acknowledged_survives_kill_9(double, client):
    lab = client.lab
    lab.jobs.create_index("number", unique=True)
    upserted = lab.jobs.update_one({"number": 7}, {"$set": {"state": "READY"}}, upsert=True).upserted_id
    lab.jobs.insert_many([{"number": i} for i in range(5)])
    lab.jobs.delete_one({"number": 3})
    lab.gone.insert_one({})
    lab.drop_collection("gone")
    blob = gridfs.GridFS(lab).put(b"crystal" * 1000, chunk_size=4096)
    for _ in range(2):  # the second start reads what the first has shortened
        double.kill()
        double.start()
        assert lab.jobs.find_one({"number": 7}) == {"_id": upserted, "number": 7, "state": "READY"}
        assert sorted(doc["number"] for doc in lab.jobs.find()) == [0, 1, 2, 4, 7]
        assert gridfs.GridFS(lab).get(blob).read() == b"crystal" * 1000
        assert "gone" not in lab.list_collection_names()
        with pytest.raises(DuplicateKeyError):
            lab.jobs.insert_one({"number": 7})


def test_an_unknown_command_is_an_error(client):
    with pytest.raises(OperationFailure, match="no such command"):
        client.lab.command("mapReduce", "jobs")
