"""The commands of MongoDB that FireWorks, jobflow, jobflow-remote, maggma and pymongo send, answered by mongomock."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import bson
import mongomock
from bson import Int64
from bson.raw_bson import RawBSONDocument
from mongomock.aggregate import process_pipeline
from mongomock.filtering import filter_applies
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError, OperationFailure, WriteError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from engine import Document, IndexedStore
    from mongomock import Collection, Database

from journal import Journal

LARGEST = 16 * 1024 * 1024
FIRST_BATCH, BATCH = 101, 5000
REPLY = 16_000_000  # bytes of documents in one reply, at most
INDEX_OPTIONS = ("unique", "sparse", "expireAfterSeconds", "partialFilterExpression")
DUPLICATE, TOO_LARGE, UNKNOWN = 11000, 17419, 8


class Commands:
    """A database in memory and, if a folder is given, in a journal. One command at a time."""

    def __init__(self, folder: Path | None = None, largest: int = LARGEST) -> None:
        self.client = mongomock.MongoClient()
        self.largest = largest
        self.lock = threading.Lock()
        self.cursors: dict[int, tuple[str, Iterator[Document]]] = {}
        self.n_cursors = 0
        self.notes: list[Document] = []  # changes that are not of documents, for the journal
        self.journal = Journal(folder) if folder is not None else None
        if self.journal is not None:
            self.journal.replay(self.client)

    def run(self, command: Document) -> Document:
        """Answer a command; whatever goes wrong is an answer too."""
        name = next(iter(command))
        method = getattr(self, f"on_{name.lower()}", None)
        if method is None:
            return _failure(59, "CommandNotFound", f"no such command: '{name}'")
        with self.lock:
            try:
                answer: Document = method(self.client[command.get("$db", "test")], command[name], command)
                self._keep()
            except DuplicateKeyError as error:
                return _failure(DUPLICATE, "DuplicateKey", str(error))
            except OperationFailure as error:
                return _failure(error.code or UNKNOWN, "OperationFailure", str(error))
            except Exception as error:  # noqa: BLE001 - a server answers
                return _failure(UNKNOWN, "UnknownError", f"{type(error).__name__}: {error}")
        return {"ok": 1.0} | answer

    def _keep(self) -> None:
        """Write down what the command has changed, or refuse what has become too large."""
        notes, self.notes = self.notes, []
        for database in self.client._store._databases.items():
            for collection, store in database[1]._collections.items():
                if store.changed:
                    notes += self._changes(store, {"database": database[0], "collection": collection})
        if self.journal is not None:
            self.journal.append(notes)

    def _changes(self, store: IndexedStore, where: Document) -> list[Document]:
        try:
            changes = list(store.take_changes(self.largest))
        except ValueError as error:
            raise WriteError(f"{where['database']}.{where['collection']}: {error}", TOO_LARGE) from error
        return [where | ({"gone": key} if image is None else {"put": image}) for key, image in changes]

    # -- greeting and administration

    def on_hello(self, *_: object) -> Document:
        return {
            "ismaster": True,
            "isWritablePrimary": True,
            "helloOk": True,
            "maxBsonObjectSize": LARGEST,
            "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000,
            "minWireVersion": 0,
            "maxWireVersion": 17,
            "readOnly": False,
        }

    on_ismaster = on_hello

    def on_ping(self, *_: object) -> Document:
        return {}

    on_endsessions = on_compact = on_ping

    def on_buildinfo(self, *_: object) -> Document:
        return {"version": "6.0.0", "versionArray": [6, 0, 0, 0], "gitVersion": "test double, not MongoDB"}

    def on_serverstatus(self, *_: object) -> Document:
        return {"version": "6.0.0", "process": "test double, not MongoDB"}

    def on_listdatabases(self, *_: object) -> Document:
        return {"databases": [{"name": name, "empty": False} for name in self.client.list_database_names()]}

    def on_listcollections(self, database: Database, _: object, command: Document) -> Document:
        rows = [{"name": name, "type": "collection", "options": {}} for name in database.list_collection_names()]
        wanted = [row for row in rows if filter_applies(command.get("filter") or {}, row)]
        return self._cursor(f"{database.name}.$cmd.listCollections", wanted, command)

    def on_collstats(self, database: Database, name: str, _: Document) -> Document:
        images = database[name]._store.images.values()
        return {"ns": f"{database.name}.{name}", "count": len(images), "size": sum(len(image) for image in images)}

    def on_create(self, database: Database, name: str, _: Document) -> Document:
        database[name]._store.create()
        return {}

    def on_drop(self, database: Database, name: str, _: Document) -> Document:
        database[name]._store.drop()
        self.notes.append({"database": database.name, "drop": name})
        return {}

    def on_dropdatabase(self, database: Database, _: object, command: Document) -> Document:
        for name in database.list_collection_names():
            self.on_drop(database, name, command)
        return {"dropped": database.name}

    # -- indexes

    def on_createindexes(self, database: Database, name: str, command: Document) -> Document:
        collection = database[name]
        before = len(collection._store.indexes)
        for index in command["indexes"]:
            options = {option: index[option] for option in INDEX_OPTIONS if option in index}
            collection.create_index(list(index["key"].items()), name=index["name"], **options)
            content = collection._store.indexes.get(index["name"])
            if content is not None:
                place = {"database": database.name, "collection": name}
                self.notes.append(place | {"name": index["name"], "index": dict(content)})
        return {"numIndexesBefore": before, "numIndexesAfter": len(collection._store.indexes)}

    def on_listindexes(self, database: Database, name: str, command: Document) -> Document:
        rows = [{"v": 2, "key": {"_id": 1}, "name": "_id_"}]
        for index, content in database[name]._store.indexes.items():
            if index != "_id_":
                unique = {"unique": True} if content.get("unique") else {}
                rows.append({"v": 2, "key": dict(content["key"]), "name": index} | unique)
        return self._cursor(f"{database.name}.{name}", rows, command)

    def on_dropindexes(self, database: Database, name: str, command: Document) -> Document:
        collection = database[name]
        there = [index for index in collection._store.indexes if index != "_id_"]
        for index in there if command["index"] == "*" else [command["index"]]:
            collection.drop_index(index)
            self.notes.append({"database": database.name, "collection": name, "unindex": index})
        return {"nIndexesWas": 1 + len(there)}

    # -- writing

    def on_insert(self, database: Database, name: str, command: Document) -> Document:
        def insert(document: Document) -> int:
            database[name].insert_one(document)
            return 1

        done, errors = self._each(command["documents"], insert, ordered=command.get("ordered", True))
        return {"n": sum(done)} | errors

    def on_update(self, database: Database, name: str, command: Document) -> Document:
        upserted: list[Document] = []

        def update(asked: Document) -> tuple[int, int]:
            if asked.get("arrayFilters"):
                raise NotImplementedError("arrayFilters")
            new, options = asked["u"], {"upsert": asked.get("upsert", False)}
            collection = database[name]
            if not _is_update(new):
                result = collection.replace_one(asked["q"], new, **options)
            else:
                method = collection.update_many if asked.get("multi") else collection.update_one
                result = method(asked["q"], new, **options)
            if result.upserted_id is not None:
                upserted.append({"index": command["updates"].index(asked), "_id": result.upserted_id})
                return 1, 0
            return result.matched_count, result.modified_count or 0

        done, errors = self._each(command["updates"], update, ordered=command.get("ordered", True))
        answer = {"n": sum(n for n, _ in done), "nModified": sum(m for _, m in done)}
        return answer | ({"upserted": upserted} if upserted else {}) | errors

    def on_delete(self, database: Database, name: str, command: Document) -> Document:
        collection, n = database[name], 0
        for asked in command["deletes"]:
            method = collection.delete_one if asked.get("limit") == 1 else collection.delete_many
            n += method(asked["q"]).deleted_count
        return {"n": n}

    def on_findandmodify(self, database: Database, name: str, command: Document) -> Document:
        collection, query = database[name], command.get("query") or {}
        options = {"projection": command.get("fields"), "sort": list((command.get("sort") or {}).items()) or None}
        if command.get("remove"):
            old = collection.find_one_and_delete(query, **options)
            return {"lastErrorObject": {"n": int(old is not None)}, "value": old}
        existed = collection.find_one(query, {"_id": 1}, sort=options["sort"]) is not None
        new, upsert = command["update"], bool(command.get("upsert"))
        options |= {
            "upsert": upsert,
            "return_document": ReturnDocument.AFTER if command.get("new") else ReturnDocument.BEFORE,
        }
        method = collection.find_one_and_update if _is_update(new) else collection.find_one_and_replace
        value = method(query, new, **options)
        return {"lastErrorObject": {"updatedExisting": existed, "n": int(existed or upsert)}, "value": value}

    @staticmethod
    def _each(asked: list[Document], do: Any, *, ordered: bool) -> tuple[list[Any], Document]:
        """Do one thing after the other; a refused one is reported by its number, and ends an ordered list."""
        done, errors = [], []
        for index, one in enumerate(asked):
            try:
                done.append(do(one))
            except (DuplicateKeyError, WriteError) as error:
                errors.append({"index": index, "code": error.code or UNKNOWN, "errmsg": str(error)})
                if ordered:
                    break
        return done, {"writeErrors": errors} if errors else {}

    # -- reading

    def on_find(self, database: Database, name: str, command: Document) -> Document:
        found = _find(database[name], command.get("filter") or {}, command.get("projection"), command.get("sort"))
        found = found.skip(command.get("skip") or 0)
        if command.get("limit"):
            found = found.limit(abs(command["limit"]))
        return self._cursor(f"{database.name}.{name}", list(found), command)

    def on_aggregate(self, database: Database, name: str, command: Document) -> Document:
        pipeline = list(command["pipeline"])
        first = pipeline.pop(0)["$match"] if pipeline and "$match" in pipeline[0] else {}
        rows = process_pipeline(list(_find(database[name], first)), database, pipeline, None)
        return self._cursor(f"{database.name}.{name}", rows, command.get("cursor") or {})

    def on_count(self, database: Database, name: str, command: Document) -> Document:
        return {"n": database[name].count_documents(command.get("query") or {})}

    def on_distinct(self, database: Database, name: str, command: Document) -> Document:
        return {"values": database[name].distinct(command["key"], command.get("query") or {})}

    def on_getmore(self, _: Database, cursor: int, command: Document) -> Document:
        if cursor not in self.cursors:
            raise OperationFailure(f"cursor id {cursor} not found", 43)
        namespace, rest = self.cursors.pop(cursor)
        return self._batch("nextBatch", namespace, rest, command.get("batchSize") or BATCH)

    def on_killcursors(self, _: Database, __: str, command: Document) -> Document:
        for cursor in command["cursors"]:
            self.cursors.pop(cursor, None)
        return {"cursorsKilled": command["cursors"]}

    def _cursor(self, namespace: str, documents: Iterable[Document], options: Document) -> Document:
        return self._batch("firstBatch", namespace, iter(documents), options.get("batchSize") or FIRST_BATCH)

    def _batch(self, name: str, namespace: str, documents: Iterator[Document], size: int) -> Document:
        batch: list[RawBSONDocument] = []
        room, cursor = REPLY, 0
        for document in documents:
            batch.append(RawBSONDocument(bson.encode(document)))
            room -= len(batch[-1].raw)
            if len(batch) >= size or room < 0:
                self.n_cursors += 1
                cursor = self.n_cursors
                self.cursors[cursor] = (namespace, documents)
                break
        return {"cursor": {"id": Int64(cursor), "ns": namespace, name: batch}}


def _is_update(new: Document | list[Document]) -> bool:
    return isinstance(new, list) or any(key.startswith("$") for key in new)


def _find(
    collection: Collection, criteria: Document, projection: Document | None = None, sort: Document | None = None
) -> Any:
    found = collection.find(criteria, projection or None)
    return found.sort(list(sort.items())) if sort else found


def _failure(code: int, name: str, message: str) -> Document:
    return {"ok": 0.0, "code": code, "codeName": name, "errmsg": message}
