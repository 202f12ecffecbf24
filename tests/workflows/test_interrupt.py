"""Ctrl-C in the label stage: no finished label is lost or calculated again, and nothing stays running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from makers.labelling import read_labels
from workflows.run import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration

PATIENCE = 120.0  # s, for what takes a few on an idle machine
CLI = [sys.executable, "-c", "from workflows.cli import main; main()"]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def workers_of(folder: Path) -> list[int]:
    """Return the processes that live in a folder: label workers, wherever they were started from."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                where = (entry / "cwd").readlink()
            except OSError:
                continue
            if where.is_relative_to(folder):
                found.append(int(entry.name))
    return found


def test_interrupted_search_keeps_its_labels_and_goes_on(search_file, calculators, tmp_path):
    log, folder = tmp_path / "calculations.txt", tmp_path / "search"
    file = search_file(
        label__calculator="search_calculators:counting",
        label__settings={"log": str(log), "seconds": 0.3},
        label__workers=2,
        advance__max_generations=1,
        advance__final_max=1,
    )
    paths = os.pathsep.join([str(calculators), *(path for path in sys.path if path)])
    environment = os.environ | {"PYTHONPATH": paths}
    run = subprocess.Popen(  # noqa: S603 - our own program
        [*CLI, "run", str(file), "--dir", str(folder)], env=environment, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(lines(log)) >= 4, run)
    assert workers_of(folder)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130
    assert f"go on with `hullseeker resume {folder}`" in said
    assert "Traceback" not in said
    wait_for(lambda: not workers_of(folder))

    kept = {label.label_id: label.provenance for label in read_labels(open_store(folder), "tiny")}
    n_started = len(lines(log))
    assert 3 <= len(kept) < 24
    assert n_started - len(kept) <= 2  # at most what was in work

    Path(f"{log}.fast").touch()
    resumed = subprocess.run(  # noqa: S603 - our own program
        [*CLI, "resume", str(folder)], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "results in" in resumed.stdout
    labels = read_labels(open_store(folder), "tiny", kind="single_point")
    assert len(labels) == 24
    again = {label.label_id: label.provenance for label in labels if label.label_id in kept}
    assert again == kept  # the very calculations of before, with their times
    singles = [line for line in lines(log)[n_started:] if "\n" not in line][: 24 - len(kept)]
    assert len(singles) == 24 - len(kept)
    assert not workers_of(folder)
