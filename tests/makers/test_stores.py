"""Stores: collections beside the outputs, files that need no server, readers beside a writer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zlib
from pathlib import Path

import maggma.stores
import pytest
from jobflow import JobStore
from maggma.stores import JSONStore, MemoryStore, MongoStore
from maggma.stores.gridfs import GridFSURIStore
from maggma.stores.mongolike import MongoURIStore
from monty.json import MontyDecoder, MontyEncoder

from makers.errors import ConfigError
from makers.stores import BlobStore, EmbeddedStore, copy_store, embedded_job_store, sibling_store

READ_LIMIT = 1.0  # CPU s for 200 documents; measured 0.1


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    store = BlobStore(str(tmp_path / "blobs"), key="blob_uuid")
    store.connect()
    return store


def blob(name: str, content: str = "x", job: str = "job") -> dict[str, object]:
    return {"blob_uuid": name, "data": {"npz": content}, "job_uuid": job, "job_index": 1}


def test_siblings_of_a_memory_store_share_their_documents() -> None:
    first, other = (JobStore(MemoryStore()) for _ in range(2))
    first.connect()
    other.connect()
    sibling_store(first, "labels", key="label_id").update({"label_id": "a"})
    assert sibling_store(first, "labels").count() == 1
    assert sibling_store(first, "phases").count() == 0
    assert sibling_store(other, "labels").count() == 0
    assert first.count() == 0


def test_sibling_of_mongo_is_in_the_same_database() -> None:
    store = JobStore(MongoStore("db", "outputs", host="db.example", username="me", password="secret"))  # noqa: S106
    memory = MemoryStore()
    memory.connect()
    store.docs_store._coll = memory._collection  # no server in tests
    sibling = sibling_store(store, "labels", key="label_id")
    assert isinstance(sibling, MongoStore)
    assert (sibling.database, sibling.collection_name, sibling.key) == ("db", "labels", "label_id")
    assert (sibling.host, sibling.username) == ("db.example", "me")
    assert "secret" not in sibling.name


@pytest.mark.filterwarnings("ignore:.*URIStore:FutureWarning")
@pytest.mark.parametrize(("kind", "better"), [(MongoURIStore, "MongoStore"), (GridFSURIStore, "GridFSStore")])
def test_stores_that_cannot_be_copied_are_refused(
    kind: type[maggma.stores.MongoStore | maggma.stores.GridFSStore], better: str
) -> None:
    with pytest.raises(ConfigError, match=f"write `type: {better}` with the same `uri`") as caught:
        copy_store(kind(uri="mongodb://me:secret@db.example/db", collection_name="outputs"))
    assert "secret" not in str(caught.value)
    advised = getattr(maggma.stores, better)("db", "outputs", uri="mongodb://me:secret@db.example/db")
    copy = copy_store(advised, collection_name="labels")
    assert (copy.uri, copy.collection_name) == (advised.uri, "labels")


def test_sibling_of_a_json_file_is_a_file_beside_it(tmp_path: Path) -> None:
    store = JobStore(JSONStore(str(tmp_path / "outputs.json"), read_only=False))
    store.connect()
    sibling_store(store, "labels", key="label_id").update({"label_id": "a"})
    assert sibling_store(store, "labels", key="label_id").count() == 1
    assert (tmp_path / "labels.json").exists()


def test_store_without_collections_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="BlobStore, which has no collections"):
        sibling_store(JobStore(BlobStore(str(tmp_path))), "labels")


def test_embedded_outputs_survive_and_are_read_elsewhere(tmp_path: Path) -> None:
    store = embedded_job_store(tmp_path / "run")
    store.connect()
    content = {"@module": "x", "@class": "Big", "npz": "abc" * 1000}
    doc = {"uuid": "u", "index": 1, "output": {"batch": content, "n": 3}}
    store.update(doc, save={"data": "batch"})
    sibling_store(store, "labels", key="label_id").update({"label_id": "a", "status": "ok"})

    script = (
        "import sys; from makers.stores import *; s = embedded_job_store(sys.argv[1]); s.connect();"
        "o = s.query_one({'uuid': 'u'}, load=True)['output'];"
        "print(o['n'], len(o['batch']['npz']), sibling_store(s, 'labels').count({'status': 'ok'}))"
    )
    run = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", script, str(tmp_path / "run")], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["3", "3000", "1"]
    document = store.docs_store.query_one({"uuid": "u"})
    assert "npz" not in json.dumps(document["output"])  # the blob is not in the document


def test_processes_may_connect_and_write_at_the_same_time(tmp_path: Path) -> None:
    script = (
        "import sys; from makers.stores import *; s = embedded_job_store(sys.argv[1]); s.connect();"
        "[s.update({'uuid': sys.argv[2], 'index': i, 'output': i}) for i in range(5)]"
    )
    commands = [[sys.executable, "-c", script, str(tmp_path), str(n)] for n in range(4)]
    processes = [subprocess.Popen(c, stderr=subprocess.PIPE) for c in commands]  # noqa: S603 - our own script
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    store = embedded_job_store(tmp_path)
    store.connect()
    assert store.count() == 20


def test_embedded_reads_are_fast_enough(tmp_path: Path) -> None:
    store = EmbeddedStore("labels", database_path=str(tmp_path), key="label_id")
    store.connect()
    assert store.ensure_index("label_id") is False
    label = {"forces": [[0.1, 0.2, 0.3]] * 12, "positions": [[0.1, 0.2, 0.3]] * 12}
    for n in range(200):
        store._collection.insert_one({"label_id": str(n), **label})
    start = time.process_time()
    assert len(list(store.query({"label_id": {"$in": [str(n) for n in range(200)]}}))) == 200
    assert time.process_time() - start < READ_LIMIT


def test_blobs_are_found_by_key_without_reading_others(blobs: BlobStore) -> None:
    blobs.update([blob(f"{n:03d}", str(n)) for n in range(9)])
    assert blobs.count() == 9
    for file in blobs._files(None):
        if "007" not in file.name:
            file.write_bytes(b"nobody can read this")
    (found,) = blobs.query({"blob_uuid": {"$in": ["007", "absent"]}}, properties=["blob_uuid", "data"])
    assert found["data"]["npz"] == "7"
    with pytest.raises(zlib.error):
        list(blobs.query({"data.npz": "7"}))


def test_blobs_are_replaced_counted_grouped_and_removed(blobs: BlobStore) -> None:
    blobs.update([blob("a", "1"), blob("b", job="other")])
    blobs.update(blob("a", "2"), key="blob_uuid")
    assert blobs.query_one({"blob_uuid": "a"})["data"]["npz"] == "2"
    assert blobs.count({"job_uuid": "other"}) == 1
    assert {key["job_uuid"] for key, _ in blobs.groupby("job_uuid")} == {"job", "other"}
    blobs.remove_docs({"job_uuid": "job", "job_index": 1})
    assert [doc["blob_uuid"] for doc in blobs.query()] == ["b"]


def test_blobs_refuse_other_keys_and_paths(blobs: BlobStore) -> None:
    with pytest.raises(ValueError, match="known by 'blob_uuid' only"):
        blobs.update(blob("a"), key="job_uuid")
    with pytest.raises(ValueError, match="cannot be the name of a blob"):
        blobs.update(blob("../a"))


def test_a_killed_writer_leaves_no_blob(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        blobs.update(blob("a"))
    assert blobs.count() == 0
    assert [path for path in Path(blobs.path).rglob("*") if path.is_file()] == []


def test_embedded_store_is_restored_from_its_description(tmp_path: Path) -> None:
    store = embedded_job_store(tmp_path)
    again = MontyDecoder().process_decoded(json.loads(json.dumps(store.as_dict(), cls=MontyEncoder)))
    assert again.docs_store.name == store.docs_store.name
    assert again.additional_stores["data"] == store.additional_stores["data"]
