"""Look at every link between this machine, the database and the queue; say of each how to mend it."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import stat
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pymongo.errors import PyMongoError

from makers.errors import ConfigError
from workflows.findings import Finding, Verdict, bad, good, safely, warn
from workflows.settings import import_with_defaults, require_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobflow import JobStore
    from pymongo.database import Database

PACKAGES = ("jobflow", "fireworks", "maggma", "pymongo", "atomate2", "custodian", "pymatgen", "ase", "torch")
FILES = ("FW_CONFIG_FILE", "JOBFLOW_CONFIG_FILE", "ATOMATE2_CONFIG_FILE")
MOST_SKEW = 10.0  # s between this clock and the server's: FireWorks compares times of different machines
MOST_EXPIRATION = 3600.0  # s after which a dead job should be noticed


def examine(search_file: Path | None = None) -> Iterator[Finding]:
    """Look at every link.

    Parameters
    ----------
    search_file
        Search whose labeller is looked at too.

    Yields
    ------
    Finding
        One for each link, as soon as it is known.
    """
    files = list(_files())
    yield from files
    if any(finding.verdict == Verdict.FAILED for finding in files):
        yield bad("everything else was not looked at", "mend the files above and ask again")
        return
    faults = list(safely(_settings, "jobflow"))
    yield from faults
    checks = [
        _versions,
        _executables,
        _fireworks,
        _launchpad,
        *([] if faults else [_job_store]),
        _queue_scripts,
        _workers,
        _scratch,
    ]
    for check in checks:
        yield from safely(check, check.__name__.strip("_").replace("_", " "))
    yield from safely(partial(_labeller, search_file), "labeller")


def _files() -> Iterator[Finding]:
    for name in FILES:
        path = os.environ.get(name)
        if path is None:
            needed = name != "ATOMATE2_CONFIG_FILE"
            say = bad if needed else warn
            yield say(f"{name} is not set", "`source .../env.sh`, which `hullseeker init --scheduler ...` writes")
        elif not Path(path).is_file():
            yield bad(f"{name}: {path} does not exist", "correct it in env.sh and source that again")
        else:
            yield _parses(Path(path), name)
    here = Path("FW_config.yaml")
    if here.exists() and here.resolve() != Path(os.environ.get("FW_CONFIG_FILE", "")).resolve():
        yield warn(f"{here.absolute()} wins over FW_CONFIG_FILE here", "change to another folder, or remove it")


def _parses(path: Path, name: str) -> Finding:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place is not None else ""
        return bad(f"{name}: {path} is not YAML ({type(error).__name__}{line})", "mend that line")
    if not isinstance(content, dict):
        return bad(f"{name}: {path} holds no keys and values", "compare it with launchpad_config/")
    if _holds_password(content) and stat.S_IMODE(path.stat().st_mode) & 0o077:
        return warn(f"{name}: {path} holds a password that others may read", f"chmod 600 {path}")
    return good(f"{name}: {path}")


def _holds_password(content: object) -> bool:
    if isinstance(content, str):
        return re.search(r"://[^/@:]*:[^/@]+@", content) is not None  # user and password within a URI
    if isinstance(content, dict):
        return any(("password" in str(k) and v) or _holds_password(v) for k, v in content.items())
    return isinstance(content, list) and any(_holds_password(v) for v in content)


def _settings() -> Iterator[Finding]:
    """Nearly all below imports jobflow, which needs settings: its defaults, where its file cannot be used."""
    try:
        require_settings()
    except ConfigError as error:
        text, _, remedy = str(error).partition(": ")
        yield bad(f"{text}; the job store was not looked at", remedy)
        import_with_defaults()


def _versions() -> Iterator[Finding]:
    found, missing = [f"python {sys.version.split()[0]}"], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        yield bad(f"packages that are missing: {', '.join(missing)}", f"{sys.executable} -m pip install hullseeker")
    yield good(f"versions: {', '.join(found)}")


def _executables() -> Iterator[Finding]:
    own = Path(sys.executable).parent
    for name in ("rlaunch", "qlaunch", "lpad"):
        path = shutil.which(name)
        if path is None:
            yield bad(f"{name} is not in PATH", f"add {own} to PATH, as env.sh does")
        elif Path(path).parent.resolve() != own.resolve():
            yield warn(
                f"{name} is {path}, of another environment than {own}", "source env.sh, or activate the right one"
            )
        else:
            yield good(f"{name}: {path}")


def _fireworks() -> Iterator[Finding]:
    from workflows.launch import fireworks_setup

    setup = fireworks_setup()
    text = f"lost jobs are noticed after {setup.expiration:g} s, jobs give a sign of life every {setup.ping:g} s"
    if setup.expiration < 3 * setup.ping:
        yield bad(text, "RUN_EXPIRATION_SECS has to be several PING_TIME_SECS, or live jobs are started twice")
    elif setup.expiration > MOST_EXPIRATION:
        yield warn(
            text, "set PING_TIME_SECS: 60 and RUN_EXPIRATION_SECS: 900 in FW_config.yaml; one does not follow the other"
        )
    else:
        yield good(text)
    if not setup.kills_locks:
        yield warn(
            "a launcher that dies may lock its workflow for ever", "WFLOCK_EXPIRATION_KILL: true in FW_config.yaml"
        )
    if setup.launchpad_file is None:
        yield bad(f"no my_launchpad.yaml in {setup.folder}", "set CONFIG_FILE_DIR in FW_config.yaml to its folder")
    else:
        yield _parses(setup.launchpad_file, "LaunchPad")


def _launchpad() -> Iterator[Finding]:
    from workflows.launch import launchpad_address, launchpad_faults, open_launchpad

    launchpad = open_launchpad()
    yield good(f"LaunchPad: {launchpad_address(launchpad)} answers")
    faults = launchpad_faults(launchpad)
    for fault in faults:
        text, _, remedy = fault.partition(": ")
        yield bad(f"LaunchPad: {text}", remedy)
    if not faults:
        yield good("LaunchPad: has its indexes")
    yield may_write(launchpad.db)
    yield from clock(launchpad.db)


def may_write(database: Database[dict[str, Any]]) -> Finding:
    """Write a document and remove it, in a collection of its own.

    Parameters
    ----------
    database
        Of the LaunchPad.

    Returns
    -------
    Finding
        Whether this user may.
    """
    try:
        number = database["doctor"].insert_one({"at": datetime.now(UTC)}).inserted_id
        database["doctor"].delete_one({"_id": number})
    except PyMongoError as error:
        text = f"LaunchPad: {database.name} cannot be written ({type(error).__name__})"
        return bad(text, f"give the database user the role readWrite on {database.name}")
    return good(f"LaunchPad: {database.name} can be written")


def clock(database: Database[dict[str, Any]]) -> Iterator[Finding]:
    """Compare the clocks of this machine and of the server.

    Parameters
    ----------
    database
        A database of the server.

    Yields
    ------
    Finding
        None if the server does not tell its time.
    """
    try:
        before = datetime.now(UTC)
        theirs = database.client.admin.command("hello").get("localTime")
        ours = before + (datetime.now(UTC) - before) / 2
    except (PyMongoError, NotImplementedError):  # stand-ins for MongoDB do not know the command
        return
    if theirs is None:
        return
    skew = (ours - theirs.replace(tzinfo=UTC)).total_seconds()
    if abs(skew) > MOST_SKEW:
        yield warn(f"clock: {skew:+.0f} s against the database server", "let both follow a time server (chrony, ntp)")
    else:
        yield good(f"clock: {skew:+.1f} s against the database server")


def _job_store() -> Iterator[Finding]:
    from workflows.launch import configured_store
    from workflows.reach import address, is_remote

    store = configured_store()
    docs = store.docs_store
    yield good(f"job store: {type(docs).__name__} {address(docs) if is_remote(docs) else docs.name}")
    yield from round_trip(store)


def round_trip(store: JobStore) -> Iterator[Finding]:
    """Write an output with a blob, read it and remove it.

    Parameters
    ----------
    store
        A connected job store.

    Yields
    ------
    Finding
        What became of it.
    """
    name = f"doctor-{uuid.uuid4()}"
    blob = {"content": name * 1000}
    start = time.perf_counter()
    try:
        store.update({"uuid": name, "index": 1, "output": {"blob": blob}}, save={"data": ["blob"]})
        found = store.query_one({"uuid": name}, load=True)
    except KeyError:  # jobflow's way of saying that a blob is not there
        found = None
    finally:
        store.remove_docs({"uuid": name})
    seconds = time.perf_counter() - start
    if found is None or found["output"]["blob"].get("content") != blob["content"]:
        yield bad(
            "store `data`: a blob came back other than it was written", "look at additional_stores.data in jobflow.yaml"
        )
    else:
        yield good(f"store `data`: a blob was written, read and removed in {seconds:.2f} s")


def _queue_scripts() -> Iterator[Finding]:
    from workflows.launch import fireworks_setup

    files = sorted(fireworks_setup().folder.glob("*_qadapter.yaml"))
    if not files:
        yield warn("no *_qadapter.yaml beside FW_config.yaml", "`hullseeker init --scheduler ...` writes them")
    faulty: dict[tuple[str, str], list[str]] = {}
    for file in files:
        yield from safely(partial(_queue_script, file, faulty), str(file))
    for (text, remedy), names in faulty.items():
        yield bad(f"{', '.join(names)}: {text}", remedy)


def _queue_script(file: Path, faulty: dict[tuple[str, str], list[str]]) -> Iterator[Finding]:
    """Look at one file; what is wrong is added to ``faulty``, so that what is wrong with all is said once."""
    from workflows.launch import read_adapter

    adapter, commands = read_adapter(file)
    hint = "run this on the login node, or load the scheduler's module"
    faults = [(f"{name} is not in PATH", hint) for name in commands.values() if shutil.which(name) is None]
    program = next(iter(shlex.split(adapter.get("rocket_launch") or "")), "")
    if shutil.which(program) is None:
        faults.append((f"rocket_launch: {program or 'nothing'} cannot be run", "name the rlaunch of this environment"))
    if adapter["q_type"] in ("PBS", "LoadSharingFacility") and not adapter.get("queue"):
        faults.append(("names no queue", "FireWorks counts your jobs by it: name one"))
    if adapter.get("logdir") and not _writable(Path(adapter["logdir"])):
        faults.append((f"logdir {adapter['logdir']} cannot be written", f"mkdir -p {adapter['logdir']}"))
    for fault in faults:
        faulty.setdefault(fault, []).append(file.name)
    if not faults:
        yield good(f"{file.name}: submits by {commands['submit_cmd']}")


def _workers() -> Iterator[Finding]:
    from workflows.launch import fireworks_setup, worker_category
    from workflows.routing import configured_resources

    wanted = {stage: settings.get("_category") for stage, settings in configured_resources().items()}
    known: set[str] = set()
    everything = []
    for file in sorted(fireworks_setup().folder.glob("*fworker.yaml")):
        category = worker_category(file)
        known |= {category} if isinstance(category, str) else set(category)
        everything += [file.name] if not category else []
    homeless = {stage: category for stage, category in wanted.items() if category is not None and category not in known}
    if homeless and not everything:
        told = ", ".join(f"{stage} ({category})" for stage, category in homeless.items())
        yield bad(f"no worker takes {told}", "add a *_fworker.yaml of that category, or change resources.yaml")
    elif homeless:
        told = ", ".join(f"{stage} ({category})" for stage, category in homeless.items())
        yield warn(f"only {everything[0]} takes {told}", "add a *_fworker.yaml of that category, or start that worker")
    else:
        yield good(f"workers: {', '.join(sorted(known - {''})) or 'one for everything'}; every stage has one")


def _scratch() -> Iterator[Finding]:
    from makers.scratch import SCRATCH_VARIABLE

    root = os.environ.get(SCRATCH_VARIABLE)
    if not root:
        yield warn(
            f"{SCRATCH_VARIABLE} is not set: a killed relaxation or training begins again",
            "name a folder that all nodes see, as env.sh does",
        )
    elif not _writable(Path(root)):
        yield bad(f"{SCRATCH_VARIABLE}: {root} cannot be written", f"mkdir -p {root}, or name another folder in env.sh")
    else:
        yield good(f"{SCRATCH_VARIABLE}: {root}")


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
    except OSError:
        return False
    return True


def _labeller(search_file: Path | None) -> Iterator[Finding]:
    if search_file is not None:
        from makers.labelling.calculators import check_labeller
        from workflows.config import load_config

        config = load_config(search_file)
        check_labeller(config.label)
        yield good(f"labeller of {search_file}: starts here")
        return
    path = os.environ.get("ATOMATE2_CONFIG_FILE")
    if path:
        command = yaml.safe_load(Path(path).read_text(encoding="utf-8")).get("VASP_CMD", "vasp_std")
        missing = [
            word for word in shlex.split(str(command)) if not word.startswith("-") and shutil.which(word) is None
        ]
        words = [word for word in missing if not word.isdigit()]
        if words:
            yield warn(
                f"VASP: {' and '.join(words)} not in PATH here",
                "no matter if the queue script loads it (env.sh: module load) or labels are not by VASP",
            )
        else:
            yield good(f"VASP: {command}")
    if importlib.util.find_spec("gpaw") is not None:
        yield good(f"GPAW {version('gpaw')} is installed")
