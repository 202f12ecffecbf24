"""A relaxation and a training that are killed go on where they were, and the search ends as if nothing had happened."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

import acnn.relax.journal
import acnn.relax.relaxer
import acnn.train.loop
import makers.relax
from workflows.results import generations, ledger, report
from workflows.run import open_store, resume_search

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


class Killed(BaseException):
    """The end of a process: no handler of errors sees it."""


@pytest.fixture
def begun(finished, tmp_path) -> Path:
    """Return the folder of a search whose last generation is still to come."""
    folder = tmp_path / "search"
    shutil.copytree(finished, folder)
    store = open_store(folder)
    store.docs_store.remove_docs({"metadata.generation": {"$gte": 2}})
    assert [g.generation for g in generations(store, "tiny")] == [0, 1]
    return folder


def same_end(folder: Path, finished: Path) -> None:
    """Compare with the undisturbed search: what was found, and what it cost."""
    mine, theirs = open_store(folder), open_store(finished)
    last, wanted = generations(mine, "tiny")[-1], generations(theirs, "tiny")[-1]
    assert last.generation == wanted.generation == 2
    assert last.statuses == wanted.statuses
    assert last.state.started == wanted.state.started
    assert ledger(mine, "tiny").attempts == ledger(theirs, "tiny").attempts
    assert sorted(p.formula for p in report(mine, "tiny").phases) == sorted(
        p.formula for p in report(theirs, "tiny").phases
    )
    assert not list((folder / "scratch" / "tiny").iterdir())  # nothing stays behind


def dying(real: Callable[..., Iterator[Any]], n: int) -> Callable[..., Iterator[Any]]:
    """Return a relaxation whose process ends after so many structures."""

    def relax(*args: Any, **kwargs: Any) -> Iterator[Any]:  # noqa: ANN401 - any signature
        for number, result in enumerate(real(*args, **kwargs)):
            if number == n:
                raise Killed
            yield result

    return relax


def test_killed_relaxation_goes_on(begun, finished, monkeypatch):
    monkeypatch.setattr(acnn.relax.journal, "FLUSH_RESULTS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(makers.relax, "relax", dying(makers.relax.relax, 4))
        with pytest.raises(Killed):
            resume_search(begun)
    [left] = (begun / "scratch" / "tiny" / "002").iterdir()
    kept = len(list(left.glob("part-*.npz")))
    assert kept >= 4

    relaxed: list[int] = []
    run = acnn.relax.relaxer._run

    def counting(jobs: Iterator[Any], *args: Any) -> Iterator[Any]:  # noqa: ANN401 - any signature
        relaxed.append(0)

        def count() -> Iterator[Any]:
            for job in jobs:
                relaxed[-1] += 1
                yield job

        return run(count(), *args)

    monkeypatch.setattr(acnn.relax.relaxer, "_run", counting)
    resume_search(begun)
    n_all = sum(generations(open_store(begun), "tiny")[-1].statuses.values())
    assert sum(relaxed) == n_all - kept
    same_end(begun, finished)


def test_killed_training_goes_on(begun, finished, monkeypatch):
    monkeypatch.setattr(acnn.train.loop, "SAVE_SECONDS", -1.0)
    steps: list[int] = []

    def step(run: Any, progress: float) -> None:  # noqa: ANN401 - the loop's own class
        if len(steps) == 20:
            raise Killed
        steps.append(run.state.step)
        real(run, progress)

    real = acnn.train.loop._Run._step
    with monkeypatch.context() as patch:
        patch.setattr(acnn.train.loop._Run, "_step", step)
        with pytest.raises(Killed):
            resume_search(begun)
    assert steps == list(range(20))

    went_on: list[int] = []

    def watched(run: Any, progress: float) -> None:  # noqa: ANN401 - the loop's own class
        went_on.append(run.state.step)
        real(run, progress)

    monkeypatch.setattr(acnn.train.loop._Run, "_step", watched)
    resume_search(begun)
    assert went_on[0] == 20
    same_end(begun, finished)
