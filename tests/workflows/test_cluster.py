"""The working set of a cluster: FireWorks and jobflow read it, queue scripts come out right, nothing leaks."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fireworks import FWorker, LaunchPad, fw_config
from fireworks.user_objects.queue_adapters.common_adapter import CommonAdapter
from jobflow import JobStore
from maggma.stores import GridFSStore, MongoStore

from makers.errors import ConfigError
from workflows import cli
from workflows.cluster import SCHEDULERS, STAGES, WORKERS, examples, next_steps, site_here, write_working_set
from workflows.launch import WORKERS as DEFAULT_RESOURCES

ROOT = Path(__file__).parents[2]
SECRET = "correct horse"  # noqa: S105 - not one


@pytest.fixture(params=SCHEDULERS)
def written(request, tmp_path) -> tuple[str, Path]:
    """Return a scheduler and the folder of its working set."""
    folder = tmp_path / "config"
    write_working_set(site_here(folder, request.param, "db.example:27018", "mine", None))
    return request.param, folder


def content(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def test_templates_in_the_repository_are_what_init_writes():
    folder = ROOT / "launchpad_config"
    found = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file() and p.suffix != ".md"}
    assert found == examples()


def test_fireworks_reads_its_files(written):
    _, folder = written
    settings = content(folder / "FW_config.yaml")
    assert settings.keys() <= vars(fw_config).keys()
    assert settings["CONFIG_FILE_DIR"] == str(folder)
    assert settings["RUN_EXPIRATION_SECS"] >= 10 * settings["PING_TIME_SECS"]
    assert settings["WFLOCK_EXPIRATION_KILL"] is True
    launchpad = LaunchPad.from_file(str(folder / "my_launchpad.yaml"))
    assert (launchpad.host, launchpad.port, launchpad.name) == ("db.example", 27018, "mine")
    assert (launchpad.username, launchpad.password) == (None, None)
    assert launchpad.mongoclient_kwargs["serverSelectionTimeoutMS"] == 300_000
    workers = {name: FWorker.from_file(str(folder / f"{name}_fworker.yaml")) for name in WORKERS}
    assert {name: worker.category for name, worker in workers.items()} == {
        "my": "",
        "light": "light",
        "ml": "ml",
        "dft": "dft",
    }


def test_jobflow_reads_its_file(written):
    _, folder = written
    store = JobStore.from_dict_spec(content(folder / "jobflow.yaml")["JOB_STORE"])
    documents, blobs = store.docs_store, store.additional_stores["data"]
    assert (type(documents), type(blobs)) == (MongoStore, GridFSStore)
    assert (documents.host, documents.port, documents.database) == ("db.example", 27018, "mine")
    assert (blobs.host, blobs.port, blobs.database, blobs.collection_name) == ("db.example", 27018, "mine", "blobs")
    assert (documents.username, blobs.username) == ("", "")


WANTED = {
    "slurm": {
        "ml": ("#SBATCH --cpus-per-task=16", "#SBATCH --ntasks=1", "#SBATCH --time=24:00:00"),
        "dft": ("#SBATCH --ntasks=64", "#SBATCH --nodes=1", "#SBATCH --job-name=hullseeker-dft"),
    },
    "pbs": {
        "ml": ("#PBS -l select=1:ncpus=16:mpiprocs=1", "#PBS -l walltime=24:00:00", "#PBS -q batch"),
        "dft": ("#PBS -l select=1:ncpus=64:mpiprocs=64", "#PBS -N hullseeker-dft"),
    },
    "sge": {
        "ml": ("#$ -pe smp 16", "#$ -l h_rt=24:00:00", "#$ -S /bin/bash"),
        "dft": ("#$ -pe smp 64", "#$ -N hullseeker-dft"),
    },
    "lsf": {
        "ml": ("#BSUB -n 16", "#BSUB -W 24:00", '#BSUB -R "span[hosts=1]"', "#BSUB -q normal"),
        "dft": ("#BSUB -n 64", "#BSUB -J hullseeker-dft"),
    },
}


@pytest.mark.parametrize("worker", ["ml", "dft"])
def test_queue_scripts(written, worker, tmp_path):
    scheduler, folder = written
    adapter = CommonAdapter.from_file(str(folder / f"{worker}_qadapter.yaml"))
    script = adapter.get_script_str(str(tmp_path))  # a key that the template does not know would be a warning
    lines = script.splitlines()
    assert lines[0].startswith("#!/bin/bash")
    for line in WANTED[scheduler][worker]:
        assert line in lines
    assert "$$" not in script
    assert "None" not in script
    threads = {"ml": 16, "dft": 1}[worker]
    assert f"source {folder}/env.sh; export OMP_NUM_THREADS={threads}" in lines
    [launch] = [line for line in lines if "rlaunch" in line]
    assert launch.split()[0] == str(Path(sys.executable).parent / "rlaunch")
    assert Path(launch.split()[0]).exists()
    assert f"-c {folder} -w {folder}/{worker}_fworker.yaml rapidfire --nlaunches 0 --timeout 43200" in launch
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)  # noqa: S607 - bash is everywhere


def test_stages_put_their_resources_over_the_reserving_script(written, tmp_path):
    _, folder = written
    stages = content(folder / "resources.yaml")
    assert stages.keys() == STAGES.keys() == DEFAULT_RESOURCES.keys()
    for stage, settings in stages.items():
        assert settings["_category"] == DEFAULT_RESOURCES[stage]["_category"]
        adapter = CommonAdapter.from_file(str(folder / "reserve_qadapter.yaml"))
        assert adapter["rocket_launch"].endswith("singleshot")
        adapter.update(settings["_queueadapter"])
        script = adapter.get_script_str(str(tmp_path))
        assert ("64" in script) is (stage == "label")


def test_the_environment_names_the_files(written):
    _, folder = written
    names = ("FW_CONFIG_FILE", "JOBFLOW_CONFIG_FILE", "ATOMATE2_CONFIG_FILE", "HULLSEEKER_RESOURCES")
    words = [*names, "HULLSEEKER_SCRATCH", "OMP_NUM_THREADS", "PATH"]
    shown = " ".join(f"${{{word}}}" for word in words)
    done = subprocess.run(  # noqa: S603 - our own script
        ["bash", "-c", f"source {folder}/env.sh && echo {shown}"],  # noqa: S607 - bash is everywhere
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(zip(words, done.stdout.split(), strict=False))
    for name in names:
        assert Path(found[name]).is_relative_to(folder)
        assert Path(found[name]).is_file()
    assert Path(found["HULLSEEKER_SCRATCH"]).is_dir()
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["PATH"].split(":")[0] == str(Path(sys.executable).parent)


def test_files_are_replaced_only_by_force(tmp_path):
    site = site_here(tmp_path / "config", "slurm", "localhost", "mine", None)
    write_working_set(site)
    edited = tmp_path / "config" / "jobflow.yaml"
    edited.write_text("mine")
    with pytest.raises(ConfigError, match=r"holds .*jobflow.yaml.* already; .*--force"):
        write_working_set(site)
    assert edited.read_text() == "mine"
    write_working_set(site, force=True)
    assert "MongoStore" in edited.read_text()


def test_passwords_come_from_the_environment_and_are_never_shown(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "config"
    monkeypatch.setenv("HULLSEEKER_DB_PASSWORD", SECRET)
    monkeypatch.setattr(
        sys, "argv", ["hullseeker", "init", str(folder), "--scheduler", "slurm", "--username", "me", "--force"]
    )
    folder.mkdir()
    (folder / "jobflow.yaml").touch(mode=0o644)
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr()
    assert f"source {folder}/env.sh" in said.out
    assert SECRET not in said.out + said.err
    holders = {path.name for path in folder.iterdir() if path.is_file() and SECRET in path.read_text()}
    assert holders == {"my_launchpad.yaml", "jobflow.yaml"}
    for name in holders:
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert content(folder / "my_launchpad.yaml")["password"] == SECRET
    assert content(folder / "jobflow.yaml")["JOB_STORE"]["additional_stores"]["data"]["password"] == SECRET


def test_without_a_user_there_is_no_password(tmp_path, monkeypatch):
    monkeypatch.setenv("HULLSEEKER_DB_PASSWORD", SECRET)
    site = site_here(tmp_path, "slurm", "localhost", "mine", None)
    assert site.password is None
    assert "host, user and password" in next_steps(site)


BAD = {
    "scheduler": (
        ("moab", "localhost", "mine", None),
        r"--scheduler: expected one of slurm, pbs, sge, lsf, got 'moab'",
    ),
    "port": (("pbs", "localhost:x", "mine", None), r"--host: expected a host or host:port, got 'localhost:x'"),
    "uri": (("pbs", "mongodb://me:secret@db/x", "mine", None), r"--host: .* got 'db/x'"),
    "database": (("pbs", "localhost", "my data", None), r"--database: expected a name without spaces"),
    "user": (("pbs", "localhost", "mine", 'a"b'), r"--username: "),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_options_are_refused(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message) as error:
        site_here(tmp_path, *arguments)
    assert "secret" not in str(error.value)


def test_folders_that_break_scripts_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected a path without spaces"):
        site_here(tmp_path / "my config", "slurm", "localhost", "mine", None)


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="expected a folder that can be written"):
        write_working_set(site_here(tmp_path / "file" / "config", "slurm", "localhost", "mine", None))


def test_init_without_anything_says_what_to_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hullseeker", "init"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "name the folder to make" in capsys.readouterr().err
