"""Reading results: up to date without building twice or writing, several searches in one store, the schema page."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from jobflow import JobStore, run_locally
from maggma.stores import MemoryStore
from pymongo.errors import OperationFailure

from csp.state import SearchState
from makers.documents import LabelDoc, Provenance
from makers.indexes import BASIS, OUTPUT_INDEXES, phase_store
from makers.labelling import read_labels
from makers.outcomes import AdvanceDoc, PhaseDoc, PhaseSummary, ReportDoc
from makers.phases import PhaseBuilder
from workflows.results import generations, holds, query_phases, report
from workflows.run import open_store
from workflows.search import SearchMaker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

pytestmark = pytest.mark.integration

PAGE = (Path(__file__).parents[2] / "docs" / "schema.md").read_text(encoding="utf-8")
SEEDS = {"first": 1, "second": 2}


@pytest.fixture(scope="module")
def shared(tiny_config, tmp_path_factory) -> JobStore:
    """Return one store with two searches of a generation each."""
    store = JobStore(MemoryStore(), additional_stores={"data": MemoryStore()})
    store.connect()
    for name, seed in SEEDS.items():
        config = tiny_config(project=name, seed=seed, generate__n_initial=10, advance__max_generations=1)
        folder = tmp_path_factory.mktemp(name)
        run_locally(SearchMaker(config).make(), store=store, log=False, root_dir=folder, raise_immediately=True)
    return store


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """Return the searches whose phases were built anew."""
    found: list[str] = []
    real = PhaseBuilder.get_items

    def get_items(builder: PhaseBuilder) -> Iterator[Any]:
        found.append(builder.project)
        yield from real(builder)

    monkeypatch.setattr(PhaseBuilder, "get_items", get_items)
    return found


def test_phases_tell_where_they_came_from(finished):
    phases = query_phases(open_store(finished), "tiny")
    origins = {p["origin"] for p in phases}
    assert "prototype" in origins
    assert origins <= {"random", "prototype", "mutation", ""}  # "" for labels whose candidate left the pool
    for p in phases:
        assert bool(p["lineage"]) == (p["origin"] in {"prototype", "mutation"}), p["phase_id"]


def test_searches_of_one_store_do_not_mix(shared):
    assert [holds(shared, name) for name in ("first", "second", "third")] == [True, True, False]
    for name in SEEDS:
        assert [(g.project, g.generation) for g in generations(shared, name)] == [(name, 0)]
        assert report(shared, name).project == name
        labels = read_labels(shared, name)
        n_single = sum(str(x.kind) == "single_point" for x in labels)
        assert n_single == generations(shared, name)[0].state.n_asked > 7  # identical crystals are calculated once
        phases = query_phases(shared, name)
        assert {p["project"] for p in phases} == {name}
        known = {label.label_id for label in labels}
        assert all(set(p["label_ids"]) <= known for p in phases)
    first, second = (read_labels(shared, name) for name in SEEDS)
    assert {x.structure_hash for x in first} != {x.structure_hash for x in second}
    assert phase_store(shared).count() == sum(len(query_phases(shared, name)) for name in SEEDS)


def test_a_name_is_looked_up_by_an_index_and_one_document_is_read(shared, monkeypatch):
    asked: list[tuple[dict[str, Any], int]] = []
    real = shared.docs_store.query

    def query(criteria: dict[str, Any], properties: list[str], limit: int = 0) -> Iterator[dict[str, Any]]:
        asked.append((criteria, limit))
        return real(criteria, properties=properties, limit=limit)

    monkeypatch.setattr(shared.docs_store, "query", query)
    assert holds(shared, "first")
    assert asked == [({"metadata.project": "first"}, 1)]
    assert "metadata.project" in OUTPUT_INDEXES


def test_phases_are_built_only_when_there_is_something_new(shared, builds):
    before = query_phases(shared, "first")
    assert before
    assert builds == []  # the report had built them
    phase_store(shared).remove_docs({"phase_key": before[0]["phase_key"]})
    phase_store(shared).update({**before[-1], BASIS: "an interrupted builder's"}, key="phase_key")
    assert [p["phase_id"] for p in query_phases(shared, "first")] == [p["phase_id"] for p in before]
    assert builds == ["first"]
    query_phases(shared, "first", stable=True)
    query_phases(shared, "second")
    assert builds == ["first"]


@pytest.mark.parametrize(
    "error", [OperationFailure("not authorized", code=13), PermissionError(), sqlite3.OperationalError("readonly")]
)
def test_readers_see_what_is_new(shared, builds, monkeypatch, error):
    def refuse(*_: object) -> None:
        raise error

    before = query_phases(shared, "second")
    doc = before[0]
    phase_store(shared).update({**doc, BASIS: "old", "formula": "old"}, key="phase_key")
    with monkeypatch.context() as patch:
        patch.setattr(PhaseBuilder, "update_targets", refuse)
        seen = query_phases(shared, "second")
        assert [p["phase_id"] for p in seen] == [p["phase_id"] for p in before]
        assert query_phases(shared, "second", formula="old") == []
        assert len(builds) == 2
    assert phase_store(shared).query_one({"phase_key": doc["phase_key"]})["formula"] == "old"  # nothing was written
    query_phases(shared, "second")
    assert phase_store(shared).query_one({"phase_key": doc["phase_key"]})["formula"] == doc["formula"]


SECTIONS: dict[str, type[BaseModel]] = {
    "`phases`": PhaseDoc,
    "`labels`": LabelDoc,
    "`labels`: `provenance`": Provenance,
    "`outputs` of `advance`: a generation": AdvanceDoc,
    "`outputs` of `advance`: `state`": SearchState,
    "`outputs` of `report`: the answer": ReportDoc,
    "`outputs` of `report`: `phases`": PhaseSummary,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_schema_page_lists_every_field(section):
    text = PAGE.split(f"### {section}\n")[1].split("\n###")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, flags=re.MULTILINE))
    fields = SECTIONS[section].model_fields
    assert list(rows) == list(fields)
    for name, field in fields.items():
        assert field.description is None or rows[name] == field.description


@pytest.fixture
def served(shared, monkeypatch) -> Any:  # noqa: ANN401 - a database of mongomock
    """Serve the searches as a MongoDB would, under the names that the page uses."""
    database = phase_store(shared)._collection.database
    database["outputs"].delete_many({})
    database["outputs"].insert_many(list(shared.docs_store.query()))
    for name in ("outputs", "labels", "phases"):
        for path in ("project", "metadata.project"):
            database[name].update_many({path: "first"}, {"$set": {path: "mg-si"}})
    monkeypatch.setattr(pymongo, "MongoClient", lambda _: {"hullseeker": database})
    yield database
    for name in ("labels", "phases"):
        database[name].update_many({"project": "mg-si"}, {"$set": {"project": "first"}})


@pytest.mark.parametrize("number", range(3))
def test_python_of_the_schema_page_runs(served, capsys, number):
    del served
    examples = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(examples) == 3
    exec(examples[number], {})  # noqa: S102 - our own page
    assert capsys.readouterr().out.strip() not in ("", "[]")


def test_mongosh_of_the_schema_page_finds_something(served):
    [block] = re.findall(r"```javascript\n(.*?)```", PAGE, flags=re.DOTALL)
    fields = set(re.findall(r"[{,] ?\"?([a-z_][\w.]+)\"?:", block)) - {"project"}
    assert {"status", "e_above_hull", "metadata.stage", "output.why"} <= fields
    for collection in set(re.findall(r"^db\.(\w+)\.", block, flags=re.MULTILINE)):
        lines = [line for line in block.splitlines() if line.startswith(f"db.{collection}.")]
        for field in fields:
            if any(re.search(rf"\b{re.escape(field)}\b", line) for line in lines) and field != "n":
                assert served[collection].find_one({field: {"$exists": True}}) is not None, (collection, field)
