"""Processes that relax for another end when it does, and their end is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest
from analytic import Morse, random_crystals

from acnn.config import RelaxConfig
from acnn.errors import NumericalError
from acnn.relax import parallel, relax

LONGEST = 60.0
"""Time after which a process counts as one that never ends, s."""

PROGRAM = """
from itertools import cycle
from multiprocessing import active_children
from analytic import Morse, random_crystals
from acnn.config import RelaxConfig
from acnn.relax import relax

if __name__ == "__main__":
    frames = cycle(random_crystals(8, 20, (6, 8)))
    results = relax(frames, Morse(), RelaxConfig(batch_atoms=16, workers=2), pressure_gpa=0.0)
    next(results)
    print(*[child.pid for child in active_children()], flush=True)
"""


class Speechless(Morse):
    """Fails with an error that no other process can be told."""

    def compute(self, *_: object) -> NoReturn:
        """Fail."""
        raise ValueError(lambda: None)


def start(folder: Path, rest: str) -> subprocess.Popen[str]:
    """Run a program that has relaxed the first of endlessly many structures, and then goes on as told."""
    (folder / "program.py").write_text(PROGRAM + rest)
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "program.py")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603 - our own program


def test_a_caller_that_has_enough_can_end(tmp_path: Path):
    process = start(tmp_path, "    results.close()\n")
    assert process.communicate(timeout=LONGEST)[0].split()
    assert process.returncode == 0


def test_no_process_outlives_a_caller_that_was_killed(tmp_path: Path):
    process = start(tmp_path, "    list(results)\n")
    assert process.stdout is not None
    children = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.communicate()
    assert len(children) == 2
    deadline = time.monotonic() + LONGEST
    while any(runs(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in children if runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def runs(pid: int) -> bool:
    """Tell whether a process has not ended; one that waits to be buried has."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_error_that_cannot_be_told_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel, "PATIENCE", 0.5)
    frames = random_crystals(8, 3, (2, 2))
    with pytest.raises(NumericalError, match="exit code 0"):
        list(relax(frames, Speechless(), RelaxConfig(workers=2), pressure_gpa=0.0))
