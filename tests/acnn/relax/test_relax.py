"""The relaxer: convergence, order, guards and independence of the batch."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
import spglib
import torch
from analytic import Morse, MorseCalculator, random_crystals
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE

from acnn.config import RelaxConfig
from acnn.relax import RelaxStatus, relax
from acnn.relax.engine import Engine
from acnn.relax.guard import distance_table
from acnn.relax.pool import Job

if TYPE_CHECKING:
    from ase import Atoms

GPA = 160.21766208  # GPa in one eV/Å^3
ENERGY_TOLERANCE = 1e-3  # eV per atom, the distance at which two minima count as the same


def group_of(atoms: Atoms) -> int:
    """Find the number of the space group, within 1e-4 Å."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # spglib is changing how it reports errors
        data = spglib.get_symmetry_dataset((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), 1e-4)
    return int(data.number)


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


def test_atoms_in_far_cells_lose_no_digits():
    near = random_crystals(2, 3)
    far = [atoms.copy() for atoms in near]
    for k, atoms in enumerate(far):
        shifts = np.random.default_rng(k).integers(-5000, 5000, (len(atoms), 3))
        atoms.positions += shifts @ atoms.cell.array
    potential = Morse(dtype=torch.float32)
    for one, other in zip(
        relax(near, potential, RelaxConfig(), pressure_gpa=0.0),
        relax(far, potential, RelaxConfig(), pressure_gpa=0.0),
        strict=True,
    ):
        assert other.energy == pytest.approx(one.energy, abs=1e-3)
        start, end = far[other.index], other.atoms
        moved = end.get_scaled_positions(wrap=False) - start.get_scaled_positions(wrap=False)
        assert np.abs(moved).max() < 1.0


def test_minima_are_those_of_ase():
    potential = Morse()
    settings = RelaxConfig(fmax=0.002, stress_gpa=0.02)
    near = [r.atoms for r in relax(random_crystals(9, 4, (2, 4)), potential, settings, pressure_gpa=20.0)]
    for seed, atoms in enumerate(near):
        atoms.rattle(0.05, seed=seed)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.01 * np.diag([1, -1, 2])), scale_atoms=True)
    for atoms, result in zip(near, relax(near, potential, settings, pressure_gpa=20.0), strict=True):
        end = atoms.copy()
        end.calc = MorseCalculator(potential)
        BFGS(FrechetCellFilter(end, scalar_pressure=20.0 / GPA), logfile=None).run(fmax=0.002, steps=400)
        enthalpy = end.get_potential_energy() + 20.0 / GPA * end.get_volume()
        assert result.enthalpy / len(atoms) == pytest.approx(enthalpy / len(atoms), abs=ENERGY_TOLERANCE)


def test_reported_values_are_those_of_the_final_structure():
    atoms = random_crystals(10, 1, (6, 6))[0]
    potential = Morse()
    (result,) = relax([atoms], potential, RelaxConfig(), pressure_gpa=30.0)
    final = result.atoms.copy()
    final.calc = MorseCalculator(potential)
    residual = final.get_stress(voigt=False) * GPA + 30.0 * np.eye(3)
    assert result.energy == pytest.approx(final.get_potential_energy(), abs=1e-8)
    assert result.enthalpy == pytest.approx(result.energy + 30.0 / GPA * final.get_volume(), abs=1e-8)
    assert result.fmax == pytest.approx(np.linalg.norm(final.get_forces(), axis=1).max(), abs=1e-8)
    assert result.stress_residual_gpa == pytest.approx(np.abs(residual).max(), abs=1e-6)


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Cu", "fcc", a=4.3),
        bulk("Al", "hcp", a=3.1, c=5.4),
        bulk("AlCu", "cesiumchloride", a=3.4),
        bulk("Al", "diamond", a=6.0, cubic=True),
    ],
    ids=["fcc", "hcp", "CsCl", "diamond"],
)
def test_symmetric_starts_stay_symmetric(atoms: Atoms):
    before = group_of(atoms)
    (result,) = relax([atoms], Morse(), RelaxConfig(), pressure_gpa=10.0)
    end = result.atoms
    assert result.status is RelaxStatus.CONVERGED
    assert group_of(end) == before


def test_each_structure_may_have_its_own_pressure():
    atoms = bulk("Cu", "fcc", a=3.9)
    low, high = relax([atoms, atoms], Morse(), RelaxConfig(), pressure_gpa=[0.0, 50.0])
    assert high.atoms.get_volume() < low.atoms.get_volume()


def test_fewer_calls_than_half_of_fire():
    frames = random_crystals(11, 2, (4, 4))
    potential = Morse()
    ours = [r.n_steps for r in relax(frames, potential, RelaxConfig(), pressure_gpa=0.0)]
    theirs = []
    for atoms in frames:
        end = atoms.copy()
        end.calc = MorseCalculator(potential)
        FIRE(FrechetCellFilter(end), logfile=None).run(fmax=0.02, steps=400)
        theirs.append(end.calc.n_calls)
    assert np.median(ours) <= 0.5 * np.median(theirs)


def test_a_hundred_structures_of_very_different_size():
    frames = random_crystals(12, 30, (1, 2)) + random_crystals(13, 1, (40, 40)) + random_crystals(16, 1, (200, 200))
    results = list(relax(frames, Morse(), RelaxConfig(fmax=0.1, stress_gpa=1.0), pressure_gpa=0.0))
    assert [len(r.atoms) for r in results] == [len(f) for f in frames]
    assert all(r.status is not RelaxStatus.UNSAFE for r in results)


def test_large_structures_leave_the_slots_of_small_ones_narrow():
    frames = random_crystals(16, 1, (80, 80)) + random_crystals(12, 60, (2, 6))
    alone = list(relax(frames[1:], Morse(), RelaxConfig(max_steps=60), pressure_gpa=0.0))
    engine = Engine(Morse(), RelaxConfig(max_steps=60), distance_table(None))
    padded: list[int] = []
    results = {}
    for result in engine.run(Job(k, atoms, 0.0) for k, atoms in enumerate(frames)):
        results[result.index] = result
        padded.append(sum(lane.pool.numbers.numel() for lane in engine.lanes))
    assert max(padded) <= 80 + 60 * 6
    assert sorted(results) == list(range(61))
    for one in alone:
        assert results[one.index + 1].energy == pytest.approx(one.energy, abs=1e-9)
        assert results[one.index + 1].n_steps == one.n_steps


def test_lanes_end_with_their_structures():
    sizes = [*range(1, 60, 3)] * 2
    frames = [atoms for size in sizes for atoms in random_crystals(size, 1, (size, size))]
    engine = Engine(Morse(), RelaxConfig(batch_atoms=64, max_steps=20), distance_table(None))
    widths = []
    indices = []
    for result in engine.run(Job(k, atoms, 0.0) for k, atoms in enumerate(frames)):
        indices.append(result.index)
        widths.append([lane.width for lane in engine.lanes])
    assert sorted(indices) == list(range(len(frames)))
    assert max(len(found) for found in widths) <= 4
    assert not engine.lanes
    assert engine.budget.in_flight == 0


def test_sizes_that_rise_share_few_lanes():
    frames = [atoms for size in range(10, 61) for atoms in random_crystals(size, 3, (size, size))]
    settings = RelaxConfig(batch_atoms=512, max_steps=40, fmax=0.2, stress_gpa=2.0)
    engine = Engine(Morse(), settings, distance_table(None))
    n_lanes = [len(engine.lanes) for _ in engine.run(Job(k, atoms, 0.0) for k, atoms in enumerate(frames))]
    assert len(n_lanes) == len(frames)
    assert max(n_lanes) <= 3
