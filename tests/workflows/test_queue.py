"""What the queue says of its jobs, in the words of each scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from workflows.cluster import site_here, write_working_set
from workflows.launch import ask_queue
from workflows.queue import LISTING, ask

if TYPE_CHECKING:
    from pathlib import Path

SAID = {
    "SLURM": "17\n23\n",
    "PBS": """
pbs:
                                                            Req'd  Req'd   Elap
Job ID          Username Queue    Jobname    SessID NDS TSK Memory Time  S Time
--------------- -------- -------- ---------- ------ --- --- ------ ----- - -----
17.pbs          me       batch    hullseeker  12345   1  16    --  24:00 R 00:10
23.pbs          me       batch    hullseeker    --    1  16    --  24:00 Q   --
""",
    "SGE": """job-ID  prior   name       user         state submit/start at     queue       slots ja-task-ID
------------------------------------------------------------------------------------------------
     17 0.55500 hullseeker me           r     11/25/2026 10:00:00 all.q@node         16
     23 0.00000 hullseeker me           qw    11/25/2026 10:05:00                    16
""",
    "LoadSharingFacility": "17\n23\n",
}


def program(folder: Path, said: str, status: int = 0) -> str:
    """Write a program that notes how it is called, says something and ends."""
    (folder / "said").write_text(said)
    path = folder / "list-jobs"
    path.write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\ncat {folder}/said\nexit {status}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("scheduler", LISTING)
def test_the_jobs_that_the_queue_knows(scheduler, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGNAME", "me")
    queue = ask(scheduler, program(tmp_path, SAID[scheduler]))
    assert {"17", "23"} <= queue.jobs
    assert not {"1", "42"} & queue.jobs - set(SAID[scheduler].replace(":", " ").split())
    assert (tmp_path / "asked").read_text().split()[-1] == "me"


def test_a_queue_that_does_not_answer(tmp_path):
    assert ask("SLURM", program(tmp_path, "slurm_load_jobs error", 1)) is None
    assert ask("SLURM", str(tmp_path / "missing")) is None
    assert ask("Cobalt", program(tmp_path, "17")) is None
    assert ask("SLURM", program(tmp_path, "")).jobs == frozenset()


def test_the_working_set_says_whom_to_ask(tmp_path, monkeypatch):
    folder = tmp_path / "config"
    folder.mkdir()
    monkeypatch.setattr("workflows.launch.fw_config.CONFIG_FILE_DIR", str(folder))
    assert ask_queue() is None
    write_working_set(site_here(folder, "slurm", "localhost", "mine", None))
    (tmp_path / "squeue").symlink_to(program(tmp_path, "17\n"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert ask_queue().jobs == {"17"}
