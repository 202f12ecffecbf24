"""What goes wrong on the way: labels that fail, stages that fail, and how a search goes on afterwards."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from jobflow import run_locally

import makers.report
import makers.train
from makers.documents import LabelStatus
from makers.errors import ConfigError, StopError
from makers.labelling import read_labels
from workflows.results import generations, report
from workflows.run import open_store, resume_search, run_search, unfinished
from workflows.search import SearchMaker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jobflow import JobStore

pytestmark = pytest.mark.integration


def completed(store: JobStore) -> dict[str, Any]:
    """Return when each job ended, by name."""
    docs = store.query({"output": {"$ne": None}}, properties=["name", "index", "completed_at"])
    own = [doc for doc in docs if doc["name"] != "store_inputs"]  # jobflow's, one for each driver
    return {f"{doc['name']}/{doc['index']}": doc["completed_at"] for doc in own}


def failing(times: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that works so many times and then fails."""
    left = [times]

    def function(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any signature
        if not left[0]:
            raise RuntimeError("the disk is full")
        left[0] -= 1
        return real(*args, **kwargs)

    return function


@pytest.mark.usefixtures("calculators")
def test_labels_that_fail_do_not_stop_the_search(tiny_config, job_store):
    config = tiny_config(
        label__calculator="search_calculators:counting", label__settings={"fail": "Au"}, advance__max_generations=2
    )
    run_locally(SearchMaker(config).make(), store=job_store, log=False, ensure_success=True)
    steps = generations(job_store, "tiny")
    lost = [x for x in read_labels(job_store, "tiny", status=None) if x.status != LabelStatus.OK]
    assert lost
    assert {(x.formula, x.status) for x in lost} == {("Au", LabelStatus.CRASHED)}
    assert all("this crystal is cursed" in x.message for x in lost)
    assert all(len(x.numbers) > 1 for x in lost)
    counted = sum(n for g in steps for status, n in g.labels.items() if status != "ok")
    assert counted == sum(str(x.kind) == "single_point" for x in lost)
    done = report(job_store, "tiny")
    assert done.stop_reason == "max_generations"
    assert done.n_labels == sum(g.labels["ok"] for g in steps)


def test_a_stage_that_fails_is_named_and_the_search_goes_on_afterwards(tiny_config, tmp_path, monkeypatch, finished):
    folder = tmp_path / "search"
    with monkeypatch.context() as patch:
        patch.setattr(makers.train, "train", failing(1, makers.train.train))
        with pytest.raises(StopError, match=r"`train 001` failed \(RuntimeError: the disk is full\).* resume"):
            run_search(tiny_config(), folder)
    store = open_store(folder)
    before = completed(store)
    assert "label 001.collect/1" in before
    assert "train 001/1" not in before
    assert report(store, "tiny") is None
    with pytest.raises(ConfigError, match="holds a search already"):
        run_search(tiny_config(), folder)

    done = resume_search(folder)
    after = completed(open_store(folder))
    assert {name: after[name] for name in before} == before  # nothing was calculated twice
    undisturbed = report(open_store(finished), "tiny")
    assert done.phases == undisturbed.phases
    assert done.stop_reason == undisturbed.stop_reason
    assert resume_search(folder) == done
    assert completed(open_store(folder)) == after


def test_a_search_that_was_interrupted_at_its_end_only_ends(tiny_config, tmp_path, monkeypatch):
    folder = tmp_path / "search"
    with monkeypatch.context() as patch:
        patch.setattr(makers.report, "phase_store", failing(0, makers.report.phase_store))
        with pytest.raises(StopError, match="`report 001` failed"):
            run_search(tiny_config(advance__max_generations=2), folder)
    assert [g.stop for g in generations(open_store(folder), "tiny")] == [False, True]
    before = completed(open_store(folder))
    done = resume_search(folder)
    assert done.generations == 2
    assert [g.stop for g in generations(open_store(folder), "tiny")] == [False, True]
    new = completed(open_store(folder)).keys() - before.keys()
    assert {name.split("/")[0] for name in new} == {"report 001"}


@pytest.mark.usefixtures("calculators")
def test_too_many_failed_labels_stop_the_search(tiny_config, tmp_path):
    folder = tmp_path / "search"
    config = tiny_config(
        label__calculator="search_calculators:counting",
        label__settings={"fail": "Au"},
        label__max_failed_fraction=0.0,
        advance__max_generations=1,
    )
    with pytest.raises(StopError, match=r"`label 000.collect` failed .*LabelError"):
        run_search(config, folder)
    assert read_labels(open_store(folder), "tiny")  # those that succeeded are kept


def test_resume_needs_a_search(tmp_path: Path):
    with pytest.raises(ConfigError, match="expected the folder of a search"):
        resume_search(tmp_path)


def test_unfinished_leaves_out_what_is_done(finished, tiny_config):
    flow = SearchMaker(tiny_config()).make()
    assert not unfinished(flow, open_store(finished)).jobs
    other = SearchMaker(tiny_config(seed=2)).make()
    assert len(unfinished(other, open_store(finished)).jobs) == len(list(other.iterflow()))


def test_listening_to_failures_leaves_the_log_as_it_was(tiny_config, tmp_path, monkeypatch):
    logger = logging.getLogger("jobflow.managers.local")
    handlers, level = list(logger.handlers), logger.level
    monkeypatch.setattr(makers.train, "train", failing(0, makers.train.train))
    with pytest.raises(StopError, match="`train 000` failed"):
        run_search(tiny_config(generate__n_initial=8), tmp_path / "search")
    assert (logger.handlers, logger.level) == (handlers, level)
