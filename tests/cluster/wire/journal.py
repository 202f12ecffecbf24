"""What survives kill -9: a file to which every change is appended before it is acknowledged."""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, Any

import bson

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import mongomock

Record = dict[str, Any]


class Journal:
    """Changes of documents and of indexes, each one BSON document; a torn last one is dropped.

    Process death loses nothing that was acknowledged. Loss of power may: the file is not synchronised.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "journal.bson"

    def replay(self, client: mongomock.MongoClient) -> None:
        """Bring an empty client to where the last process left it, then write the shortest journal that does so."""
        for record in self._records():
            apply(client, record)
        short = self.path.with_suffix(".short")
        with short.open("wb") as file:
            file.writelines(bson.encode(record) for record in snapshot(client))
        short.replace(self.path)
        self.file = self.path.open("ab", buffering=0)

    def append(self, records: Iterable[Record]) -> None:
        """Write changes down."""
        content = b"".join(bson.encode(record) for record in records)
        if content:
            self.file.write(content)

    def _records(self) -> Iterator[Record]:
        content = self.path.read_bytes() if self.path.exists() else b""
        place = 0
        while place + 4 <= len(content):
            size = struct.unpack_from("<i", content, place)[0]
            if place + size > len(content):
                return
            yield bson.decode(content[place : place + size])
            place += size


def apply(client: mongomock.MongoClient, record: Record) -> None:
    """Repeat one change."""
    database = client[record["database"]]
    if "drop" in record:
        database[record["drop"]]._store.drop()
        return
    store = database[record["collection"]]._store
    if "index" in record:
        store.create_index(record["name"], record["index"] | {"key": [tuple(part) for part in record["index"]["key"]]})
    elif "unindex" in record:
        store.drop_index(record["unindex"])
    elif "put" in record:
        document = bson.decode(record["put"])
        store[document["_id"]] = document
    else:
        del store[record["gone"]]
    for _ in store.take_changes(sys.maxsize):
        pass


def snapshot(client: mongomock.MongoClient) -> Iterator[Record]:
    """Say everything that a client holds, as changes from nothing."""
    for name in client.list_database_names():
        database = client[name]
        for collection in database.list_collection_names():
            store, where = database[collection]._store, {"database": name, "collection": collection}
            for index, content in store.indexes.items():
                yield where | {"name": index, "index": content}
            for image in store.images.values():
                yield where | {"put": image}
