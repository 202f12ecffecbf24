"""A TorchSim model as the potential; the numbers agree with those of the potential itself."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from analytic import Morse, random_crystals
from ase.io import read, write

from acnn import checkpoint
from acnn.batch import Batch
from acnn.cli import main
from acnn.config import ModelConfig, RelaxConfig
from acnn.errors import ConfigError, ModelError
from acnn.nn.potential import Potential
from acnn.relax import relax
from acnn.relax.torchsim import TorchSimPotential

if TYPE_CHECKING:
    from pathlib import Path


class MorseModel:
    """The interface of a TorchSim model around the analytic potential: cells come as columns."""

    compute_forces = True
    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, *, compute_stress: bool = True) -> None:
        self.compute_stress = compute_stress

    def __call__(self, state: SimpleNamespace) -> dict[str, torch.Tensor]:
        """Evaluate a state."""
        batch = Batch(state.atomic_numbers, state.positions, state.cell.mT, state.system_idx)
        output = Morse().compute(batch)
        return {"energy": output.energy, "forces": output.forces, "stress": output.stress}


def test_a_model_of_torchsim_relaxes_like_the_potential(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch_sim", SimpleNamespace(SimState=SimpleNamespace))
    frames = random_crystals(30, 4, (2, 5))
    ours = list(relax(frames, Morse(), RelaxConfig(), pressure_gpa=10.0))
    theirs = list(relax(frames, TorchSimPotential(MorseModel()), RelaxConfig(), pressure_gpa=10.0))
    for one, other in zip(ours, theirs, strict=True):
        assert other.n_steps == one.n_steps
        assert other.enthalpy == pytest.approx(one.enthalpy, abs=1e-9)


def test_a_model_without_stress_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch_sim", SimpleNamespace(SimState=SimpleNamespace))
    with pytest.raises(ModelError, match="stresses"):
        TorchSimPotential(MorseModel(compute_stress=False))


def test_a_missing_torchsim_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch_sim", None)
    with pytest.raises(ConfigError, match="torchsim"):
        TorchSimPotential(MorseModel())


FACTORY = """
from pathlib import Path
from acnn import checkpoint
from acnn.torchsim import ACNNModel

def make(device):
    return ACNNModel(checkpoint.load(Path(__file__).with_name("model.acnn")).to(device))
"""


def relax_by_command(folder: Path, model: str) -> int:
    """Relax three crystals by the command line."""
    write(folder / "in.extxyz", random_crystals(30, 3, (2, 4)))
    names = [str(folder / name) for name in ("in.extxyz", "out.extxyz")]
    return main(["relax", names[0], "--out", names[1], "--model", model, "--device", "cpu"])


def test_the_command_takes_a_function_that_gives_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch_sim", SimpleNamespace(SimState=SimpleNamespace))
    monkeypatch.setitem(sys.modules, "mine", SimpleNamespace(make=lambda device: MorseModel()))  # noqa: ARG005
    assert relax_by_command(tmp_path, "torchsim:mine:make") == 0
    found = [atoms.get_potential_energy() for atoms in read(tmp_path / "out.extxyz", index=":")]
    ours = relax(read(tmp_path / "in.extxyz", index=":"), Morse(), RelaxConfig(), pressure_gpa=0.0)
    assert found == pytest.approx([result.energy for result in ours], abs=1e-4)


@pytest.mark.parametrize("place", ["mine:make", "nowhere:make", "", "torch", "os:getcwd"])
def test_a_function_that_is_not_there_is_named(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert relax_by_command(tmp_path, f"torchsim:{place}") == 2
    assert f"torchsim:{place}: expected torchsim:MODULE:FUNCTION" in capsys.readouterr().err


def test_the_command_takes_a_model_of_the_installed_torchsim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch_sim", reason="TorchSim is not installed")
    model = ModelConfig(n_radial=4, channels=2, mixed_channels=2, hidden=(4,), members=1, dtype="float64")
    checkpoint.save(Potential(model, ["Al", "Cu"], seed=1), tmp_path / "model.acnn")
    (tmp_path / "factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    enthalpies = []
    for name in ("torchsim:factory:make", str(tmp_path / "model.acnn")):
        assert relax_by_command(tmp_path, name) == 0
        enthalpies.append([atoms.info["enthalpy"] for atoms in read(tmp_path / "out.extxyz", index=":")])
    assert enthalpies[0] == pytest.approx(enthalpies[1], abs=1e-6)
