"""The jobs of a search on the LaunchPad, as FireWorks knows them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from makers.errors import ConfigError

if TYPE_CHECKING:
    from fireworks import LaunchPad


@dataclass(frozen=True)
class Job:
    """A job of the search, as far as it is needed here.

    Parameters
    ----------
    fw_id
        Its number.
    name
        Its name.
    state
        Its state in FireWorks.
    recorded
        Its state as its workflow knows it.
    place
        Stage and generation.
    tolerant
        Whether it runs although a parent failed.
    updated
        When it changed.
    launch
        Its last launch, if it has one.
    parents
        Numbers of the jobs that it waits for.
    children
        Numbers of the jobs that wait for it.
    """

    fw_id: int
    name: str
    state: str
    recorded: str
    place: tuple[Any, Any]
    tolerant: bool
    updated: datetime
    launch: dict[str, Any] | None
    parents: tuple[int, ...]
    children: tuple[int, ...]


def read_jobs(launchpad: LaunchPad, project: str) -> dict[int, Job]:
    """Read the jobs of a search.

    Parameters
    ----------
    launchpad
        The LaunchPad.
    project
        The search.

    Returns
    -------
    dict[int, Job]
        By number; archived workflows are left out.

    Raises
    ------
    ConfigError
        If the LaunchPad holds no such search.
    """
    wanted = {"metadata.project": project, "state": {"$ne": "ARCHIVED"}}
    workflows = list(launchpad.workflows.find(wanted, {"nodes": 1, "links": 1, "fw_states": 1, "_id": 0}))
    if not workflows:
        known = sorted(str(name) for name in launchpad.workflows.distinct("metadata.project") if name)
        raise ConfigError(
            f"--project: the LaunchPad holds no search {project!r}; it knows {', '.join(known) or 'none'}"
        )
    links = {int(parent): tuple(below) for flow in workflows for parent, below in flow["links"].items()}
    parents: dict[int, list[int]] = {}
    for parent, below in links.items():
        for child in below:
            parents.setdefault(child, []).append(parent)
    numbers = [number for flow in workflows for number in flow["nodes"]]
    recorded = {int(number): state for flow in workflows for number, state in flow["fw_states"].items()}
    fields = {"fw_id": 1, "name": 1, "state": 1, "launches": 1, "updated_on": 1, "_id": 0}
    fields |= dict.fromkeys(("spec.stage", "spec.generation", "spec._allow_fizzled_parents"), 1)
    found = list(launchpad.fireworks.find({"fw_id": {"$in": numbers}}, fields))
    last = [fw["launches"][-1] for fw in found if fw["launches"] and fw["state"] not in ("COMPLETED", "ARCHIVED")]
    launches = {doc["launch_id"]: doc for doc in launchpad.launches.find({"launch_id": {"$in": last}}, {"_id": 0})}
    return {
        fw["fw_id"]: Job(
            fw_id=fw["fw_id"],
            name=fw["name"],
            state=fw["state"],
            recorded=recorded[fw["fw_id"]],
            place=(fw["spec"].get("stage"), fw["spec"].get("generation")),
            tolerant=bool(fw["spec"].get("_allow_fizzled_parents")),
            updated=read_time(fw["updated_on"]),
            launch=launches.get(fw["launches"][-1]) if fw["launches"] else None,
            parents=tuple(parents.get(fw["fw_id"], ())),
            children=links.get(fw["fw_id"], ()),
        )
        for fw in found
    }


class Orphan(NamedTuple):
    """A firework without a workflow.

    Parameters
    ----------
    fw_id
        Its number.
    name
        Its name, as ``label 003.1``.
    stored
        When it was stored, or last changed.
    """

    fw_id: int
    name: str
    stored: datetime


def find_orphans(launchpad: LaunchPad, project: str) -> list[Orphan]:
    """Find the fireworks of a search that no workflow holds.

    FireWorks stores new fireworks first and then the workflow that they belong to. What is killed in between leaves
    fireworks that are ready and cannot run: a launcher that takes one waits for the lock of a workflow that is not
    there, and ends.

    Parameters
    ----------
    launchpad
        The LaunchPad.
    project
        The search.

    Returns
    -------
    list[Orphan]
        Also those whose workflow is just being written.
    """
    every = launchpad.fireworks.find({"fw_id": {"$gt": 0}}, {"fw_id": 1, "_id": 0})  # answered from the index
    numbers = {firework["fw_id"] for firework in every}
    inside = {number for flow in launchpad.workflows.find({}, {"nodes": 1, "_id": 0}) for number in flow["nodes"]}
    query = {"fw_id": {"$in": sorted(numbers - inside)}, "spec._tasks.job.metadata.project": project}
    found = launchpad.fireworks.find(query, {"fw_id": 1, "name": 1, "updated_on": 1, "_id": 0})
    return [Orphan(firework["fw_id"], firework["name"], read_time(firework["updated_on"])) for firework in found]


def read_time(value: object) -> datetime:
    """Read a time as FireWorks stores it: as such or as text, in UTC.

    Parameters
    ----------
    value
        What is stored.

    Returns
    -------
    datetime
        With its time zone.
    """
    time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return time if time.tzinfo else time.replace(tzinfo=UTC)
