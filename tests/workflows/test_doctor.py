"""The doctor: a sound cluster is called sound, each broken link is named with its remedy, and nothing is betrayed."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import fireworks.core.launchpad
import pytest
from fireworks import fw_config
from jobflow import SETTINGS, JobStore
from maggma.stores import MemoryStore, MongoStore
from pymongo.errors import InvalidURI, OperationFailure, ServerSelectionTimeoutError

from makers.errors import ConfigError
from makers.stores import BlobStore, embedded_job_store
from workflows import cli, doctor, reach
from workflows.cluster import site_here, write_working_set
from workflows.doctor import clock, examine, may_write, round_trip
from workflows.findings import Finding, Verdict, show
from workflows.launch import open_launchpad, submit_search

SECRET = "correct-horse"  # noqa: S105 - not one


@pytest.fixture
def cluster(files, monkeypatch, launchpad) -> Path:
    """Return the folder of a working set whose every link is sound; the LaunchPad is mongomock's."""
    monkeypatch.setattr("fireworks.LaunchPad.auto_load", lambda: launchpad)
    return files


@pytest.fixture
def files(tmp_path, monkeypatch, launchpad) -> Path:
    """Return the folder of a working set that this process believes to have been started with."""
    folder = tmp_path / "config"
    write_working_set(site_here(folder, "slurm", "localhost", launchpad.name, None))
    commands = tmp_path / "commands"
    commands.mkdir()
    for name in ("sbatch", "squeue", "srun", "vasp_std"):
        (commands / name).write_text("#!/bin/sh\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{commands}")
    monkeypatch.setenv("FW_CONFIG_FILE", str(folder / "FW_config.yaml"))
    monkeypatch.setenv("JOBFLOW_CONFIG_FILE", str(folder / "jobflow.yaml"))
    monkeypatch.setenv("ATOMATE2_CONFIG_FILE", str(folder / "atomate2.yaml"))
    monkeypatch.setenv("HULLSEEKER_RESOURCES", str(folder / "resources.yaml"))
    monkeypatch.setenv("HULLSEEKER_SCRATCH", str(folder / "scratch"))
    # FireWorks and jobflow have read their files when they were imported
    for module in (fw_config, fireworks.core.launchpad):
        monkeypatch.setattr(module, "LAUNCHPAD_LOC", str(folder / "my_launchpad.yaml"), raising=False)
    for name, value in {"PING_TIME_SECS": 60, "RUN_EXPIRATION_SECS": 900, "WFLOCK_EXPIRATION_KILL": True}.items():
        monkeypatch.setattr(fw_config, name, value)
    monkeypatch.setattr(fw_config, "CONFIG_FILE_DIR", str(folder))
    monkeypatch.setattr(SETTINGS, "JOB_STORE", embedded_job_store(tmp_path / "store"))
    return folder


def findings(verdict: Verdict) -> list[Finding]:
    found = list(examine())
    for each in found:
        assert bool(each.remedy) == (each.verdict != Verdict.OK)
    return [each for each in found if each.verdict == verdict]


def only_failure() -> Finding:
    [found] = findings(Verdict.FAILED)
    return found


def test_readable_password_within_an_address(cluster):
    file = cluster / "jobflow.yaml"
    file.write_text(f"{file.read_text()}\nOTHER: mongodb://me:{SECRET}@db.example.org/mine\n")
    file.chmod(0o644)
    [found] = [x for x in findings(Verdict.WARNING) if "password" in x.text]
    assert found.remedy == f"chmod 600 {file}"
    assert SECRET not in show(found)


@pytest.mark.usefixtures("cluster")
def test_a_sound_cluster(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hullseeker", "doctor"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().out
    assert end.value.code in (0, None), said
    lines = said.splitlines()
    assert all(line.startswith(("ok ", "warning ", "         ->")) for line in lines)
    for text in (
        "FW_CONFIG_FILE: ",
        "versions: python ",
        "rlaunch: ",
        "lost jobs are noticed after 900 s",
        "LaunchPad: has its indexes",
        "job store: EmbeddedStore",
        "store `data`: a blob was written, read and removed",
        "ml_qadapter.yaml: submits by sbatch",
        "workers: dft, light, ml; every stage has one",
        "HULLSEEKER_SCRATCH: ",
        "VASP: srun vasp_std",
    ):
        assert any(line.startswith("ok ") and text in line for line in lines), text
    store = SETTINGS.JOB_STORE
    assert (store.count(), store.additional_stores["data"].count()) == (0, 0)  # nothing is left behind


def test_without_an_environment_it_says_what_to_source(monkeypatch, capsys):
    for name in doctor.FILES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["hullseeker", "doctor"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().out
    assert end.value.code == 1
    assert "failed   JOBFLOW_CONFIG_FILE is not set\n         -> `source .../env.sh`" in said
    assert "everything else was not looked at" in said
    assert "3 failed" in said


def test_files_that_do_not_parse(cluster):
    (cluster / "jobflow.yaml").write_text("JOB_STORE:\n  docs_store: [\n")
    failed = findings(Verdict.FAILED)
    assert "jobflow.yaml is not YAML (ParserError, line 3)" in failed[0].text
    (cluster / "jobflow.yaml").write_text("nothing")
    assert "holds no keys and values" in findings(Verdict.FAILED)[0].text
    (cluster / "jobflow.yaml").unlink()
    assert "jobflow.yaml does not exist" in findings(Verdict.FAILED)[0].text


def test_readable_passwords(cluster):
    file = cluster / "my_launchpad.yaml"
    file.write_text(file.read_text().replace("password: null", f"password: {SECRET}"))
    file.chmod(0o644)
    [found] = [x for x in findings(Verdict.WARNING) if "password" in x.text]
    assert found.remedy == f"chmod 600 {file}"
    assert not any(SECRET in show(x) for x in examine())


@pytest.mark.usefixtures("cluster")
def test_store_in_memory(monkeypatch):
    monkeypatch.setattr(SETTINGS, "JOB_STORE", JobStore(MemoryStore(), additional_stores={"data": MemoryStore()}))
    found = only_failure()
    assert found.text == "JOB_STORE"
    assert "in-memory default" in found.remedy


@pytest.mark.usefixtures("cluster")
def test_store_without_blobs(monkeypatch, tmp_path):
    store = embedded_job_store(tmp_path / "other")
    monkeypatch.setattr(SETTINGS, "JOB_STORE", JobStore(store.docs_store))
    assert "expected a store named `data`" in only_failure().remedy


class Forgetful(BlobStore):
    """A store of blobs that keeps nothing."""

    def _write(self, *_: object) -> None:
        """Do nothing."""


def test_store_that_loses_blobs(tmp_path):
    documents = embedded_job_store(tmp_path / "store").docs_store
    store = JobStore(documents, additional_stores={"data": Forgetful(str(tmp_path / "blobs"))})
    store.connect()
    [found] = round_trip(store)
    assert found.verdict == Verdict.FAILED
    assert "other than it was written" in found.text
    assert store.count() == 0


class Refusing:
    """A client, database and collection of pymongo's shape; whatever is asked of its server raises."""

    error: Exception = ServerSelectionTimeoutError(f"mongodb://me:{SECRET}@127.0.0.1: refused")
    closed = 0

    def __init__(self, *_: object, **settings: object) -> None:
        self.settings = settings

    def __getitem__(self, _: str) -> Refusing:
        """Return a database or a collection."""
        return self

    def __getattr__(self, name: str) -> Refusing:
        """Return a database, a collection or the client."""
        return self

    def command(self, _: str) -> None:
        """Raise, after a short time only."""
        assert self.settings["serverSelectionTimeoutMS"] == reach.PATIENCE_MS
        raise self.error

    def close(self) -> None:
        """Count."""
        type(self).closed += 1


ANSWERS = {
    "silence": (Refusing.error, "does not answer (ServerSelectionTimeoutError): is it running"),
    "refusal": (OperationFailure(SECRET, code=18), "refuses us (OperationFailure, code 18): correct user, password"),
    "nonsense": (InvalidURI(SECRET), "cannot be used (InvalidURI): correct host and options"),
}


@pytest.fixture(params=ANSWERS.values(), ids=ANSWERS)
def answer(request, monkeypatch) -> str:
    """Let every server answer in one way; return what is said of it."""
    error, text = request.param
    monkeypatch.setattr(Refusing, "error", error)
    for module in ("maggma.stores.mongolike", "fireworks.core.launchpad"):
        monkeypatch.setattr(f"{module}.MongoClient", Refusing)
    monkeypatch.setattr("fireworks.core.launchpad.gridfs.GridFS", lambda *_: None)
    return text


@pytest.mark.usefixtures("cluster")
def test_server_of_results(answer, monkeypatch, tiny_config, launchpad):
    place = {"host": "db.example", "username": "me", "password": SECRET}
    store = JobStore(MongoStore("mine", "outputs", **place), additional_stores={"data": MemoryStore()})
    monkeypatch.setattr(SETTINGS, "JOB_STORE", store)
    [found] = [x for x in findings(Verdict.FAILED) if "MongoDB at db.example:27017/mine" in show(x)]
    assert answer.split(": ")[1] in show(found)
    assert SECRET not in show(found)
    with pytest.raises(ConfigError) as error:
        submit_search(tiny_config(), launchpad)
    assert "db.example:27017/mine" in str(error.value)
    assert answer in str(error.value)
    assert "jobflow.yaml" in str(error.value)
    assert SECRET not in str(error.value)
    assert Refusing.closed


@pytest.mark.usefixtures("files")
def test_server_of_the_launchpad(answer):
    with pytest.raises(ConfigError) as error:
        open_launchpad()
    assert "localhost:27017/hullseeker_tests" in str(error.value)
    assert answer in str(error.value)
    assert "my_launchpad.yaml" in str(error.value)
    assert SECRET not in str(error.value)


def test_addresses_show_no_credentials():
    uri = f"mongodb://me:{SECRET}@db.example:27018/mine?authSource={SECRET}"
    assert reach.address(MongoStore(None, "outputs", uri=uri)) == "db.example:27018/mine"


def test_launchpad_that_is_no_launchpad(files):
    (files / "my_launchpad.yaml").write_text(f"password: [{SECRET}")
    with pytest.raises(ConfigError, match=r"my_launchpad.yaml: cannot be used as a LaunchPad") as error:
        open_launchpad()
    assert SECRET not in str(error.value)


@pytest.mark.usefixtures("cluster")
def test_launchpad_that_was_never_set_up(launchpad):
    launchpad.db.drop_collection("fw_id_assigner")
    assert only_failure().remedy.startswith("`lpad reset` does it")


@pytest.mark.usefixtures("cluster")
def test_launchpad_without_indexes(launchpad):
    launchpad.fireworks.drop_indexes()
    failed = findings(Verdict.FAILED)
    assert {x.remedy for x in failed} == {"`lpad admin tuneup` makes them"}
    assert "LaunchPad: fireworks has no index on fw_id" in {x.text for x in failed}


def test_queue_scripts_that_cannot_work(cluster, tmp_path):
    for name in ("sbatch", "squeue"):
        (tmp_path / "commands" / name).unlink()
    [found] = [x.text for x in findings(Verdict.FAILED) if x.text.endswith(": sbatch is not in PATH")]  # once for all
    assert {"dft_qadapter.yaml", "ml_qadapter.yaml"} < set(found.split(":")[0].split(", "))
    file = cluster / "ml_qadapter.yaml"
    file.write_text(file.read_text().replace("SLURM", "NOTHING"))
    assert f"{file}: cannot be used (ValueError)" in {x.text for x in findings(Verdict.FAILED)}


def test_queue_script_without_launcher_folder_or_queue(cluster, tmp_path):
    for name in ("bsub", "bjobs"):
        (tmp_path / "commands" / name).write_text("")
        (tmp_path / "commands" / name).chmod(0o755)
    (cluster / "file").touch()
    (cluster / "ml_qadapter.yaml").write_text(
        "_fw_name: CommonAdapter\n_fw_q_type: LoadSharingFacility\nrocket_launch: /no/rlaunch rapidfire\n"
        f"logdir: {cluster}/file/logs\n"
    )
    assert {x.text for x in findings(Verdict.FAILED)} == {
        "ml_qadapter.yaml: rocket_launch: /no/rlaunch cannot be run",
        "ml_qadapter.yaml: names no queue",
        f"ml_qadapter.yaml: logdir {cluster}/file/logs cannot be written",
    }


def test_category_that_no_worker_takes(cluster):
    (cluster / "dft_fworker.yaml").unlink()
    [found] = [x for x in findings(Verdict.WARNING) if "dft" in x.text]
    assert found.text == "only my_fworker.yaml takes label (dft)"
    (cluster / "my_fworker.yaml").unlink()
    assert only_failure().text == "no worker takes label (dft)"


def test_scratch_that_cannot_be_written(cluster, monkeypatch):
    (cluster / "file").touch()
    monkeypatch.setenv("HULLSEEKER_SCRATCH", str(cluster / "file" / "scratch"))
    assert "cannot be written" in only_failure().text
    monkeypatch.delenv("HULLSEEKER_SCRATCH")
    assert any("begins again" in x.text for x in findings(Verdict.WARNING))


SETTINGS_THAT_LOSE_JOBS = {
    "slow": ({"RUN_EXPIRATION_SECS": 14400, "PING_TIME_SECS": 3600}, Verdict.WARNING, "RUN_EXPIRATION_SECS: 900"),
    "hasty": ({"RUN_EXPIRATION_SECS": 900, "PING_TIME_SECS": 3600}, Verdict.FAILED, "live jobs are started twice"),
    "locks": ({"WFLOCK_EXPIRATION_KILL": False}, Verdict.WARNING, "WFLOCK_EXPIRATION_KILL: true"),
}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("settings", "verdict", "remedy"), SETTINGS_THAT_LOSE_JOBS.values(), ids=SETTINGS_THAT_LOSE_JOBS
)
def test_settings_that_lose_jobs(monkeypatch, settings, verdict, remedy):
    for name, value in settings.items():
        monkeypatch.setattr(fw_config, name, value)
    assert any(remedy in x.remedy for x in findings(verdict))


def told(**answer: object) -> list[Finding]:
    client = SimpleNamespace(admin=SimpleNamespace(command=lambda _: answer))
    return list(clock(SimpleNamespace(client=client)))


def test_launchpad_that_may_only_be_read(launchpad, monkeypatch):
    assert may_write(launchpad.db).verdict == Verdict.OK
    assert launchpad.db["doctor"].count_documents({}) == 0

    def refuse(*_: object) -> None:
        raise OperationFailure("not authorized on tests to execute command", 13)

    monkeypatch.setattr(type(launchpad.db["doctor"]), "insert_one", refuse)
    found = may_write(launchpad.db)
    assert found.verdict == Verdict.FAILED
    assert "readWrite" in found.remedy


def test_clock():
    now = datetime.now(UTC).replace(tzinfo=None)  # as pymongo gives it
    assert [x.verdict for x in told(localTime=now)] == [Verdict.OK]
    [late] = told(localTime=now - timedelta(seconds=100))
    assert (late.verdict, late.text) == (Verdict.WARNING, "clock: +100 s against the database server")
    assert told() == []


def test_labeller_of_a_search_file(cluster, search_file):
    del cluster
    found = list(examine(search_file(label__calculator="no_such_package:make")))
    assert found[-1].verdict == Verdict.FAILED
    assert "cannot be imported" in show(found[-1])
    assert list(examine(search_file()))[-1].text.endswith("starts here")


def test_vasp_that_is_not_here(cluster, tmp_path):
    del cluster
    (tmp_path / "commands" / "vasp_std").unlink()
    assert "VASP: vasp_std not in PATH here" in {x.text for x in findings(Verdict.WARNING)}
