"""The database of a test: the double behind the wire, which can be killed and started again, or a real MongoDB."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymongo import MongoClient
from pymongo.uri_parser import parse_uri
from relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = Path(__file__).parent.parent / "wire"
LARGEST = 1_000_000  # bytes: what no document of a search may exceed
TIMEOUT_MS = 120_000  # how long a client waits for a database that is away


class Database:
    """A test double for MongoDB in a process of its own.

    Parameters
    ----------
    folder
        Where its journal lies: killed and started again, it knows everything that it has acknowledged.
    largest
        Documents of more bytes are refused.
    """

    def __init__(self, folder: Path, largest: int = LARGEST) -> None:
        self.folder = folder
        self.largest = largest
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, on the port of before if there was one."""
        command = [sys.executable, str(PROGRAM), "--port", str(self.port), "--folder", str(self.folder)]
        with (self.folder.parent / "database.log").open("a") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own program
                [*command, "--largest", str(self.largest)], stdout=subprocess.PIPE, stderr=log, text=True
            )
        if self.process.stdout is None:
            raise RuntimeError("the database has no output")
        self.port = int(self.process.stdout.readline().split()[-1])

    def kill(self) -> None:
        """Kill it as a crash would."""
        if self.process is not None and self.process.stdout is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def uri(self) -> str:
        """Where it is."""
        return f"mongodb://{self.address}"


class RealDatabase:
    """A MongoDB that runs already; nothing here stops it.

    Parameters
    ----------
    uri
        Where it is, credentials included.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri


class RelayedDatabase(RealDatabase):
    """The same, reached by a relay that can be cut.

    Parameters
    ----------
    uri
        Where it is: one host, without TLS, which would notice the relay.
    """

    def __init__(self, uri: str) -> None:
        parsed = parse_uri(uri, validate=False)
        [(host, port)] = parsed["nodelist"]
        self.relay = Relay(host, port or 27017)
        self.relay.start()
        user, at, _ = uri.removeprefix("mongodb://").partition("/")[0].rpartition("@")
        _, _, rest = uri.removeprefix("mongodb://").partition("/")
        options = f"{rest}{'&' if '?' in rest else '?'}directConnection=true"
        super().__init__(f"mongodb://{user}{at}127.0.0.1:{self.relay.port}/{options}")

    def start(self) -> None:
        """Let clients reach it again."""
        self.relay.start()

    def kill(self) -> None:
        """Cut them off."""
        self.relay.cut()


@contextmanager
def connected(database: Database | RealDatabase) -> Iterator[MongoClient[dict[str, Any]]]:
    """Connect, and close the connection at the end."""
    client: MongoClient[dict[str, Any]] = MongoClient(database.uri, serverSelectionTimeoutMS=TIMEOUT_MS)
    try:
        yield client
    finally:
        client.close()
