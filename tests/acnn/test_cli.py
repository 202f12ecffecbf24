"""The command line: train, evaluate, and mistakes that are explained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from acnn import checkpoint
from acnn.cli import main
from acnn.config import ModelConfig
from acnn.nn.potential import Potential
from acnn.output import check_output
from acnn.train.loop import _Run

CONFIG = """
model: {n_radial: 5, channels: 3, mixed_channels: 3, hidden: [6], members: 2}
train: {max_steps: 20, evaluate_every: 10}
"""


@pytest.fixture
def data(tmp_path, alloys):
    path = tmp_path / "train.extxyz"
    write(path, alloys)
    return path


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def test_train_then_evaluate(data, config, tmp_path, capsys):
    model = tmp_path / "a.acnn"
    arguments = ["train", str(data), "--out", str(model), "--config", str(config), "--seed", "3", "--threads", "1"]
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert "labels learned" in told.out
    assert "virial" not in told.err  # what was learned of a Pulay stress in a few steps is far below the errors
    assert (tmp_path / "a.csv").read_text().startswith("step,seconds,loss,energy_mae_ev_per_atom")
    assert checkpoint.load(model).elements == ("Cu", "Au")
    assert main(["evaluate", str(model), str(data), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert (metrics["n_structures"], metrics["n_with_forces"], metrics["n_with_stress"]) == (40, 40, 40)
    assert metrics["stress_mae_gpa"] > 0
    assert main(["evaluate", str(model), str(data)]) == 0
    assert "meV/atom" in capsys.readouterr().out


def test_what_labels_lack_is_told(config, tmp_path, alloys, capsys):
    text = tmp_path / "train.extxyz"
    write(text, alloys)
    text.write_text(text.read_text().replace("stress=", "virial="))
    arguments = ["train", str(text), "--out", str(tmp_path / "a.acnn"), "--config", str(config)]
    assert main(arguments) == 0
    told = "lacking: 40 x stress (there is a virial, which is not read: give the stress in eV/Å^3)\n"
    assert told in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "a.acnn"), str(text), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert (metrics["n_with_forces"], metrics["n_with_stress"]) == (40, 0)


def test_previous_and_max_time(data, config, tmp_path):
    first, second = tmp_path / "a.acnn", tmp_path / "b.acnn"
    base = ["train", str(data), "--config", str(config)]
    assert main([*base, "--out", str(first)]) == 0
    assert main([*base, "--out", str(second), "--previous", str(first), "--max-time", "5"]) == 0
    assert len(checkpoint.load(second).metadata["trainings"]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"model: {chanels: 3}", "config.yaml: model.chanels: unknown option; did you mean channels?"),
        (b"trian: {}", "config.yaml: trian: unknown section; did you mean train?"),
        (b"1: 2", "config.yaml: 1: unknown section; expected the sections model, train, relax"),
        (b"model: 0", "config.yaml: model: expected options and their values, got 0"),
        (b"train: {max_steps: -1}", "train.max_steps: Input should be greater than or equal to 1, got -1"),
        (b"model: {attention_width: 5}", "config.yaml: model: Value error, attention_width: must be a multiple"),
        (b"- 1", "expected the sections model, train, relax, got list"),
        (b"0", "expected the sections model, train, relax, got int"),
        (b"{", "config.yaml: cannot be read"),
        (b"\xff\xfe\x00", "config.yaml: cannot be read"),
    ],
    ids=["option", "section", "number", "zero", "value", "together", "list", "bare zero", "syntax", "bytes"],
)
def test_a_wrong_config_is_explained(data, config, tmp_path, capsys, text, message):
    config.write_bytes(text)
    assert main(["train", str(data), "--out", str(tmp_path / "a.acnn"), "--config", str(config)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("relx: {fmax: 9}", "relx: unknown section; did you mean relax?"),
        ("relax: [1]", "relax: expected options and their values, got [1]"),
        ("relax: {fmax: -1}", "relax.fmax: Input should be greater than 0, got -1"),
    ],
)
def test_a_wrong_config_of_relaxations_is_explained(data, config, tmp_path, capsys, text, message):
    config.write_text(text)
    arguments = ["--model", str(tmp_path / "a.acnn"), "--out", str(tmp_path / "b.extxyz"), "--config", str(config)]
    assert main(["relax", str(data), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_wrong_data_and_models_are_named(data, tmp_path, capsys):
    out = ["--out", str(tmp_path / "a.acnn")]
    assert main(["train", str(tmp_path / "none.extxyz"), *out]) == 1
    assert "none.extxyz: no such file" in capsys.readouterr().err
    (tmp_path / "broken.extxyz").write_text("not a structure")
    assert main(["train", str(tmp_path / "broken.extxyz"), *out]) == 1
    assert "broken.extxyz: line 1: expected the number of atoms" in capsys.readouterr().err
    write(tmp_path / "bare.extxyz", Atoms("Cu", cell=3 * np.eye(3), pbc=True))
    assert main(["train", str(tmp_path / "bare.extxyz"), *out]) == 1
    assert "bare.extxyz: frame 0: expected an energy, got nothing" in capsys.readouterr().err
    assert main(["evaluate", str(data), str(data)]) == 1
    assert "not a potential" in capsys.readouterr().err
    checkpoint.save(Potential(ModelConfig(n_radial=5, channels=3, hidden=(6,)), ["Cu"], seed=0), tmp_path / "b.acnn")
    assert main(["evaluate", str(tmp_path / "b.acnn"), str(tmp_path / "none.extxyz")]) == 1
    assert capsys.readouterr().err == f"acnn evaluate: {tmp_path / 'none.extxyz'}: no such file\n"
    assert main(["train", str(data), "--out", str(tmp_path / "no" / "a.acnn")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_unknown_elements_are_named(data, config, tmp_path, capsys):
    model = tmp_path / "a.acnn"
    assert main(["train", str(data), "--out", str(model), "--config", str(config)]) == 0
    silver = Atoms("Ag", cell=3 * np.eye(3), pbc=True)
    silver.calc = SinglePointCalculator(silver, energy=1.0)
    write(tmp_path / "silver.extxyz", silver)
    assert main(["evaluate", str(model), str(tmp_path / "silver.extxyz")]) == 1
    assert "silver.extxyz: frame 0: holds Ag, but the potential knows Cu, Au" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--max-time", "-5"], "train.max_time: Input should be greater than 0, got -5.0"),
        (["--seed", "-1"], "--seed: must be from 0 to"),
        (["--threads", "0"], "--threads: must be from 1 to 1024, got 0"),
        (["--threads", "100000"], "--threads: must be from 1 to 1024, got 100000"),
        (["--out", "."], "--out: expected a file to write to, . is a folder"),
        (["--out", "/"], "--out: expected a file to write to, / is a folder"),
        (["--metrics", "."], "--metrics: expected a file to write to, . is a folder"),
        (["--out", "a.csv"], "--out: a.csv is also the table of the errors"),
        (["--metrics", "no/a.csv"], "--metrics: the folder of no/a.csv does not exist"),
    ],
    ids=["max-time", "seed", "no threads", "threads", "here", "root", "table here", "out", "metrics"],
)
def test_wrong_options_are_explained(data, tmp_path, capsys, option, message):
    assert main(["train", str(data), "--out", str(tmp_path / "a.acnn"), *option]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--metrics"])
@pytest.mark.parametrize("name", ["train.extxyz", "config.yaml", "previous.acnn"])
def test_nothing_that_is_read_is_overwritten(data, config, tmp_path, capsys, option, name):
    checkpoint.save(Potential(ModelConfig(members=1), ["Cu", "Au"]), tmp_path / "previous.acnn")
    before = (tmp_path / name).read_bytes()
    outputs = {"--out": str(tmp_path / "a.acnn"), "--metrics": str(tmp_path / "a.csv"), option: str(tmp_path / name)}
    arguments = ["train", str(data), "--config", str(config), "--previous", str(tmp_path / "previous.acnn")]
    assert main([*arguments, *(word for pair in outputs.items() for word in pair)]) == 2
    assert f"{option}: {tmp_path / name} would overwrite" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == before


def test_relaxed_structures_do_not_overwrite_what_is_read(data, tmp_path, capsys):
    model = tmp_path / "a.acnn"
    checkpoint.save(Potential(ModelConfig(members=1), ["Cu", "Au"]), model)
    for path in (data, model):
        before = path.read_bytes()
        assert main(["relax", str(data), "--model", str(model), "--out", str(path)]) == 2
        assert f"--out: {path} would overwrite" in capsys.readouterr().err
        assert path.read_bytes() == before


def test_outputs_that_cannot_be_written_are_told_first(data, tmp_path, capsys, monkeypatch):
    arguments = ["train", str(data), "--out", str(tmp_path / "a.acnn"), "--metrics"]
    (tmp_path / "b.csv").touch()
    monkeypatch.setattr("os.access", lambda path, _: path.name != "b.csv")
    assert main([*arguments, str(tmp_path / "b.csv")]) == 2
    assert "b.csv cannot be written: it is read-only" in capsys.readouterr().err
    opened = Path.open

    def denied(path: Path, mode: str = "r", **others: bool) -> IO[Any]:
        if path.name == "c.csv.partial":
            raise PermissionError(13, "Permission denied")
        return opened(path, mode, **others)

    monkeypatch.setattr(Path, "open", denied)
    assert main([*arguments, str(tmp_path / "c.csv")]) == 2
    assert "c.csv cannot be written: Permission denied" in capsys.readouterr().err


def test_what_another_command_is_writing_is_left_alone(data, config, tmp_path):
    arguments = ["train", str(data), "--config", str(config), "--out", str(tmp_path / "a.acnn")]
    (tmp_path / "b.csv.partial").write_text("being written")
    assert main([*arguments, "--metrics", "/dev/null"]) == 0
    check_output("--metrics", tmp_path / "b.csv", {})
    assert (tmp_path / "b.csv.partial").read_text() == "being written"


def test_each_version_has_its_table(data, config, tmp_path):
    for name in ("model.1", "model.2"):
        assert main(["train", str(data), "--config", str(config), "--out", str(tmp_path / name)]) == 0
    assert {path.name for path in tmp_path.glob("model.*")} == {"model.1", "model.1.csv", "model.2", "model.2.csv"}


def test_a_table_of_something_else_is_not_overwritten(data, config, tmp_path, capsys):
    arguments = ["train", str(data), "--config", str(config), "--out", str(tmp_path / "a.acnn")]
    (tmp_path / "a.csv").write_text("name,price\n")
    assert main(arguments) == 2
    assert "a.csv exists and is no table of errors" in capsys.readouterr().err
    for ours in ("step,seconds\n", ""):
        (tmp_path / "a.csv").write_text(ours)
        assert main(arguments) == 0


def test_errors_that_nobody_knows_are_not_zero(config, tmp_path, alloys, capsys):
    bare = [atoms.copy() for atoms in alloys]
    for atoms, known in zip(bare, alloys, strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=known.get_potential_energy())
    write(tmp_path / "train.extxyz", bare)
    out = tmp_path / "a.acnn"
    assert main(["train", str(tmp_path / "train.extxyz"), "--out", str(out), "--config", str(config)]) == 0
    assert "meV/atom, - eV/Å" in capsys.readouterr().out
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "step,seconds,loss,energy_mae_ev_per_atom"
    known = checkpoint.load(out).metadata
    assert set(known["history"]) == {"step", "loss", "energy_mae_ev_per_atom"}
    assert set(known["trainings"][0]["held_out"]) == {"energy_mae_ev_per_atom"}


def test_a_killed_training_leaves_the_same_table_and_history(data, config, tmp_path, monkeypatch):
    arguments = ["train", str(data), "--config", str(config), "--seed", "5"]
    whole, again = tmp_path / "whole.acnn", tmp_path / "again.acnn"
    assert main([*arguments, "--out", str(whole)]) == 0
    resumed = [*arguments, "--out", str(again), "--work-dir", str(tmp_path / "work")]
    for stop in (13, None, None):  # killed after step 13; gone on; and a finished one run again
        with monkeypatch.context() as patch:
            if stop is not None:
                patch.setattr("acnn.train.loop.SAVE_SECONDS", 0.0)
                patch.setattr("acnn.train.loop._Run._step", killed_after(stop))
                with pytest.raises(KeyError):
                    main(resumed)
            else:
                assert main(resumed) == 0
    tables = [path.with_suffix(".csv").read_text().splitlines() for path in (whole, again)]
    assert tables[0][0] == tables[1][0]
    assert [line.split(",")[0] for line in tables[1]] == ["step", "10", "20"]
    assert again.read_bytes() == whole.read_bytes()
    known = checkpoint.load(again).metadata
    assert known["history"]["step"] == [10.0, 20.0]
    assert known["trainings"][0]["seed"] == 5


def killed_after(stop: int) -> Callable[[_Run, float], None]:
    step = _Run._step

    def killed(run: _Run, progress: float) -> None:
        if run.state.step == stop:
            raise KeyError("killed")
        step(run, progress)

    return killed


def test_a_state_that_is_damaged_is_named(data, config, tmp_path, capsys):
    work = tmp_path / "work"
    arguments = ["train", str(data), "--config", str(config), "--out", str(tmp_path / "a.acnn")]
    assert main([*arguments, "--work-dir", str(work)]) == 0
    capsys.readouterr()
    state = work / "train-state.safetensors"
    content = bytearray(state.read_bytes())
    content[-9] ^= 1  # of the last tensor
    state.write_bytes(content)
    assert main([*arguments, "--work-dir", str(work)]) == 1
    assert capsys.readouterr().err.startswith(f"acnn train: {state}: damaged")
    state.unlink()
    state.mkdir()
    assert main([*arguments, "--work-dir", str(work)]) == 1
    assert f"{state}: cannot be read" in capsys.readouterr().err


def test_previous_gives_its_shape(data, config, tmp_path):
    first, second = tmp_path / "a.acnn", tmp_path / "b.acnn"
    assert main(["train", str(data), "--config", str(config), "--out", str(first)]) == 0
    config.write_text("train: {max_steps: 2}")
    assert main(["train", str(data), "--config", str(config), "--out", str(second), "--previous", str(first)]) == 0
    assert checkpoint.load(second).config == checkpoint.load(first).config


def test_empty_files_and_unknown_devices_are_explained(data, config, tmp_path, capsys):
    model, empty, out = (tmp_path / name for name in ("a.acnn", "empty.extxyz", "out.extxyz"))
    empty.touch()
    assert main(["train", str(empty), "--out", str(model)]) == 1
    assert "empty.extxyz: holds no structure" in capsys.readouterr().err
    assert main(["train", str(data), "--out", str(model), "--config", str(config)]) == 0
    assert main(["evaluate", str(model), str(empty)]) == 1
    assert "empty.extxyz: holds no structure" in capsys.readouterr().err
    assert main(["relax", str(empty), "--model", str(model), "--out", str(out)]) == 1
    assert "empty.extxyz: holds no structure" in capsys.readouterr().err
    (tmp_path / "words.unknown").write_text("no format that is known")
    for command in (["train", "--out", str(model)], ["relax", "--model", str(model), "--out", str(out)]):
        assert main([command[0], str(tmp_path / "words.unknown"), *command[1:]]) == 1
        assert "words.unknown: " in capsys.readouterr().err
    assert main(["relax", str(data), "--model", str(model), "--out", str(out), "--device", "foo"]) == 2
    assert "Input should be 'auto', 'cpu' or 'cuda'" in capsys.readouterr().err


def test_a_model_of_a_search_can_be_trained_further(data, config, tmp_path):
    model, further = tmp_path / "a.acnn", tmp_path / "b.acnn"
    arguments = ["train", str(data), "--config", str(config)]
    assert main([*arguments, "--out", str(model)]) == 0
    potential = checkpoint.load(model)
    potential.metadata["label_fingerprint"] = "of a search"
    checkpoint.save(potential, model)
    assert main([*arguments, "--out", str(further), "--previous", str(model)]) == 0
    assert checkpoint.load(further).metadata["label_fingerprint"] == "of a search"
