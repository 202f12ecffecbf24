"""Which jobs the queue of this machine knows: asked, before a reserved job of FireWorks is believed to be in it."""

from __future__ import annotations

import getpass
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime

LISTING = {
    "SLURM": ("--noheader", "--format=%A", "--user"),
    "PBS": ("-u",),
    "SGE": ("-u",),
    "LoadSharingFacility": ("-noheader", "-o", "jobid", "-u"),
}
"""What follows the command that lists jobs, by FireWorks' name of the scheduler; the name of the user comes last."""

PATIENCE = 60.0  # s


@dataclass(frozen=True)
class Queue:
    """What the queue said.

    Parameters
    ----------
    asked
        When it was asked.
    jobs
        Numbers of the user's jobs that wait or run; other numbers may be among them.
    """

    asked: datetime
    jobs: frozenset[str]


def ask(scheduler: str, command: str) -> Queue | None:
    """Ask the queue for the jobs of this user.

    Parameters
    ----------
    scheduler
        As FireWorks names it.
    command
        What lists jobs.

    Returns
    -------
    Queue or None
        None if the scheduler is of another kind or does not answer.
    """
    asked = datetime.now(UTC)
    if scheduler not in LISTING:
        return None
    try:
        said = subprocess.run(  # noqa: S603 - the command of the queue adapter
            [command, *LISTING[scheduler], getpass.getuser()],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return Queue(asked, frozenset(re.findall(r"\d+", said.stdout)))
