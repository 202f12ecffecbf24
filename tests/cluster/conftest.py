"""A database that answers over the wire, a Slurm of one node, and what the search finds where nothing goes wrong."""

from __future__ import annotations

import os
import re
import signal
import uuid
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from campaign import Campaign, answer, search
from database import Database, RealDatabase, RelayedDatabase, connected
from slurm_node import SlurmNode, missing

from workflows.config import parse_config
from workflows.run import open_store, run_search

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT = 900  # s for one test on a busy machine; an idle one needs a fifth of it

Reference = tuple[dict[str, Any], Counter[str]]


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError(f"the test took longer than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Iterator[SlurmNode]:
    """Return a Slurm that runs; the test is skipped where there can be none."""
    reason = missing()
    if reason is not None:
        pytest.skip(f"no Slurm: {reason}")
    node = SlurmNode(tmp_path_factory.mktemp("slurm"))
    try:
        node.start()
        yield node
    finally:
        node.stop()


@pytest.fixture
def database(tmp_path) -> Iterator[Database]:
    """Return the test double, which refuses documents above 1 MB."""
    double = Database(tmp_path / "database")
    double.start()
    yield double
    double.kill()


@pytest.fixture
def real_database() -> RealDatabase:
    """Return the MongoDB that the variable MONGODB_URI names; the test is skipped without."""
    uri = os.environ.get("MONGODB_URI")
    if not uri:
        pytest.skip("no MongoDB: MONGODB_URI is not set")
    return RealDatabase(uri)


@pytest.fixture
def campaign(tmp_path, slurm, database) -> Iterator[Callable[..., Campaign]]:
    """Return what makes a campaign on Slurm and the double; its Slurm jobs end with the test."""

    def make(**options: Any) -> Campaign:  # noqa: ANN401 - handed on
        return Campaign(tmp_path / "campaign", database, slurm, "tiny", **options)

    yield make
    slurm.thaw()
    slurm.cancel()


@pytest.fixture
def real_campaign(tmp_path, real_database) -> Iterator[Callable[..., Campaign]]:
    """Return what makes a campaign on a real MongoDB, with launchers of its own; its database is dropped at the end."""
    name = f"hullseeker_test_{uuid.uuid4().hex[:8]}"

    def make(database: RealDatabase = real_database, **options: Any) -> Campaign:  # noqa: ANN401 - handed on
        return Campaign(tmp_path / "campaign", database, None, name, **options)

    yield make
    with connected(real_database) as client:
        client.drop_database(name)


@pytest.fixture
def relayed_campaign(real_database, real_campaign) -> Iterator[Callable[..., Campaign]]:
    """Return the same on a MongoDB that can be cut off; the test is skipped where that would be noticed."""
    if "," in real_database.uri or re.search("srv://|tls=true|ssl=true", real_database.uri):
        pytest.skip("no outage: only a single host without TLS can be cut off by a relay")
    relayed = RelayedDatabase(real_database.uri)
    yield partial(real_campaign, relayed)
    relayed.kill()


ON_SLURM = pytest.param("campaign", id="slurm", marks=[pytest.mark.slurm, pytest.mark.loopback])


@pytest.fixture(params=[ON_SLURM, pytest.param("real_campaign", id="mongo", marks=pytest.mark.mongo)])
def any_campaign(request) -> Callable[..., Campaign]:
    """Return what makes a campaign, on Slurm and the double, and on a real MongoDB."""
    made: Callable[..., Campaign] = request.getfixturevalue(request.param)
    return made


@pytest.fixture(params=[ON_SLURM, pytest.param("relayed_campaign", id="mongo", marks=pytest.mark.mongo)])
def campaign_with_outages(request) -> Callable[..., Campaign]:
    """Return the same, where the database of the campaign can be killed and started."""
    made: Callable[..., Campaign] = request.getfixturevalue(request.param)
    return made


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Callable[[int], Reference]:
    """Return what a search of so many generations finds in one process without a server, and what it calculates."""
    known: dict[int, Reference] = {}

    def run(generations: int) -> Reference:
        if generations not in known:
            folder = tmp_path_factory.mktemp("reference")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("CALCULATIONS", str(folder / "calculations.txt"))
                run_search(parse_config(search("tiny", generations)), folder / "search")
            found = answer(open_store(folder / "search"), "tiny")
            known[generations] = found, Counter(Path(folder / "calculations.txt").read_text().splitlines())
        return known[generations]

    return run
