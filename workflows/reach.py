"""Is the database there? Asked with a short patience, before anything waits for it or fails in its depths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maggma.stores import MemoryStore, MongoStore
from maggma.stores.gridfs import GridFSStore
from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError

from makers.errors import ConfigError
from makers.stores import copy_store

if TYPE_CHECKING:
    from maggma.core import Store
    from pymongo.collection import Collection

PATIENCE_MS = 5000
"""How long to wait for a server that should answer at once."""


def is_remote(store: Store) -> bool:
    """Say whether a store talks to a MongoDB server.

    Parameters
    ----------
    store
        Any store.

    Returns
    -------
    bool
        False for stores in memory and in files.
    """
    return isinstance(store, MongoStore | GridFSStore) and not isinstance(store, MemoryStore)


def address(store: Store) -> str:
    """Return where a server is, without credentials.

    Parameters
    ----------
    store
        A store for which `is_remote` holds.

    Returns
    -------
    str
        Host, port and database.
    """
    place: Any = store
    if getattr(store, "uri", None):
        return bare(place.uri)
    return f"{place.host}:{place.port}/{place.database}"


def bare(uri: str) -> str:
    """Leave out of an address what may be secret.

    Parameters
    ----------
    uri
        As pymongo takes it.

    Returns
    -------
    str
        Hosts and database, without user, password and options.
    """
    return uri.rpartition("@")[2].partition("?")[0].removeprefix("mongodb://")


def require_server(store: Store) -> None:
    """Make sure that the server of a store answers and lets us read.

    Parameters
    ----------
    store
        A store for which `is_remote` holds; it is not connected by this.

    Raises
    ------
    ConfigError
        If it does not; names the host and what to do, and no credentials.
    """
    probe: Any = copy_store(store)
    probe.mongoclient_kwargs = {**probe.mongoclient_kwargs, "serverSelectionTimeoutMS": PATIENCE_MS}
    try:
        probe.connect()
        collection = probe._files_collection if isinstance(probe, GridFSStore) else probe._collection  # noqa: SLF001
        require_answer(collection)
    except PyMongoError as error:
        raise ConfigError(explain(error, address(store), "jobflow.yaml (JOBFLOW_CONFIG_FILE)")) from error


def require_answer(collection: Collection[dict[str, Any]]) -> None:
    """Ask a server for something that needs permission, and close the connection.

    Parameters
    ----------
    collection
        A collection reached by a client of its own.

    Raises
    ------
    pymongo.errors.PyMongoError
        If it does not answer, or refuses.
    """
    client = collection.database.client
    try:
        client.admin.command("ping")
        collection.find_one({}, {"_id": 1})
    finally:
        client.close()


def explain(error: PyMongoError, where: str, file: str) -> str:
    """Say what is the matter with a server.

    Parameters
    ----------
    error
        What pymongo said; only its class is repeated, for its text may hold addresses with credentials.
    where
        The server, without credentials.
    file
        Where it is named.

    Returns
    -------
    str
        One paragraph that says what to do.
    """
    if isinstance(error, OperationFailure):
        return (
            f"MongoDB at {where} refuses us ({type(error).__name__}, code {error.code}): correct user, password and "
            f"the database that knows the user in {file}"
        )
    if isinstance(error, ConfigurationError):
        return f"MongoDB at {where}: {file} cannot be used ({type(error).__name__}): correct host and options there"
    return (
        f"MongoDB at {where} does not answer ({type(error).__name__}): is it running, is that its host and port in "
        f"{file}, can this machine reach it?"
    )
