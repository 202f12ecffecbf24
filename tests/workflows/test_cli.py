"""The command line: what it answers, what it refuses, and that it leaves nothing half written."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ase.io import read
from jobflow import SETTINGS
from pymatgen.core import Structure

from makers.labelling import read_labels
from makers.stores import embedded_job_store
from workflows import cli
from workflows.results import generations, query_phases, report
from workflows.run import open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.integration

HELP_SECONDS = 0.5  # of user CPU


@pytest.fixture
def hullseeker(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; return its exit code and what it wrote."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hullseeker", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_help_answers_at_once():
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        out = subprocess.run(
            [sys.executable, "-c", "from workflows.cli import main; main()", "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert "resume" in out.stdout
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before

    assert min(seconds() for _ in range(3)) < HELP_SECONDS


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"smearing": 0.1}, "smearing: unknown option; known here: "),
    "misspelled key": ({"advance__max_generation": 3}, "advance.max_generation: unknown option; did you mean"),
    "misspelled key of a door": ({"label__setings": {}}, "did you mean `settings`?"),
    "impossible composition": ({"generate__compositions": ["Cu2O"]}, "generate.compositions: expected formulae of"),
    "composition that does not fit": (
        {"generate__compositions": ["Cu7Au6"], "generate__atoms": [1, 4]},
        "generate.compositions",
    ),
    "distance of a foreign pair": (
        {"generate__distances": {"Cu-Ag": 2.0}},
        "generate.distances.Cu-Ag: expected a pair of Cu, Au",
    ),
    "distance of nothing": ({"generate__distances": {"Cu-Au": 0}}, "generate.distances.Cu-Au: input should be greater"),
    "volume of a foreign element": ({"generate__volumes": {"Ag": 17.0}}, "generate.volumes.Ag: expected an element"),
    "unknown element": ({"system": "Cu-Ax"}, "system: expected element symbols joined by `-`, got 'Ax'; did you mean"),
    "negative pressure": (
        {"pressure_gpa": -5},
        "pressure_gpa: input should be greater than or equal to 0, got -5",
    ),
    "unknown calculator": ({"label__calculator": "emtt"}, "did you mean 'emt'?"),
    "calculator that is not installed": ({"label__calculator": "no_such_package:make"}, "label.calculator: "),
}


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(("changes", "expected"), BAD.values(), ids=BAD)
def test_bad_search_files_are_refused(hullseeker, search_file, tmp_path, command, changes, expected):
    file = search_file(**changes)
    code, out, err = hullseeker(command, file)
    assert code == 2, err
    assert expected in err
    assert err.startswith("hullseeker: ")
    assert err.strip().count("\n") == 0  # one paragraph
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["search.yaml"]  # nothing written


def test_missing_executable_is_refused(hullseeker, search_file, tmp_path):
    label = {"door": "atomate2", "run_vasp": {"vasp_cmd": "/no/such/vasp_std"}}
    for command in ("run", "check"):
        code, _, err = hullseeker(command, search_file(label=label))
        assert (code, err.strip().count("\n")) == (2, 0)
        assert "label.run_vasp.vasp_cmd: the executable '/no/such/vasp_std' was not found" in err
    assert [path.name for path in tmp_path.iterdir()] == ["search.yaml"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [("system: [Cu", "not valid YAML"), ("", "expected keys and values"), ("project: a\n", "system: required")],
    ids=["broken", "empty", "unfinished"],
)
def test_broken_files_are_refused(hullseeker, tmp_path, content, expected):
    file = tmp_path / "search.yaml"
    file.write_text(content)
    code, _, err = hullseeker("run", file)
    assert (code, err.strip().count("\n")) == (2, 0)
    assert expected in err
    assert [path.name for path in tmp_path.iterdir()] == ["search.yaml"]


def test_missing_file_is_refused(hullseeker, tmp_path):
    code, _, err = hullseeker("run", tmp_path / "none.yaml")
    assert code == 2
    assert "none.yaml: no such file; `hullseeker init DIR`" in err
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_refused(hullseeker, search_file, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for arguments in (("run", search_file(), "--dir", tmp_path / "file" / "search"), ("init", tmp_path / "file" / "x")):
        code, _, err = hullseeker(*arguments)
        assert (code, err.strip().count("\n")) == (2, 0)
        assert "expected a folder that can be written, got: Not a directory" in err
    assert {path.name for path in tmp_path.iterdir()} == {"search.yaml", "file"}


def test_run_in_a_folder_of_a_search_is_refused(hullseeker, search_file, finished):
    before = (finished / "search.yaml").stat().st_mtime_ns
    code, _, err = hullseeker("run", search_file(), "--dir", finished)
    assert code == 2
    assert f"holds a search already; go on with `hullseeker resume {finished}`" in err
    assert (finished / "search.yaml").stat().st_mtime_ns == before


def test_unexpected_errors_leave_their_traceback_in_a_file(hullseeker, search_file, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("the roof is on fire")

    monkeypatch.setattr("workflows.run.run_search", broken)
    code, _, err = hullseeker("run", search_file())
    assert code == 1
    assert "hullseeker: the roof is on fire" in err
    assert "Traceback" not in err
    assert "RuntimeError: the roof is on fire" in (tmp_path / "error.log").read_text()
    with pytest.raises(RuntimeError, match="roof"):
        hullseeker("--debug", "run", search_file())


@pytest.mark.parametrize("begun", [True, False])
def test_ctrl_c_says_how_to_go_on(hullseeker, search_file, monkeypatch, begun):
    def interrupted(_: object, folder: Path) -> None:
        if begun:
            folder.mkdir(parents=True)
            (folder / "search.yaml").write_text("project: tiny\n")
        raise KeyboardInterrupt

    monkeypatch.setattr("workflows.run.run_search", interrupted)
    code, _, err = hullseeker("run", search_file())
    assert code == 130
    hint = "finished labels are kept; go on with `hullseeker resume runs/tiny`" if begun else "nothing was begun"
    assert hint in err


def test_init_then_check(hullseeker, tmp_path):
    code, out, _ = hullseeker("init", tmp_path / "mine")
    assert code == 0
    file = tmp_path / "mine" / "search.yaml"
    assert f"hullseeker check {file}" in out
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(content | {"label": {"door": "ase", "calculator": "emt"}}))
    code, out, _ = hullseeker("check", file)
    assert code == 0
    assert "search.yaml: correct" in out
    code, _, err = hullseeker("init", tmp_path / "mine")
    assert code == 2
    assert "exists already; choose another folder" in err
    code, _, err = hullseeker("init", tmp_path / "other", "--template", "nosuch")
    assert code == 2
    assert "--template: expected one of " in err


def test_check_tells_the_sizes(hullseeker, search_file):
    code, out, _ = hullseeker("check", search_file(pressure_gpa=10))
    assert code == 0
    assert "system Au-Cu at 10 GPa, cells of 1 to 2 atoms" in out
    assert "generation 0: 24 labels" in out
    assert "at most 3 generations, 32 labels and 4 final relaxations" in out


def test_status(hullseeker, finished):
    code, out, _ = hullseeker("status", finished)
    assert code == 0
    assert out.startswith("tiny: ended (max_generations)")
    table = out.split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in table[2:5]] == ["0", "1", "2"]
    assert generations(open_store(finished), "tiny")[-1].why in out


def test_query(hullseeker, finished):
    store = open_store(finished)
    everything = query_phases(store, "tiny")
    code, out, _ = hullseeker("query", finished)
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines()[2:]] == [p["phase_id"] for p in everything]

    _, out, _ = hullseeker("query", finished, "--stable")
    stable = [p.phase_id for p in report(store, "tiny").phases if p.e_above_hull == 0]
    assert sorted(line.split()[-1] for line in out.splitlines()[2:]) == sorted(stable)

    _, out, _ = hullseeker("query", finished, "--json", "--formula", "Au")
    docs = json.loads(out)
    assert {doc["formula"] for doc in docs} == {"Au"}
    assert [doc["phase_id"] for doc in docs] == [p["phase_id"] for p in everything if p["formula"] == "Au"]
    assert Structure.from_dict(docs[0]["structure"]).reduced_formula == "Au"

    _, out, _ = hullseeker("query", finished, "--below", "0.0", "--json")
    assert {doc["phase_id"] for doc in json.loads(out)} == set(stable)

    code, out, _ = hullseeker("query", finished, "--formula", "Cu99")
    assert (code, out.strip()) == (0, "no such phase")


def test_newest_search_is_the_default(hullseeker, finished, monkeypatch):
    monkeypatch.chdir(finished.parent.parent)
    assert hullseeker("status")[1].startswith("tiny: ended")
    monkeypatch.chdir(finished)
    assert hullseeker("status")[1].startswith("tiny: ended")


def test_no_search_is_explained(hullseeker, tmp_path):
    for arguments in (("status",), ("query",), ("resume",), ("report",), ("export", "x.json")):
        code, _, err = hullseeker(*arguments)
        assert code == 2
        assert "no search below" in err
    code, _, err = hullseeker("query", tmp_path)
    assert code == 2
    assert "expected the folder of a search" in err
    assert list(tmp_path.iterdir()) == []


def test_export(hullseeker, finished, tmp_path):
    store = open_store(finished)
    near = query_phases(store, "tiny", below=0.05)
    code, out, _ = hullseeker("export", "phases.extxyz", "--dir", finished)
    assert (code, out.strip()) == (0, f"wrote {len(near)} phases to phases.extxyz")
    frames = read(tmp_path / "phases.extxyz", ":")
    assert [a.info["phase_id"] for a in frames] == [p["phase_id"] for p in near]

    assert hullseeker("export", "best.cif", "--dir", finished)[0] == 0
    assert Structure.from_file(tmp_path / "best.cif").matches(Structure.from_dict(near[0]["structure"]))

    assert hullseeker("export", "phases.json", "--dir", finished, "--below", 10)[0] == 0
    assert len(json.loads((tmp_path / "phases.json").read_text())) == len(query_phases(store, "tiny", below=10))

    code, out, _ = hullseeker("export", "labels.extxyz", "--labels", "--dir", finished)
    labels = read_labels(store, "tiny")
    frames = read(tmp_path / "labels.extxyz", ":")
    assert len(frames) == len(labels)
    assert sorted(a.get_potential_energy() for a in frames) == pytest.approx(sorted(x.energy for x in labels))
    assert all(a.get_forces().shape == (len(a), 3) and a.get_stress().shape == (6,) for a in frames)

    code, _, err = hullseeker("export", "phases.nonsense", "--dir", finished)
    assert code == 2
    assert "use .extxyz, .cif or .json" in err
    assert not (tmp_path / "phases.nonsense").exists()


def test_resume_of_a_finished_search_shows_the_answer(hullseeker, finished):
    code, out, _ = hullseeker("resume", finished)
    assert code == 0
    assert "stopped (max_generations)" in out
    assert f"hullseeker query {finished} --stable" in out


def test_results_in_the_configured_database(hullseeker, finished, monkeypatch, tmp_path):
    monkeypatch.setattr(SETTINGS, "JOB_STORE", embedded_job_store(finished / "store"))
    assert hullseeker("status", "--project", "tiny")[1].startswith("tiny: ended")
    assert len(hullseeker("query", "--project", "tiny")[1].splitlines()) > 2
    code, out, _ = hullseeker("report", "--project", "tiny")
    assert code == 0
    assert (tmp_path / out.split()[-1]).is_file()


@pytest.fixture
def unfinished_search(tiny_config, tmp_path) -> Path:
    """Return the folder of a search that was interrupted before its first generation ended."""
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "search.yaml").write_text(tiny_config().resolved_yaml())
    open_store(folder)
    return folder


def test_unfinished_search_answers_too(hullseeker, unfinished_search):
    assert "no generation has finished yet" in hullseeker("status", unfinished_search)[1]
    assert hullseeker("query", unfinished_search)[1].strip() == "no such phase"
    assert hullseeker("report", unfinished_search)[0] == 0
    assert "still running" in (unfinished_search / "report" / "report.html").read_text()
    code, _, err = hullseeker("export", "x.extxyz", "--dir", unfinished_search)
    assert (code, err.strip().count("\n")) == (2, 0)
    code, _, err = hullseeker("export", "x.extxyz", "--labels", "--dir", unfinished_search)
    assert (code, err.strip().count("\n")) == (2, 0)
