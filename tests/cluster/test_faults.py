"""What happens on a supercomputer: after `hullseeker resume` the answer is that of a search which nothing disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from campaign import EXPIRATION, wait_for

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from campaign import Campaign
    from conftest import Reference

pytestmark = [pytest.mark.slurm, pytest.mark.loopback]

GENERATIONS = 3
LAUNCHERS = 2
KILLS = [
    "generate 000.0.after",
    "train 000.before",
    "advance 000.after",
    "relax 001.0.before",
    "select 001.after",
    "report 002.before",
]
"""In every stage: when a job has begun, or when its output is stored and FireWorks does not know it yet."""


def assert_undisturbed(search: Campaign, reference: Callable[[int], Reference]) -> Counter[str]:
    """Compare with the search that nothing disturbed; return the calculations that were begun once more."""
    answer, calculations = reference(GENERATIONS)
    assert search.answer() == answer
    assert not calculations - search.calculations()
    return search.calculations() - calculations


def lasting(again: Counter[str]) -> list[str]:
    """Leave out the labels that crash: they have no result to keep."""
    return [line for line in again.elements() if not line.startswith("Au2 ")]


def test_launchers_killed_in_every_stage(campaign, reference):
    search = campaign(launchers=LAUNCHERS)
    for kill in KILLS:
        search.befall(f"{kill}.kill")
    search.befall("calculation.kill")
    search.submit()
    with search.launching(spare=True):
        search.wait_until_done()
    assert all(search.befallen(f"{kill}.killed") for kill in [*KILLS, "calculation"])
    again = assert_undisturbed(search, reference)
    assert len(lasting(again)) <= 1  # the one that was in work


def test_database_away_for_seconds_and_for_a_minute(campaign, database, reference):
    search = campaign(launchers=LAUNCHERS)
    outages = {search.hold("train 000"): 5, search.hold("relax 001.0"): 60}
    search.submit()
    for held, seconds in outages.items():
        with search.launching():
            search.wait_until_held(held)
            database.kill()
            held.release()  # the job ends while there is nobody to tell
            time.sleep(seconds)
            database.start()
            give_signs = time.monotonic() + EXPIRATION
            wait_for(lambda limit=give_signs: time.monotonic() > limit, "whoever lives has given a sign")
    with search.launching():
        search.wait_until_done()
    assert not lasting(assert_undisturbed(search, reference))


def test_disk_full_and_walltime_over(campaign, slurm, reference):
    search = campaign(launchers=LAUNCHERS, walltime="00:01:00")
    over = search.hold("label 001.1")
    full = search.hold("train 000")
    search.submit()
    with small_disk(search.folder / "small") as disk:
        with search.launching(disk):
            search.wait_until_held(full)
            fill(disk / "filler")
            full.release()
            wait_for(lambda: "FIZZLED" in search.states() or search.lost(), "a job fails for want of space")
        slurm.cancel()
        (disk / "filler").unlink()
        search.resume()
        with search.launching(disk):
            search.wait_until_held(over)
            wait_for(lambda: not slurm.jobs(), "Slurm ends the launchers")
            over.release()
            search.wait_until_done()
        slurm.cancel()
    assert_undisturbed(search, reference)  # the next walltime may end a relaxation amid its steps


def test_node_that_never_answers_and_launcher_that_comes_back(campaign, slurm, reference):
    search = campaign(launchers=LAUNCHERS)
    asleep, frozen = search.hold("train 000"), search.hold("relax 001.0")
    search.submit()
    with search.launching():
        sleeper = search.wait_until_held(asleep)
        os.kill(sleeper, signal.SIGSTOP)
        asleep.release()
        wait_for(search.lost, "the sleeping launcher is missed")
        search.resume()  # the other launcher takes its job
        process = search.wait_until_held(frozen)
        os.kill(sleeper, signal.SIGCONT)  # and finds that it is late
        os.kill(process, signal.SIGSTOP)
        slurm.freeze()
        frozen.release()
        wait_for(lambda: "relax 001.0" in search.lost(), "the frozen node is missed")
        search.resume()
        slurm.thaw()
        search.wait_until_done()
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)
    assert len([line for line in search.jobs() if line.split("\t")[1] == "train 000"]) == 2
    assert not lasting(assert_undisturbed(search, reference))


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        pytest.skip(f"no disk of 4 MB to fill: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S603, S607


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"\0" * 4096)
