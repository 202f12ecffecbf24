"""`acnn relax`: file in, file out, with the outcome of every structure."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, NoReturn
from unittest.mock import Mock

import pytest
import torch
from analytic import Morse, random_crystals
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from acnn import checkpoint
from acnn.cli import main
from acnn.config import ModelConfig, RelaxConfig
from acnn.errors import ConfigError, DataError
from acnn.nn.potential import Potential
from acnn.relax import relaxer, stream
from acnn.relax.stream import relax_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ase import Atoms

    from acnn.relax.result import Relaxed


def test_a_file_becomes_a_file_of_relaxed_structures(tmp_path: Path):
    frames = random_crystals(14, 5, (2, 4))
    write(tmp_path / "in.extxyz", frames)
    counts = relax_file(tmp_path / "in.extxyz", tmp_path / "out.extxyz", Morse(), RelaxConfig(), pressure_gpa=20.0)
    assert counts == {"converged": 5}
    out = read(tmp_path / "out.extxyz", index=":")
    for start, end in zip(frames, out, strict=True):
        assert start.get_chemical_symbols() == end.get_chemical_symbols()
        assert (end.info["relax_status"], end.info["relax_reason"]) == ("converged", "none")
        assert 0 < end.info["relax_steps"] < RelaxConfig().max_steps
        assert end.info["stress_residual_gpa"] < 0.1
        pv = end.info["pressure_gpa"] / 160.21766208 * end.get_volume()
        assert end.info["enthalpy"] == pytest.approx(end.get_potential_energy() + pv, abs=1e-5)
    assert not list(tmp_path.glob("*.partial"))


def test_the_command_relaxes_with_a_saved_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "in.extxyz", random_crystals(15, 3, (2, 3)))
    model = ModelConfig(n_radial=4, channels=2, mixed_channels=2, hidden=(4,), members=1, dtype="float64")
    checkpoint.save(Potential(model, ["Al", "Cu"], seed=1), tmp_path / "model.acnn")
    names = [str(tmp_path / name) for name in ("in.extxyz", "model.acnn", "out.extxyz")]
    command = ["relax", names[0], "--model", names[1], "--pressure", "50", "--out", names[2], "--fmax", "0.5"]
    assert main(command) == 0
    assert len(read(names[2], index=":")) == 3
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--fmax", "-1"], "relax.fmax"),
        (["--out", "nowhere/out.extxyz"], "folder"),
        (["--workers", "0"], "workers"),
        (["--device", "gpu"], "'auto', 'cpu' or 'cuda'"),
        pytest.param(
            ["--device", "cuda"],
            "sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
    ids=["fmax", "out", "workers", "device", "no GPU"],
)
def test_wrong_settings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str):
    write(tmp_path / "in.extxyz", random_crystals(15, 1, (2, 2)))
    model = ModelConfig(n_radial=4, channels=2, mixed_channels=2, hidden=(4,), members=1, dtype="float64")
    checkpoint.save(Potential(model, ["Al", "Cu"], seed=1), tmp_path / "model.acnn")
    command = ["relax", str(tmp_path / "in.extxyz"), "--model", str(tmp_path / "model.acnn")]
    assert main([*command, "--out", str(tmp_path / "out.extxyz"), *change]) == 2
    assert message in capsys.readouterr().err


def test_a_command_without_terminal_tells_its_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(relaxer, "LOG_SECONDS", 0.0)
    write(tmp_path / "in.extxyz", random_crystals(15, 2, (2, 3)))
    model = ModelConfig(n_radial=4, channels=2, mixed_channels=2, hidden=(4,), members=1, dtype="float64")
    checkpoint.save(Potential(model, ["Al", "Cu"], seed=1), tmp_path / "model.acnn")
    names = [str(tmp_path / name) for name in ("in.extxyz", "model.acnn", "out.extxyz")]
    assert main(["relax", names[0], "--model", names[1], "--out", names[2], "--fmax", "0.5"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"[\d.]+ s, [\d.]+ a", "T s, R a", line.split(":")[0]) for line in lines] == [
        "1 structures in T s, R a second",
        "2 structures in T s, R a second",
        "2 structures in T s, R a second",
    ]


def test_structures_that_cannot_be_relaxed_are_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    frames = random_crystals(15, 5, (2, 3))
    frames[1].symbols[0] = "Si"
    frames[3].cell[2] = frames[3].cell[1]
    write(tmp_path / "in.extxyz", frames)
    model = ModelConfig(n_radial=4, channels=2, mixed_channels=2, hidden=(4,), members=1, dtype="float64")
    checkpoint.save(Potential(model, ["Al", "Cu"], seed=1), tmp_path / "model.acnn")
    names = [str(tmp_path / name) for name in ("in.extxyz", "model.acnn", "out.extxyz")]
    assert main(["relax", names[0], "--model", names[1], "--out", names[2], "--fmax", "0.5"]) == 0
    reasons = [atoms.info["relax_reason"] for atoms in read(names[2], index=":")]
    assert (reasons[1], reasons[3]) == ("unknown_element", "volume")
    assert not {reasons[0], reasons[2], reasons[4]} & {"unknown_element", "volume"}
    assert "1  unsafe: unknown_element\n" in capsys.readouterr().out


def test_what_a_file_says_of_energies_is_not_carried_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    frames = random_crystals(14, 2, (2, 3))
    for atoms in frames:
        atoms.calc = SinglePointCalculator(atoms, energy=1.0)
    write(tmp_path / "in.extxyz", frames)
    seen = []

    def watched(frames: Iterator[Atoms], *arguments: object, **options: object) -> Iterator[Relaxed]:
        seen.extend(frames)
        return relaxer.relax(iter(seen), *arguments, **options)

    monkeypatch.setattr(stream, "relax", watched)
    relax_file(tmp_path / "in.extxyz", tmp_path / "out.extxyz", Morse(), RelaxConfig(), pressure_gpa=0.0)
    assert [atoms.calc for atoms in seen] == [None, None]


@pytest.mark.parametrize("taken", ["out.extxyz", "out.extxyz.partial"])
def test_output_that_cannot_be_written_is_told_before_any_work(tmp_path: Path, taken: str):
    write(tmp_path / "in.extxyz", random_crystals(14, 1, (2, 2)))
    (tmp_path / taken).mkdir()
    potential = Morse()
    with pytest.raises(ConfigError, match=r"out\.extxyz: .*this is a folder|out\.extxyz: cannot be written"):
        relax_file(tmp_path / "in.extxyz", tmp_path / "out.extxyz", potential, RelaxConfig(), pressure_gpa=0.0)
    assert potential.n_calls == 0
    assert {path.name for path in tmp_path.iterdir()} == {"in.extxyz", taken}


def test_an_interruption_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "load", interrupt)
    assert main(["relax", "in.extxyz", "--model", "model.acnn", "--out", "out.extxyz"]) == 130
    assert capsys.readouterr().err == "acnn relax: interrupted\n"


def test_an_interruption_says_what_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(checkpoint, "load", Mock(side_effect=KeyboardInterrupt))
    assert main(["relax", "in.extxyz", "--model", "model.acnn", "--out", "out.extxyz", "--work-dir", "kept"]) == 130
    assert capsys.readouterr().err == "acnn relax: interrupted; the same command goes on from what kept holds\n"


@pytest.mark.parametrize(("folder", "words"), [("kept", "$"), (None, "; with a folder for its work .*$")])
def test_a_file_that_breaks_off_says_where_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str | None, words: str
):
    def broken(frames: Iterator[Atoms], *arguments: object, **options: object) -> Iterator[Relaxed]:
        yield from relaxer.relax(islice(frames, 2), *arguments, **options)
        raise DataError("structure 2 cannot be read")

    monkeypatch.setattr(stream, "relax", broken)
    source, out = tmp_path / "in.extxyz", tmp_path / "out.extxyz"
    write(source, random_crystals(15, 3, (2, 2)))
    kept = tmp_path / folder if folder else None
    with pytest.raises(DataError, match=rf"read; the 2 before it are in .*out\.extxyz\.partial{words}"):
        relax_file(source, out, Morse(), RelaxConfig(), pressure_gpa=0.0, folder=kept)
    assert len(read(tmp_path / "out.extxyz.partial", ":", format="extxyz")) == 2


def test_a_damaged_folder_is_refused(tmp_path: Path):
    source, folder = tmp_path / "in.extxyz", tmp_path / "kept"
    write(source, random_crystals(15, 1, (2, 2)))
    folder.mkdir()
    (folder / "request.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="kept: holds results of other settings"):
        relax_file(source, tmp_path / "out.extxyz", Morse(), RelaxConfig(), pressure_gpa=0.0, folder=folder)


def test_an_empty_file_is_named(tmp_path: Path):
    (tmp_path / "in.extxyz").touch()
    with pytest.raises(DataError, match=r"in\.extxyz: holds no structure"):
        relax_file(tmp_path / "in.extxyz", tmp_path / "out.extxyz", Morse(), RelaxConfig(), pressure_gpa=0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["in.extxyz"]


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = ModelConfig(n_radial=4, channels=2, mixed_channels=2, hidden=(4,), members=1, dtype="float64")
    checkpoint.save(Potential(model, ["Al", "Cu"], seed=1), tmp_path / "model.acnn")
    command = ["relax", str(tmp_path / "no.extxyz"), "--model", str(tmp_path / "model.acnn")]
    assert main([*command, "--out", str(tmp_path / "out.extxyz")]) == 1
    assert "no.extxyz" in capsys.readouterr().err
