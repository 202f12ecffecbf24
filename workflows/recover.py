"""What became of the jobs of a search under FireWorks: which were lost, failed or forgotten, and which run again."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from fireworks.core.launchpad import LockedWorkflowError, WFLock
from fireworks.fw_config import QUEUE_UPDATE_INTERVAL, RESERVATION_EXPIRATION_SECS
from fireworks.utilities.fw_utilities import get_my_host

from workflows.jobs import find_orphans, read_jobs, read_time

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fireworks import LaunchPad

    from workflows.jobs import Job
    from workflows.queue import Queue

ALIVE = ("RUNNING", "RESERVED")
BEGUN = (*ALIVE, "COMPLETED", "FIZZLED")
HELD = ("PAUSED", "DEFUSED")
STARVED = "Could not resolve reference"  # jobflow, in a job whose input is missing


class Trouble(StrEnum):
    """What is the matter with a job."""

    LOST = "lost"  # its process gives no sign of life
    FAILED = "failed"
    UNRECORDED = "unrecorded"  # its launch has ended, but the workflow does not know it
    FORGOTTEN = "forgotten"  # its parents have ended, but nobody told it
    STUCK = "stuck in the queue"
    ORPHANED = "in no workflow"  # whoever made it ended before it could tell the workflow
    HELD = "held"  # somebody paused or defused it


class Action(StrEnum):
    """What is done about it."""

    RERUN = "runs again"
    FOLLOWS = "runs again after an earlier one"
    REFRESH = "is looked at again"
    RELEASE = "goes back to the queue of jobs"
    REMOVE = "is removed"
    LEAVE = "is left"


@dataclass(frozen=True)
class Case:
    """A job in trouble.

    Parameters
    ----------
    fw_id
        Its number in FireWorks.
    name
        Its name, as ``label 003.1``.
    trouble
        What is the matter.
    age
        Since when, s.
    why
        In words.
    action
        What is done.
    """

    fw_id: int
    name: str
    trouble: Trouble
    age: float
    why: str
    action: Action


def orphans(launchpad: LaunchPad, project: str, expiration: float) -> list[Case]:
    """Find the jobs that no workflow holds, and have been so for long.

    Parameters
    ----------
    launchpad
        The LaunchPad.
    project
        The search.
    expiration
        Time after which their workflow counts as forgotten, s.

    Returns
    -------
    list[Case]
        To be removed.
    """
    now = datetime.now(UTC)
    aged = [(orphan, (now - orphan.stored).total_seconds()) for orphan in find_orphans(launchpad, project)]
    why = "whoever brought it forth ended before it could enter it in a workflow"
    return [
        Case(orphan.fw_id, orphan.name, Trouble.ORPHANED, max(0.0, age), why, Action.REMOVE)
        for orphan, age in aged
        if age > expiration
    ]


def diagnose(launchpad: LaunchPad, jobs: dict[int, Job], expiration: float, queue: Queue | None = None) -> list[Case]:
    """Find the jobs in trouble and decide what to do about each.

    A job runs again only if nothing that came after its stage has begun: what went on without it was meant to, and a
    job that has brought forth others would bring them forth a second time.

    Parameters
    ----------
    launchpad
        The LaunchPad.
    jobs
        The jobs of a search.
    expiration
        Time without a sign of life after which a job counts as lost, s.
    queue
        What the queue of this machine knows, asked before the jobs were read; None if it did not answer.

    Returns
    -------
    list[Case]
        By number.
    """
    query = {"fw_id": {"$in": list(jobs)}}
    _, lost, _ = launchpad.detect_lostruns(expiration_secs=expiration, query=query)
    silent = datetime.now(UTC) - timedelta(seconds=expiration)
    cases = [_case(job, jobs, lost, silent, queue) for job in jobs.values()]
    found = sorted((case for case in cases if case is not None), key=lambda case: case.fw_id)
    again = {case.fw_id for case in found if case.action == Action.RERUN}
    later = {below for number in again for below in _below(number, jobs)}
    return [replace(case, action=Action.FOLLOWS) if case.fw_id in again & later else case for case in found]


def _case(job: Job, jobs: dict[int, Job], lost: Iterable[int], silent: datetime, queue: Queue | None) -> Case | None:
    seen = _last_seen(job)
    launched = (job.launch or {}).get("state")
    halfway = job.state == "COMPLETED" != job.recorded and seen < silent  # FireWorks writes the workflow last
    if halfway or (job.state == "RUNNING" and launched in ("COMPLETED", "FIZZLED")):
        why = "its end was not carried over into the workflow"
        return _told(job, Trouble.UNRECORDED, seen, why, Action.REFRESH)
    if job.fw_id in lost or job.state == "FIZZLED":
        return _dead(job, jobs, seen)
    if job.state == "RESERVED":
        return _reserved(job, seen, silent, queue)
    if job.state in HELD:
        tool = "resume_fws" if job.state == "PAUSED" else "reignite_fws"
        why = f"{job.state}: `lpad {tool} -i {job.fw_id}` sets it free"
        return _told(job, Trouble.HELD, job.updated, why, Action.LEAVE)
    if job.state == "WAITING" and all(_has_ended(jobs[n], job) for n in job.parents if n in jobs):
        why = "everything that it waited for has ended"
        return _told(job, Trouble.FORGOTTEN, job.updated, why, Action.REFRESH)
    return None


def _reserved(job: Job, seen: datetime, silent: datetime, queue: Queue | None) -> Case | None:
    if job.launch is None:  # FireWorks takes a job first, and notes its launch then
        why = "whoever took it ended before it could begin"
        return _told(job, Trouble.LOST, seen, why, Action.RELEASE) if seen < silent else None
    obstacle = _obstacle(job, seen, queue)
    return _told(job, Trouble.STUCK, seen, obstacle, Action.RELEASE) if obstacle else None


def _obstacle(job: Job, since: datetime, queue: Queue | None) -> str | None:
    """Say why the queue job of a reserved job will not begin; None if it may."""
    launch = job.launch or {}
    numbers = [str(entry["reservation_id"]) for entry in launch.get("state_history", []) if "reservation_id" in entry]
    here = launch.get("host") == get_my_host()  # another machine may have another queue
    if queue is not None and here and numbers and queue.asked - since > timedelta(seconds=QUEUE_UPDATE_INTERVAL):
        return None if numbers[-1] in queue.jobs else f"its queue job {numbers[-1]} is gone: cancelled, or never began"
    if datetime.now(UTC) - since > timedelta(seconds=RESERVATION_EXPIRATION_SECS):
        return "its queue job has not begun, or is gone"
    return None


def _dead(job: Job, jobs: dict[int, Job], seen: datetime) -> Case:
    """Explain a job that was lost or has failed."""
    if job.state == "FIZZLED":
        trouble, why = Trouble.FAILED, _error(job.launch)
    else:
        host = (job.launch or {}).get("host", "its node")
        trouble, why = Trouble.LOST, f"no sign of life from {host}: killed, out of walltime, or cut off"
    if _may_rerun(job, jobs):
        return _told(job, trouble, seen, why, Action.RERUN)
    return _told(job, trouble, seen, f"{why}; the search went on without it", Action.LEAVE)


def _told(job: Job, trouble: Trouble, since: datetime, why: str, action: Action) -> Case:
    age = max(0.0, (datetime.now(UTC) - since).total_seconds())
    return Case(job.fw_id, job.name, trouble, age, why, action)


def treat(launchpad: LaunchPad, jobs: dict[int, Job], cases: Iterable[Case]) -> None:
    """Do what was decided.

    Parameters
    ----------
    launchpad
        The LaunchPad.
    jobs
        The jobs of the search.
    cases
        From `diagnose`.
    """
    for case in cases:
        if case.action == Action.REMOVE:
            if launchpad.workflows.find_one({"nodes": case.fw_id}, {"_id": 1}) is None:
                launchpad.fireworks.delete_one({"fw_id": case.fw_id})
            continue
        launch = jobs[case.fw_id].launch
        if case.action == Action.RERUN and _is_as_it_was(launchpad, jobs[case.fw_id]):
            launchpad.rerun_fw(case.fw_id)
            if case.trouble == Trouble.LOST and launch is not None:
                # only now: a job that tolerates failed parents would else begin in between
                launchpad.mark_fizzled(launch["launch_id"])
        elif case.action == Action.REFRESH:
            _reopen(launchpad, case.fw_id)
            launchpad._refresh_wf(case.fw_id)  # noqa: SLF001 - what `lpad refresh` calls
        elif case.action == Action.RELEASE and _is_as_it_was(launchpad, jobs[case.fw_id]):
            if launch is not None and launch["state"] == "RESERVED":
                launchpad.cancel_reservation(launch["launch_id"])
            else:
                launchpad.rerun_fw(case.fw_id)


def _reopen(launchpad: LaunchPad, number: int) -> None:
    """Let FireWorks look at what a job has brought forth, if its workflow does not know yet that the job has ended."""
    unknown = {"nodes": number, f"fw_states.{number}": {"$ne": "COMPLETED"}}
    with suppress(LockedWorkflowError), WFLock(launchpad, number):  # somebody may have told the workflow meanwhile
        if launchpad.workflows.find_one(unknown, {"_id": 1}) is not None:
            launchpad.fireworks.update_one({"fw_id": number, "state": "COMPLETED"}, {"$set": {"state": "RUNNING"}})


def _is_as_it_was(launchpad: LaunchPad, job: Job) -> bool:
    """Say whether a job is still in the state that was read: one that was silent may have ended since."""
    now = launchpad.fireworks.find_one({"fw_id": job.fw_id}, {"state": 1, "launches": 1, "_id": 0})
    last = now["launches"][-1] if now and now["launches"] else None
    return now is not None and (now["state"], last) == (job.state, job.launch and job.launch["launch_id"])


def recover(
    launchpad: LaunchPad, project: str, expiration: float, *, queue: Queue | None = None, dry_run: bool = False
) -> tuple[list[Case], str]:
    """Explain the jobs in trouble and run again what has to run again.

    Parameters
    ----------
    launchpad
        The LaunchPad.
    project
        The search.
    expiration
        Time without a sign of life after which a job counts as lost, s.
    queue
        What the queue of this machine knows, asked just before; None if it did not answer.
    dry_run
        Explain only.

    Returns
    -------
    tuple
        The cases, and a sentence on all the other jobs.

    Raises
    ------
    ConfigError
        If the LaunchPad holds no such search.
    """
    jobs = read_jobs(launchpad, project)
    cases = orphans(launchpad, project, expiration) + diagnose(launchpad, jobs, expiration, queue)
    if not dry_run:
        treat(launchpad, jobs, cases)
        jobs = read_jobs(launchpad, project)
    states = Counter(job.state for job in jobs.values())
    told = ", ".join(f"{n} {state.lower()}" for state, n in sorted(states.items()))
    return cases, f"{project}: {len(jobs)} jobs, {told}"


def _may_rerun(job: Job, jobs: dict[int, Job]) -> bool:
    """Say whether nothing runs below a job and nothing of a later stage has begun."""
    below = [jobs[number] for number in _below(job.fw_id, jobs)]
    begun = [other for other in below if other.state in BEGUN and not _starved(other)]
    return not any(other.state in ALIVE or other.place != job.place for other in begun)


def _starved(job: Job) -> bool:
    """Say whether a job failed only because an earlier one had: it has done nothing."""
    return job.state == "FIZZLED" and STARVED in _error(job.launch)


def _below(number: int, jobs: dict[int, Job]) -> set[int]:
    found: set[int] = set()
    todo = [number]
    while todo:
        new = [child for child in jobs[todo.pop()].children if child in jobs and child not in found]
        found.update(new)
        todo += new
    return found


def _has_ended(parent: Job, child: Job) -> bool:
    return parent.state == parent.recorded == "COMPLETED" or (child.tolerant and parent.state == "FIZZLED")


def _last_seen(job: Job) -> datetime:
    history = (job.launch or {}).get("state_history") or []
    times = [entry.get("updated_on") or entry.get("created_on") for entry in history]
    return max((read_time(time) for time in times if time), default=job.updated)


def _error(launch: dict[str, Any] | None) -> str:
    """Return the last line of the traceback of a launch."""
    stored = ((launch or {}).get("action") or {}).get("stored_data") or {}
    trace = (stored.get("_exception") or {}).get("_stacktrace") or ""
    lines = trace.strip().splitlines()
    return " ".join(lines[-1].split())[:200] if lines else "its process died"
