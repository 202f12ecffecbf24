"""What happens on a supercomputer: after `hullseeker resume` the answer is that of a search which nothing disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from campaign import differences, wait_for
from working_set import EXPIRATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from campaign import Campaign
    from conftest import Reference

GENERATIONS = 3
LAUNCHERS = 4
KILLS = [
    "generate 000.0.stored",
    "train 000.amid",
    "advance 000.after",
    "relax 001.0.amid",
    "select 001.after",
    "label 001.taken",
    "advance 001.halfway",
    "report 002.before",
]
"""In every stage, each at another moment: see worker/sitecustomize.py."""


def assert_undisturbed(search: Campaign, reference: Callable[[int], Reference]) -> Counter[str]:
    """Compare with the search that nothing disturbed; return the calculations that were begun once more."""
    answer, calculations = reference(GENERATIONS)
    assert not differences(search.answer(), answer)
    assert not calculations - search.calculations()
    return search.calculations() - calculations


def lasting(again: Counter[str]) -> list[str]:
    """Leave out the labels that crash: they have no result to keep."""
    return [line for line in again.elements() if not line.startswith("Au2 ")]


def assert_nothing_was_done_twice(search: Campaign, job: str) -> None:
    """Look at a job that was killed amid: the second launch went on where the first had been."""
    steps = search.steps(job)
    assert sorted(steps) == list(range(len(steps)))
    assert len([run for run in search.runs() if run.name == job]) > 1


def test_launchers_killed_in_every_stage(any_campaign, reference):
    search = any_campaign(launchers=LAUNCHERS)
    for kill in KILLS:
        search.befall(f"{kill}.kill")
    search.befall("calculation.kill")
    search.submit()
    with search.launching(spare=True):
        search.wait_until_done()
    assert all(search.befallen(f"{kill}.killed") for kill in [*KILLS, "calculation"])
    again = assert_undisturbed(search, reference)
    assert len(lasting(again)) <= 1  # the one that was in work
    assert_nothing_was_done_twice(search, "train 000")
    assert_nothing_was_done_twice(search, "relax 001.0")


def test_database_away_for_seconds_and_for_a_minute(campaign_with_outages, reference):
    search = campaign_with_outages(launchers=LAUNCHERS)
    outages = {search.hold("train 000"): 5, search.hold("relax 001.0"): 60}
    search.submit()
    for held, seconds in outages.items():
        with search.launching():
            search.wait_until_held(held)
            search.database.kill()
            held.release()  # the job ends while there is nobody to tell
            time.sleep(seconds)
            search.database.start()
            give_signs = time.monotonic() + EXPIRATION
            wait_for(lambda limit=give_signs: time.monotonic() > limit, "whoever lives has given a sign")
    with search.launching():
        search.wait_until_done()
    assert not lasting(assert_undisturbed(search, reference))


@pytest.mark.slurm
@pytest.mark.loopback
def test_disk_of_the_launchers_full_and_scratch_full_from_the_beginning(campaign, slurm, reference):
    search = campaign(launchers=LAUNCHERS)
    full = search.hold("train 000")
    search.submit()
    with small_disk(search.site / "scratch") as scratch, small_disk(search.folder / "small") as disk:
        fill(scratch / "filler")
        with search.launching(disk):
            search.wait_until_held(full)
            fill(disk / "filler")
            full.release()
            search.wait_for(search.is_in_trouble, "a job fails for want of space")
        slurm.cancel()
        (disk / "filler").unlink()
        search.resume()
        with search.launching(disk):
            search.wait_until_done()
        slurm.cancel()
        assert not [*scratch.rglob("*.safetensors"), *scratch.rglob("*.npz")]
    assert not lasting(assert_undisturbed(search, reference))


@pytest.mark.slurm
@pytest.mark.loopback
def test_walltime_over_and_node_that_never_answers(campaign, slurm, reference):
    search = campaign(launchers=LAUNCHERS, walltime=1)
    over, frozen = search.hold("train 000"), search.hold("relax 001.0")
    search.submit()
    with search.launching():
        search.wait_until_held(over)
        search.wait_for(lambda: "train 000" in search.lost(), "Slurm ends the launcher")
    over.release()
    search.allow(30)
    with search.launching():
        process = search.wait_until_held(frozen)
        os.kill(process, signal.SIGSTOP)
        slurm.freeze()
        frozen.release()
        search.wait_until_lost("relax 001.0")
        slurm.thaw()
        search.wait_until_done()
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)
    assert not lasting(assert_undisturbed(search, reference))


def test_launchers_that_come_back_to_jobs_which_others_have_done(any_campaign, reference):
    search = any_campaign(launchers=LAUNCHERS)
    doubled = {job: search.hold(job) for job in ("label 000", "train 000", "advance 000")}
    search.submit()
    late = None
    with search.launching():
        for job, held in doubled.items():
            sleeper = search.wait_until_held(held)
            if late is not None:
                os.kill(late, signal.SIGCONT)
            os.kill(sleeper, signal.SIGSTOP)
            held.release()
            search.wait_until_lost(job)  # another launcher takes it
            late = sleeper
        search.wait_for(lambda: search.has_begun("generate 001.0"), "the search goes on")
        os.kill(late, signal.SIGCONT)
        search.wait_until_done()
    begun = Counter(run.name for run in search.runs())
    assert {job: begun[job] for job in doubled} == dict.fromkeys(doubled, 2)
    names = Counter(fw["name"] for fw in search.fireworks() if fw["name"] != "store_inputs")
    assert set(names.values()) == {1}  # what the two launches of a job brought forth is there once
    assert not lasting(assert_undisturbed(search, reference))


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
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
