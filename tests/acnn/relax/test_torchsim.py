"""A TorchSim model as the potential; the numbers agree with those of the potential itself."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from analytic import Morse, random_crystals

from acnn.batch import Batch
from acnn.config import RelaxConfig
from acnn.errors import ConfigError, ModelError
from acnn.relax import relax
from acnn.relax.torchsim import TorchSimPotential


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
