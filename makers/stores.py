"""Where results live: the file-backed stores that need no server, and further collections beside any job store."""

from __future__ import annotations

import fcntl
import os
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import bson
from jobflow import JobStore
from maggma.core import Store
from maggma.stores import JSONStore, MemoryStore, MongoStore, MontyStore

from makers.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from maggma.core import Sort

OUTPUTS = "outputs"
BLOBS = "blobs"
BLOB_SUFFIX = ".bson.z"
URI_STORES = {"MongoURIStore": "MongoStore", "GridFSURIStore": "GridFSStore"}
"""Stores whose description lacks what made them, and those that take the same address and describe it."""

Properties = dict[str, Any] | list[str] | None


class EmbeddedStore(MontyStore):  # type: ignore[misc, unused-ignore]
    """Documents in an sqlite file, without a server, readable while another process writes.

    MontyDB rewrites its two configuration files at every connection; processes that connect at the same time would
    read them half written. A file lock lets them connect one after the other.
    """

    def connect(self, force_reset: bool = False) -> None:  # noqa: FBT001, FBT002 - maggma's signature
        """Open the database, making the folder if there is none.

        Parameters
        ----------
        force_reset
            Open it again even if it is open.
        """
        folder = Path(self.database_path)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".connect.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            super().connect(force_reset)
            database = self._collection.database
            if self.collection_name not in database.list_collection_names():
                database.create_collection(self.collection_name)  # two first writers would both try

    def ensure_index(self, key: str, unique: bool | None = False) -> bool:  # noqa: ARG002, FBT001, FBT002 - maggma's signature
        """Say that there are no indexes.

        Parameters
        ----------
        key
            Field.
        unique
            Whether values are unique.

        Returns
        -------
        bool
            False: MontyDB has no indexes.
        """
        return False


class BlobStore(Store):  # type: ignore[misc, unused-ignore]
    """One compressed file per document in a folder: the additional store ``data`` of a search without a server.

    A document is found by its key without reading any other. Files appear by renaming, so a reader sees a whole blob
    or none, and a killed writer leaves nothing behind that anyone reads.

    Parameters
    ----------
    path
        The folder.
    **kwargs
        Arguments of every maggma store.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:  # noqa: ANN401 - handed to maggma
        self.path = path
        self.kwargs = kwargs
        super().__init__(**kwargs)

    @property
    def name(self) -> str:
        """Return what tells this store from others."""
        return f"blobs://{self.path}"

    @property
    def _collection(self) -> Any:  # noqa: ANN401 - maggma's signature
        raise NotImplementedError("a folder of blobs has no collection")

    def __hash__(self) -> int:
        """Return a hash of the name."""
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same folder."""
        return isinstance(other, BlobStore) and self.name == other.name

    def connect(self, force_reset: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - maggma's signature
        """Make the folder if there is none.

        Parameters
        ----------
        force_reset
            Without effect.
        """
        Path(self.path).mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def count(self, criteria: dict[str, Any] | None = None) -> int:
        """Count blobs.

        Parameters
        ----------
        criteria
            Filter of MongoDB.

        Returns
        -------
        int
            How many match.
        """
        if not criteria:
            return sum(1 for _ in self._files(None))
        return sum(1 for _ in self.query(criteria, properties=[self.key]))

    def query(
        self,
        criteria: dict[str, Any] | None = None,
        properties: Properties = None,
        sort: dict[str, Sort | int] | None = None,
        skip: int = 0,
        limit: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Find blobs; only those whose key the filter names are read, or all if it names none.

        Parameters
        ----------
        criteria
            Filter of MongoDB.
        properties
            Fields to return.
        sort
            Order.
        skip
            How many to leave out at the beginning.
        limit
            How many at most; 0 for all.

        Yields
        ------
        dict
            Documents.
        """
        found = self._in_memory(criteria)
        yield from found.query(criteria, properties=properties, sort=sort, skip=skip, limit=limit)

    def groupby(
        self,
        keys: list[str] | str,
        criteria: dict[str, Any] | None = None,
        properties: Properties = None,
        sort: dict[str, Sort | int] | None = None,
        skip: int = 0,
        limit: int = 0,
    ) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Find blobs in groups.

        Parameters
        ----------
        keys
            Fields by which to group.
        criteria
            Filter of MongoDB.
        properties
            Fields to return.
        sort
            Order.
        skip
            How many groups to leave out.
        limit
            How many groups at most; 0 for all.

        Yields
        ------
        tuple
            The values of the keys, and the documents that have them.
        """
        yield from self._in_memory(criteria).groupby(keys, criteria, properties, sort, skip, limit)

    def update(self, docs: list[dict[str, Any]] | dict[str, Any], key: list[str] | str | None = None) -> None:
        """Write blobs, or replace those of the same key.

        Parameters
        ----------
        docs
            Documents, each with the store's key.
        key
            The store's own key or None: a file has one name only.

        Raises
        ------
        ValueError
            If another key is asked for.
        """
        if key not in (None, self.key, [self.key]):
            raise ValueError(f"blobs are known by {self.key!r} only, not by {key!r}")
        for doc in docs if isinstance(docs, list) else [docs]:
            self._write(self._file(doc[self.key]), zlib.compress(bson.encode(doc), 1))

    def ensure_index(self, key: str, unique: bool = False) -> bool:  # noqa: ARG002, FBT001, FBT002 - maggma's signature
        """Say whether blobs are found quickly by this field.

        Parameters
        ----------
        key
            Field.
        unique
            Whether values are unique.

        Returns
        -------
        bool
            True for the key only.
        """
        return key == self.key

    def remove_docs(self, criteria: dict[str, Any]) -> None:
        """Delete blobs.

        Parameters
        ----------
        criteria
            Filter of MongoDB.
        """
        for doc in self.query(criteria, properties=[self.key]):
            self._file(doc[self.key]).unlink(missing_ok=True)

    def _file(self, key: object) -> Path:
        name = str(key)
        if not name or Path(name).name != name:
            raise ValueError(f"{name!r} cannot be the name of a blob")
        return Path(self.path) / name[:2] / f"{name}{BLOB_SUFFIX}"

    def _files(self, criteria: dict[str, Any] | None) -> Iterator[Path]:
        wanted = (criteria or {}).get(self.key)
        if isinstance(wanted, str):
            wanted = {"$in": [wanted]}
        if isinstance(wanted, dict) and set(wanted) == {"$in"}:
            yield from (file for key in wanted["$in"] if (file := self._file(key)).exists())
        else:
            yield from sorted(Path(self.path).glob(f"*/*{BLOB_SUFFIX}"))

    def _in_memory(self, criteria: dict[str, Any] | None) -> MemoryStore:
        store = MemoryStore(key=self.key)
        store.connect()
        docs = [bson.decode(zlib.decompress(file.read_bytes())) for file in self._files(criteria)]
        if docs:
            store._collection.insert_many(docs)  # noqa: SLF001 - update() would copy each blob once more
        return store

    @staticmethod
    def _write(file: Path, content: bytes) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(file)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def embedded_job_store(folder: Path | str) -> JobStore:
    """Return the job store of a search that needs no server.

    Parameters
    ----------
    folder
        Where its files live; made when the store is connected.

    Returns
    -------
    JobStore
        Documents in sqlite, blobs of the additional store ``data`` in files. Not connected yet.
    """
    root = Path(folder).resolve()
    documents = EmbeddedStore(OUTPUTS, database_path=str(root / "documents"))
    return JobStore(documents, additional_stores={"data": BlobStore(str(root / BLOBS))})


def copy_store(store: Store, **changes: object) -> Store:
    """Make a store like another.

    Parameters
    ----------
    store
        Any; it need not be connected.
    **changes
        What its description says otherwise.

    Returns
    -------
    Store
        Not connected.

    Raises
    ------
    ConfigError
        If it is of a kind that cannot be made again from its description; names the kind to use instead.
    """
    name = type(store).__name__
    if name in URI_STORES:
        raise ConfigError(
            f"the job store has a {name}, which cannot be copied: write `type: {URI_STORES[name]}` with the same `uri` "
            "and a `database` in jobflow.yaml"
        )
    return cast("Store", type(store).from_dict(store.as_dict() | changes))


def sibling_store(job_store: JobStore, collection: str, key: str = "task_id") -> Store:
    """Return another collection in the database in which the job store keeps its documents.

    Parameters
    ----------
    job_store
        A connected job store.
    collection
        Name of the collection.
    key
        Field by which its documents are known.

    Returns
    -------
    Store
        Connected. It may share the connection of the job store: do not close it.

    Raises
    ------
    ConfigError
        If the job store is of a kind that has no collections.
    """
    docs = job_store.docs_store
    if isinstance(docs, JSONStore):
        return _sibling_file(docs, collection, key)
    if not isinstance(docs, MongoStore):
        raise ConfigError(
            f"the job store keeps its documents in a {type(docs).__name__}, which has no collections: use MongoStore, "
            f"or the embedded store"
        )
    sibling = cast("MongoStore", copy_store(docs, collection_name=collection, key=key))
    if isinstance(sibling, EmbeddedStore):
        sibling.connect()
        return sibling
    # the same client: a MemoryStore's database exists in it only, and a MongoStore's needs no second connection
    sibling._coll = docs._collection.database[collection]  # noqa: SLF001 - maggma has no public way
    return sibling


def _sibling_file(docs: JSONStore, collection: str, key: str) -> JSONStore:
    path = Path(docs.paths[0]).with_name(f"{collection}.json")
    sibling = JSONStore(str(path), read_only=docs.read_only, key=key)
    sibling.connect()
    return sibling
