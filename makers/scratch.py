"""Where long jobs keep what they have done: a folder that is the same whenever and wherever a job is launched again.

FireWorks gives each launch a folder of its own, so what a killed launch has written there is of no use to the next.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from zipfile import BadZipFile

from jobflow import CURRENT_JOB

from acnn.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jobflow import Job

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCRATCH_VARIABLE = "HULLSEEKER_SCRATCH"
"""Names the root of the folders; without it nothing is kept."""

LOCK = ".lock"
UNUSABLE = (ModelError, ValueError, KeyError, EOFError, BadZipFile)
"""What reading the leftovers of other settings, or damaged ones, raises."""


def resumable(work: Callable[[Path | None], T]) -> T:
    """Do the work of the running job in its folder; what an earlier launch has left there is gone on from.

    The folder stays until `drop_checkpoints`: the output of this job is not stored yet. Leftovers that cannot be used
    are thrown away. While another process works in the folder (a launch that was believed dead), and where the folder
    cannot be made, the job does without.

    Parameters
    ----------
    work
        Given the folder, or None if there is none, it does the work.

    Returns
    -------
    T
        What it returns.
    """
    folder = _folder_of(CURRENT_JOB.job)
    if folder is None:
        return work(None)
    with _entered(folder) as obstacle:
        if obstacle is not None:
            logger.warning("%s: %s; going on without the folder", folder, obstacle)
            return work(None)
        begun = any(path.name != LOCK for path in folder.iterdir())
        try:
            return work(folder)
        except UNUSABLE as error:
            if not begun:
                raise
            logger.warning("%s: what an earlier launch left cannot be used (%s); beginning again", folder, error)
        _empty(folder)
        return work(folder)


def drop_checkpoints(project: str, generation: int) -> None:
    """Remove the folders of the jobs of a generation, whose outputs are stored by now.

    Parameters
    ----------
    project
        The search.
    generation
        Its number.
    """
    root = os.environ.get(SCRATCH_VARIABLE)
    if root:
        shutil.rmtree(_folder(root, project, generation), ignore_errors=True)


def _folder(root: str, project: str, generation: int) -> Path:
    return Path(root) / project / f"{generation:03d}"


def _folder_of(job: Job | None) -> Path | None:
    root = os.environ.get(SCRATCH_VARIABLE)
    if not root or job is None or not job.metadata.get("project"):
        return None
    return _folder(root, job.metadata["project"], job.metadata["generation"]) / job.uuid


@contextmanager
def _entered(folder: Path) -> Iterator[str | None]:
    """Say what keeps this process from working in a folder, if anything; the lock ends with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        yield f"it cannot be made ({error.strerror})"
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield "another process works on this job"
            return
        except OSError:
            logger.warning("%s: this file system has no locks", folder)
        yield None


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
