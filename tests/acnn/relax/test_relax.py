"""The relaxer: convergence, order, guards and independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import Morse, random_crystals

from acnn.config import RelaxConfig
from acnn.relax import RelaxStatus, relax


@pytest.mark.parametrize("pressure_gpa", [0.0, 50.0])
def test_random_crystals_converge_and_never_rise(pressure_gpa: float):
    frames = random_crystals(0, 12)
    potential = Morse()
    start = list(relax(frames, potential, RelaxConfig(max_steps=1), pressure_gpa=pressure_gpa))
    end = list(relax(frames, potential, RelaxConfig(), pressure_gpa=pressure_gpa))
    assert [r.index for r in end] == list(range(len(frames)))
    for before, after in zip(start, end, strict=True):
        assert after.status is RelaxStatus.CONVERGED
        assert after.fmax < 0.02
        assert after.stress_residual_gpa < 0.1
        assert after.enthalpy <= before.enthalpy


def test_a_structure_ends_the_same_alone_and_in_a_batch():
    frames = random_crystals(1, 6)
    together = list(relax(frames, Morse(), RelaxConfig(), pressure_gpa=10.0))
    for k, atoms in enumerate(frames):
        (alone,) = relax([atoms], Morse(), RelaxConfig(), pressure_gpa=10.0)
        assert alone.n_steps == together[k].n_steps
        assert alone.energy == pytest.approx(together[k].energy, abs=1e-9)
        assert np.allclose(alone.atoms.positions, together[k].atoms.positions, atol=1e-6)


def test_float32_potential_gives_the_same_minima():
    frames = random_crystals(2, 6)
    double = list(relax(frames, Morse(), RelaxConfig(), pressure_gpa=0.0))
    single = list(relax(frames, Morse(dtype=torch.float32), RelaxConfig(), pressure_gpa=0.0))
    for one, other in zip(double, single, strict=True):
        assert other.status is RelaxStatus.CONVERGED
        assert abs(one.energy - other.energy) / len(one.atoms) < 1e-3
