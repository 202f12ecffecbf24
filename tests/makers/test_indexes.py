"""The program makes its own indexes, once, wherever the store can have any; and knows when phases are out of date."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobflow import JobStore
from maggma.stores import JSONStore, MemoryStore

from makers.indexes import BLOB_INDEXES, OUTPUT_INDEXES, PHASE_INDEXES, ensure_indexes, phase_store, phases_are_current
from makers.labelling.records import INDEXES, label_store
from makers.stores import embedded_job_store

if TYPE_CHECKING:
    from pathlib import Path

    from maggma.core import Store


def indexed(store: Store) -> dict[str, bool]:
    """Return the indexed fields of a collection, and whether each is unique."""
    found = store._collection.index_information().values()
    return {index["key"][0][0]: bool(index.get("unique")) for index in found if index["key"][0][0] != "_id"}


def test_every_collection_has_its_indexes(job_store: JobStore) -> None:
    for _ in range(2):  # the second time changes nothing
        ensure_indexes(job_store)
        assert indexed(job_store.docs_store) == dict.fromkeys(OUTPUT_INDEXES, False)
        assert indexed(label_store(job_store)) == {**dict.fromkeys(INDEXES, False), "label_key": True}
        assert indexed(phase_store(job_store)) == {**dict.fromkeys(PHASE_INDEXES, False), "phase_key": True}
        assert indexed(job_store.additional_stores["data"]) == dict.fromkeys(BLOB_INDEXES, False)


def test_stores_without_indexes_are_passed_over(tmp_path: Path) -> None:
    embedded = embedded_job_store(tmp_path)
    files = JobStore(
        JSONStore(str(tmp_path / "outputs.json"), read_only=False), additional_stores={"data": MemoryStore()}
    )
    for store in (embedded, files):
        store.connect()
        ensure_indexes(store)
        assert not phases_are_current(store, "nothing")
