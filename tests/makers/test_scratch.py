"""The folder of a job that is launched again: the same one, kept until the generation is over, never in the way."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

import pytest
from jobflow import JobStore, run_locally

from acnn.errors import ModelError
from makers.scratch import LOCK, SCRATCH_VARIABLE, drop_checkpoints, resumable
from makers.stage import stage_job

if TYPE_CHECKING:
    from pathlib import Path


class Work:
    """What a job does: it leaves a file, and fails as often as it is told to."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.found: list[list[str] | None] = []

    def __call__(self, folder: Path | None) -> str:
        """Look at the folder, leave a file there, and fail or not."""
        self.found.append(None if folder is None else sorted(p.name for p in folder.iterdir() if p.name != LOCK))
        if folder is not None:
            (folder / f"state-{len(self.found)}").write_text("x")
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def launch(work: Work, store: JobStore) -> str | None:
    """Launch the same job, each time in a folder of its own."""

    @stage_job()
    def long_job() -> str:
        return resumable(work)

    job = long_job()
    job.set_uuid("job-1")
    job.update_metadata({"project": "mine", "stage": "relax", "generation": 2})
    response = run_locally(job, store=store, log=False, create_folders=True)
    return response[job.uuid][1].output if response else None


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def test_a_second_launch_finds_what_the_first_left(root, job_store):
    work = Work(RuntimeError("killed"))
    assert launch(work, job_store) is None
    assert launch(work, job_store) == "done"
    assert work.found == [[], ["state-1"]]
    folder = root / "mine" / "002" / "job-1"
    assert folder.is_dir()  # the output might not be stored yet
    drop_checkpoints("mine", 1)
    assert folder.is_dir()
    drop_checkpoints("mine", 2)
    assert not folder.exists()
    drop_checkpoints("mine", 2)


@pytest.mark.parametrize("error", [ModelError("of other labels"), ValueError("damaged")])
def test_what_cannot_be_used_is_thrown_away(root, job_store, error):
    del root
    work = Work(RuntimeError("killed"), error)
    launch(work, job_store)
    assert launch(work, job_store) == "done"
    assert work.found == [[], ["state-1"], []]


def test_an_error_at_the_first_launch_is_no_fault_of_the_folder(root, job_store):
    del root
    work = Work(ValueError("bad label"))
    assert launch(work, job_store) is None
    assert len(work.found) == 1


def test_two_processes_do_not_share_a_folder(root, job_store):
    folder = root / "mine" / "002" / "job-1"
    folder.mkdir(parents=True)
    work = Work()
    with (folder / LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert launch(work, job_store) == "done"
    assert work.found == [None]
    assert launch(work, job_store) == "done"
    assert work.found == [None, []]


def test_a_folder_that_cannot_be_made_is_done_without(root, job_store, caplog):
    root.touch()  # a file where the folder should be
    work = Work()
    assert launch(work, job_store) == "done"
    assert work.found == [None]
    assert "it cannot be made (Not a directory); going on without the folder" in caplog.text


def test_without_a_root_nothing_is_kept(job_store, monkeypatch):
    monkeypatch.delenv(SCRATCH_VARIABLE, raising=False)
    work = Work()
    assert launch(work, job_store) == "done"
    assert work.found == [None]
    drop_checkpoints("mine", 2)
