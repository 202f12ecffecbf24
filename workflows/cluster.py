"""The working set of a cluster: where MongoDB is, who works, what the queue scripts look like."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from makers.errors import ConfigError
from workflows.routing import WORKERS as DEFAULT_RESOURCES

CREDENTIAL_VARIABLE = "HULLSEEKER_DB_PASSWORD"
SECRET = ("my_launchpad.yaml", "jobflow.yaml")
"""Files that may hold a password: readable by their owner only."""

PLAIN = ("FW_config.yaml", "my_launchpad.yaml", "jobflow.yaml", "atomate2.yaml", "env.sh")
PILOT = (
    "A pilot job: it runs what is ready, and ends when nothing is left. After half of its walltime (--timeout, s) it\n"
    "# takes nothing new: change both together, and leave your longest job enough time after it."
)
RESERVE = "For `qlaunch -r`: one queue job for each job, with the resources of its stage over what stands here."


@dataclass(frozen=True)
class Worker:
    """One kind of worker.

    Parameters
    ----------
    about
        What it runs, in words.
    category
        Category of the stages that it takes; empty for all.
    cores
        Cores of its queue job.
    ranks
        MPI processes among which the cores are shared; one process with threads if it is 1.
    hours
        Walltime of its queue job.
    """

    about: str
    category: str
    cores: int
    ranks: int
    hours: int

    @property
    def threads(self) -> int:
        """Threads of each process."""
        return self.cores // self.ranks


WORKERS = {
    "my": Worker("Runs every stage.", "", 16, 1, 24),
    "light": Worker("Runs generate, select, advance and report: seconds to minutes, one core.", "light", 1, 1, 4),
    "ml": Worker("Runs relax and train: `relax: workers` cores (a training takes one), or a GPU.", "ml", 16, 1, 24),
    "dft": Worker("Runs label: first principles.", "dft", 64, 64, 24),
}
"""By the first word of their files."""

STAGES = {stage: str(settings["_category"]) for stage, settings in DEFAULT_RESOURCES.items()}
"""Which worker runs which stage."""

SCHEDULERS = ("slurm", "pbs", "sge", "lsf")


@dataclass(frozen=True)
class Site:
    """What tells one working set from another.

    Parameters
    ----------
    folder
        Where it lies; login and compute nodes see it under this name.
    scheduler
        One of ``SCHEDULERS``.
    bin
        Folder of ``rlaunch`` and ``python``.
    host
        MongoDB, as the compute nodes reach it.
    port
        Its port.
    database
        Database of the workflows and of the results.
    username
        User of the database; None if it has none.
    password
        Password; None if the user writes it into the files.
    """

    folder: Path
    scheduler: str
    bin: Path
    host: str = "localhost"
    port: int = 27017
    database: str = "hullseeker"
    username: str | None = None
    password: str | None = None


def site_here(folder: Path, scheduler: str, host: str, database: str, username: str | None) -> Site:
    """Describe this environment on this cluster.

    Parameters
    ----------
    folder
        Where the working set goes.
    scheduler
        Name of the scheduler.
    host
        Host of MongoDB, or host:port.
    database
        Name of the database.
    username
        User of the database. The password is taken from the variable ``HULLSEEKER_DB_PASSWORD``, if it is set.

    Returns
    -------
    Site
        With absolute paths.

    Raises
    ------
    ConfigError
        If the scheduler is unknown, the port is no number, or a path or name would break a queue script.
    """
    if scheduler not in SCHEDULERS:
        raise ConfigError(f"--scheduler: expected one of {', '.join(SCHEDULERS)}, got {scheduler!r}")
    name, _, port = host.partition(":")
    if not name or (port and not port.isdigit()) or "/" in host:
        raise ConfigError(
            f"--host: expected a host or host:port, got {host.rpartition('@')[2]!r}; user and password go elsewhere"
        )
    for option, value in (("--database", database), ("--username", username or "")):
        if any(c in value for c in ' \t/\\"$'):
            raise ConfigError(f"{option}: expected a name without spaces, slashes, quotes and $, got {value!r}")
    site = Site(
        folder=folder.absolute(),
        scheduler=scheduler,
        bin=Path(sys.executable).absolute().parent,
        host=name,
        port=int(port or 27017),
        database=database,
        username=username,
        password=os.environ.get(CREDENTIAL_VARIABLE) if username else None,
    )
    for path in (site.folder, site.bin):
        if any(c.isspace() or c in "'\"$#" for c in str(path)):
            raise ConfigError(
                f"{path}: expected a path without spaces, quotes, $ and #, which queue scripts would break"
            )
    return site


def render(site: Site) -> dict[str, str]:
    """Fill in the templates.

    Parameters
    ----------
    site
        The cluster.

    Returns
    -------
    dict[str, str]
        Content by file name.
    """
    made = {name: _fill(name, site) for name in PLAIN}
    made["resources.yaml"] = _fill("resources.yaml", site, stages=_stages(site))
    adapter = f"{site.scheduler}_qadapter.yaml"
    for name, worker in WORKERS.items():
        words = {
            "about": worker.about,
            "worker": worker.category or "everything",
            "fw_category": worker.category or '""',
        }
        made[f"{name}_fworker.yaml"] = _fill("fworker.yaml", site, **words)
        launch = f"rapidfire --nlaunches 0 --timeout {worker.hours * 1800}"
        made[f"{name}_qadapter.yaml"] = _fill(adapter, site, **_script(site, name, launch), mode=PILOT)
    made["reserve_qadapter.yaml"] = _fill(adapter, site, **_script(site, "my", "singleshot"), mode=RESERVE)
    if site.scheduler != "slurm":  # FireWorks' own templates of the others lack walltime, cores or the shell
        made[f"{site.scheduler}_template.txt"] = _fill(f"{site.scheduler}_template.txt", site)
    return made


def write_working_set(site: Site, *, force: bool = False) -> list[Path]:
    """Write the working set, and the folders that it names.

    Parameters
    ----------
    site
        The cluster.
    force
        Whether files that exist are replaced.

    Returns
    -------
    list[Path]
        The files.

    Raises
    ------
    ConfigError
        If a file exists already and may not be replaced, or the folder cannot be written.
    """
    content = render(site)
    present = [name for name in content if (site.folder / name).exists()]
    if present and not force:
        raise ConfigError(
            f"{site.folder}: holds {', '.join(present)} already; choose another folder, or replace them with --force"
        )
    try:
        for folder in (site.folder, site.folder / "logs", site.folder / "scratch"):
            folder.mkdir(parents=True, exist_ok=True)
        for name, text in content.items():
            path = site.folder / name
            if name in SECRET:
                path.unlink(missing_ok=True)  # so that it is nobody else's to read for a moment
                path.touch(mode=0o600)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{site.folder}: expected a folder that can be written, got: {error.strerror}") from error
    return [site.folder / name for name in content]


def next_steps(site: Site) -> str:
    """Say what to edit and what to type.

    Parameters
    ----------
    site
        The cluster.

    Returns
    -------
    str
        Some lines.
    """
    credentials = (
        f"{' and '.join(SECRET)}: host, user and password of MongoDB"
        if site.username is None or site.password is None
        else f"{' and '.join(SECRET)}: hold the password; keep them yours"
    )
    folder = site.folder
    return f"""wrote the working set for {site.scheduler} to {folder}

edit the lines marked `<-`:
  {credentials}
  *_qadapter.yaml, resources.yaml: queue, account, cores, walltime
  atomate2.yaml, env.sh: how VASP starts; where long jobs keep what they have done
then:
  source {folder}/env.sh
  hullseeker doctor                # checks every link and says how to mend it
  lpad reset                       # once, for a NEW database: it erases the workflows that are there
  hullseeker submit search.yaml
  qlaunch -c {folder} rapidfire -m 4 --nlaunches infinite
or, with one worker for each category of stage, on the login node:
  for w in light ml dft; do
    qlaunch -c {folder} -w {folder}/${{w}}_fworker.yaml -q {folder}/${{w}}_qadapter.yaml \\
      rapidfire -m 20 --nlaunches infinite &
  done"""


def shape(scheduler: str, worker: Worker) -> dict[str, Any]:
    """Return cores and walltime of a queue job in the words of the scheduler.

    Parameters
    ----------
    scheduler
        One of ``SCHEDULERS``.
    worker
        The worker.

    Returns
    -------
    dict
        Keys of the queue adapter.
    """
    walltime = f"{worker.hours:02d}:00" + ("" if scheduler == "lsf" else ":00")
    by_scheduler: dict[str, dict[str, Any]] = {
        "slurm": {"nodes": 1, "ntasks": worker.ranks, "cpus_per_task": worker.threads},
        "pbs": {"select": f"1:ncpus={worker.cores}:mpiprocs={worker.ranks}"},
        "sge": {"slots": worker.cores},
        "lsf": {"ntasks": worker.cores},
    }
    return by_scheduler[scheduler] | {"walltime": walltime}


def examples() -> dict[str, str]:
    """Return the templates as `launchpad_config/` shows them: the common files, and a folder for each scheduler.

    Returns
    -------
    dict[str, str]
        Content by path in `launchpad_config/`.
    """
    home = Path("/home/me/hullseeker")
    shown: dict[str, str] = {}
    for scheduler in SCHEDULERS:
        site = Site(home, scheduler, home / ".venv/bin")
        for name, text in render(site).items():
            own = scheduler in name or name.endswith("_qadapter.yaml") or name in ("resources.yaml", "atomate2.yaml")
            shown[f"{scheduler}/{name}" if own else name] = text
    return shown


def _script(site: Site, name: str, launch: str) -> dict[str, str]:
    worker = WORKERS[name]
    return {
        "about": worker.about,
        "category": worker.category or "all",
        "cores": str(worker.cores),
        "launch": f"{site.bin}/rlaunch -c {site.folder} -w {site.folder}/{name}_fworker.yaml {launch}",
        "shape": "   # <-\n".join(_lines(site, worker)),
        "pre": _pre(site, worker),
    }


def _pre(site: Site, worker: Worker) -> str:
    """Return what a queue script does first; a quoted text, because a `#` in it must not begin a comment."""
    return json.dumps(f"source {site.folder}/env.sh; export OMP_NUM_THREADS={worker.threads}")


def _lines(site: Site, worker: Worker) -> list[str]:
    return [f"{key}: {json.dumps(value)}" for key, value in shape(site.scheduler, worker).items()]


def _stages(site: Site) -> str:
    """Return the resources by stage; a stage of the same worker as an earlier one refers to it."""
    lines, seen = [], set()
    for stage, name in STAGES.items():
        if name in seen:
            lines.append(f"{stage}: *{name}")
            continue
        seen.add(name)
        worker = WORKERS[name]
        lines += [f"{stage}: &{name}", f"  _category: {worker.category}", "  _queueadapter:"]
        lines += [f"    {line}   # <-" for line in _lines(site, worker)]
        lines += [f"    pre_rocket: {_pre(site, worker)}   # <-"]
    return "\n".join(lines)


def _fill(name: str, site: Site, **words: str) -> str:
    text = files("workflows").joinpath("cluster_files", name).read_text(encoding="utf-8")
    quoted = {
        "username": json.dumps(site.username or ""),
        "password": json.dumps(site.password or ""),
        "lp_username": json.dumps(site.username),
        "lp_password": json.dumps(site.password),
    }
    words = words | quoted | {"folder": str(site.folder), "bin": str(site.bin), "host": site.host}
    words |= {
        "port": str(site.port),
        "database": site.database,
        "mpirun": "srun" if site.scheduler == "slurm" else "mpirun",
    }
    for word in sorted(words):
        text = text.replace(f"@{word}@", words[word])
    return text
