"""What every test gets: a folder of its own, fixed seeds, one thread, no network; and stores without a server."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports fireworks: its MongoClient becomes mongomock's, which wants a file that exists.
_SWITCH = Path(tempfile.mkdtemp(prefix="hullseeker-tests-"))
(_SWITCH / "launchpad.json").write_text("{}")
os.environ["MONGOMOCK_SERVERSTORE_FILE"] = str(_SWITCH / "launchpad.json")
# Nothing on this machine's disk decides how the tests run.
os.environ["JOBFLOW_CONFIG_FILE"] = str(_SWITCH / "no-jobflow.yaml")
os.environ["FW_CONFIG_FILE"] = str(_SWITCH / "no-fireworks.yaml")
for _name in [name for name in os.environ if name.startswith(("HULLSEEKER_", "ATOMATE2_"))]:
    del os.environ[_name]
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
# What a script puts in the background ignores SIGINT, and so would the programs that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fireworks import LaunchPad
    from jobflow import JobStore

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class NetworkBlockedError(RuntimeError):
    """A test wanted to connect to something."""


class _Gate:
    """Who may connect: nobody, or this machine only, or everybody."""

    allowed = "nothing"

    def refuse(self, sock: socket.socket, address: object) -> bool:
        if self.allowed == "everything":
            return False
        local = sock.family == socket.AF_UNIX or (isinstance(address, tuple) and address[0] in LOOPBACK)
        return not (local and self.allowed == "loopback")


_GATE = _Gate()


def _guarded(connect: Callable[[socket.socket, object], object]) -> Callable[[socket.socket, object], object]:
    def guarded(sock: socket.socket, address: object) -> object:
        if _GATE.refuse(sock, address):
            raise NetworkBlockedError(f"tests run without a network; connecting to {address!r} was refused")
        return connect(sock, address)

    return guarded


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", _guarded(socket.socket.connect_ex))
        yield


@pytest.fixture(autouse=True)
def _fresh(request, tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    np.random.seed(0)  # noqa: NPY002 - whatever still uses the legacy generator is reproducible too
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if request.node.get_closest_marker("mongo"):
        _GATE.allowed = "everything"
    elif request.node.get_closest_marker("loopback"):
        _GATE.allowed = "loopback"
    yield
    _GATE.allowed = "nothing"


@pytest.fixture
def job_store(monkeypatch) -> JobStore:
    """Return an empty job store in memory, which is also the one that jobflow is configured for."""
    jobflow, stores = importlib.import_module("jobflow"), importlib.import_module("maggma.stores")
    store = jobflow.JobStore(stores.MemoryStore(), additional_stores={"data": stores.MemoryStore()})
    store.connect()
    monkeypatch.setattr(jobflow.SETTINGS, "JOB_STORE", store)
    return store


@pytest.fixture
def launchpad(monkeypatch) -> LaunchPad:
    """Return an empty LaunchPad in memory."""
    # mongomock is not made for the thread that tells the LaunchPad that a job is alive
    monkeypatch.setattr("fireworks.core.rocket.ping_launch", lambda *_: None)
    found = importlib.import_module("fireworks").LaunchPad(name="hullseeker_tests", strm_lvl="ERROR")
    found.reset("", require_password=False)
    return found
