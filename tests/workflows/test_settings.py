"""A wrong jobflow.yaml: every command names what is wrong, none shows the password that the file holds."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from jobflow import JobflowSettings

from workflows.cluster import site_here, write_working_set
from workflows.settings import naming_wrong_settings, settings_fault

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cretpw"  # noqa: S105 - not one
KEYS = f"host: h, database: x, collection_name: outputs, username: me, password: {SECRET}"
URI = f"database: x, collection_name: outputs, uri: 'mongodb://me:{SECRET}@db/'"


def run(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own: jobflow reads its file once, when it is imported."""
    path = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", "from workflows.cli import main; main()", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path} | environment,
    )


@pytest.mark.parametrize("keys", [KEYS, URI], ids=["password", "uri"])
@pytest.mark.parametrize(
    "command", ["status --project p", "resume --project p", "--debug status --project p", "submit"]
)
def test_no_command_shows_the_password(tmp_path, search_file, command, keys):
    file = tmp_path / "jobflow.yaml"
    file.write_text(f"JOB_STOR:\n  docs_store: {{type: MongoStore, {keys}}}\n")
    arguments = command.split() + ([str(search_file())] if command == "submit" else [])
    ended = run(tmp_path, {"JOBFLOW_CONFIG_FILE": str(file)}, *arguments)
    assert f"{file} has the unknown key `JOB_STOR`: did you mean `JOB_STORE`?" in ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    assert not (tmp_path / "error.log").exists()
    assert ended.returncode == (1 if "--debug" in command else 2)


MISTAKES = {
    "type": ("GridFSStore", "GridFStore", "unknown store type `GridFStore`", "did you mean `GridFSStore`?"),
    "key": ("JOB_STORE", "JOB_STOR", "unknown key `JOB_STOR`", "did you mean `JOB_STORE`?"),
}


@pytest.mark.parametrize(("right", "wrong", "text", "remedy"), MISTAKES.values(), ids=MISTAKES)
def test_doctor_names_the_mistake_and_looks_at_the_rest(tmp_path, monkeypatch, right, wrong, text, remedy):
    monkeypatch.setenv("HULLSEEKER_DB_PASSWORD", SECRET)
    write_working_set(site_here(tmp_path, "slurm", "127.0.0.1:1", "x", "me"))
    file = tmp_path / "jobflow.yaml"
    content = file.read_text()
    assert SECRET in content
    file.write_text(content.replace(right, wrong))
    ended = run(
        tmp_path,
        {
            "FW_CONFIG_FILE": str(tmp_path / "FW_config.yaml"),
            "JOBFLOW_CONFIG_FILE": str(file),
            "ATOMATE2_CONFIG_FILE": str(tmp_path / "atomate2.yaml"),
            "HULLSEEKER_RESOURCES": str(tmp_path / "resources.yaml"),
        },
        "doctor",
    )
    found = ended.stdout.splitlines()
    [number] = [n for n, line in enumerate(found) if line.startswith("failed") and f"{file} has the {text};" in line]
    assert found[number + 1].strip() == f"-> {remedy}"
    for link in (
        "lost jobs are noticed after 900 s",
        "LaunchPad: 127.0.0.1:1/x answers",
        "every stage has one",
    ):
        assert link in ended.stdout
    assert "MemoryStore" not in ended.stdout  # jobflow's default stands in for the file, and is none of the user's
    assert "in-memory" not in ended.stdout
    assert SECRET not in ended.stdout + ended.stderr
    assert ended.returncode == 1


FILES = {
    "store type": ("{type: MongStore, %s}", "unknown store type `MongStore`: did you mean `MongoStore`?"),
    "no type": ("{%s}", "a store without the key `type`: compare"),
    "key of a store": (
        "{type: MongoStore, hosts: x, %s}",
        "unknown key `hosts` in a store: did you mean `host`?",
    ),
    "no YAML": ("{type: MongoStore, %s", "is not YAML (ParserError, line 3): mend that line"),
    "repeated key": ("{type: MongoStore, host: a, %s}", "is not YAML (DuplicateKeyError, line 2): mend that line"),
    "text": ("[%s]", "JOB_STORE that cannot be read: it needs `docs_store`"),
}


@pytest.mark.parametrize(("store", "said"), FILES.values(), ids=FILES)
def test_what_is_said_of_a_store(tmp_path, monkeypatch, store, said):
    file = tmp_path / "jobflow.yaml"
    file.write_text(f"JOB_STORE:\n  docs_store: {store % KEYS}\n")
    told(file, monkeypatch, said)


OTHERS = {
    "no docs_store": (f"JOB_STORE:\n  docs_stor: {{{KEYS}}}\n", "JOB_STORE that cannot be read: it needs `docs_store`"),
    "wrong value": (f"UID_TYPE: [{SECRET}]\n", "wrong value at `UID_TYPE` (string_type): compare it"),
    "no database": (
        f"JOB_STORE:\n  docs_store: {{type: MongoStore, database: null, collection_name: o, uri: 'mongodb://me:{SECRET}@db/'}}\n",
        "cannot be used (ConfigurationError): compare it",
    ),
    "lacking key": (
        f"JOB_STORE:\n  docs_store: {{type: MongoStore, database: x, password: {SECRET}}}\n",
        "MongoStore that lacks 'collection_name': add it",
    ),
}


@pytest.mark.parametrize(("content", "said"), OTHERS.values(), ids=OTHERS)
def test_what_is_said_of_a_file(tmp_path, monkeypatch, content, said):
    file = tmp_path / "jobflow.yaml"
    file.write_text(content)
    told(file, monkeypatch, said)


def told(file: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("JOBFLOW_CONFIG_FILE", str(file))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - jobflow lets through whatever comes
        JobflowSettings(CONFIG_FILE=str(file))
    fault = str(settings_fault(caught.value))
    assert str(file) in fault
    assert said in fault
    assert SECRET not in fault


def test_other_errors_stay_what_they_are():
    error = KeyError("GridFStore")
    with pytest.raises(KeyError) as caught, naming_wrong_settings():
        raise error
    assert caught.value is error
