"""What every relaxation promises, checked on the results of `relax.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import spglib
import torch
from ase.build import bulk
from ase.units import GPa

from acnn.batch import Batch
from acnn.config import RelaxConfig
from acnn.relax import Relaxed, RelaxStatus, relax

if TYPE_CHECKING:
    from ase import Atoms

    from acnn.nn.potential import Potential

FMAX, RESIDUAL_GPA = 0.02, 0.1  # eV/Å, GPa: the default criterion
ROUNDING = 1e-5  # eV/atom, of energies in single precision
SAME = 1e-3  # eV/atom within which two minima are the same
APART, STRAIN = 0.2, 0.02  # Å and relative: two ends of one start that are closer lie in the same basin
SYMMETRY = 1e-3  # Å within which atoms are on their sites


def promises(potential: Potential, frames: list[Atoms], results: list[Relaxed], pressure_gpa: float) -> None:
    """Assert that no enthalpy rose, and that what is called converged is so in double precision too."""
    start = potential.compute(Batch.from_atoms(frames, torch.float64, "cpu")).energy.numpy()
    for atoms, energy, result in zip(frames, start, results, strict=True):
        before = energy + pressure_gpa * GPa * atoms.cell.volume
        assert result.enthalpy <= before + ROUNDING * len(atoms), f"structure {result.index}: the enthalpy rose"
        if result.status is RelaxStatus.CONVERGED:
            assert result.fmax < FMAX
            assert result.stress_residual_gpa < RESIDUAL_GPA
    done = [r.atoms for r in results if r.status is RelaxStatus.CONVERGED]
    again = potential.to(torch.float64).compute(Batch.from_atoms(done, torch.float64, "cpu"))
    potential.to(torch.float32)
    largest = again.forces.norm(dim=1).max()
    residual = (again.stress / GPa + pressure_gpa * torch.eye(3, dtype=torch.float64)).abs().max()
    assert largest < 1.02 * FMAX, f"largest force {largest} eV/Å in double precision"
    assert residual < 1.02 * RESIDUAL_GPA, f"largest residual {residual} GPa in double precision"


def converged(forces: torch.Tensor, stress: torch.Tensor, system: torch.Tensor) -> torch.Tensor:
    """Hold forces (eV/Å) and stresses (eV/Å^3) of structures without pressure against the criterion, one by one."""
    largest = torch.zeros(len(stress), dtype=forces.dtype).scatter_reduce(0, system, forces.norm(dim=1), "amax")
    return (largest < FMAX) & (stress.abs().amax((1, 2)) / GPa < RESIDUAL_GPA)


def count_converged(potential: Potential, ends: list[Atoms]) -> int:
    """Count the ends of a relaxation that fulfil the criterion, as the potential itself sees them."""
    batch = Batch.from_atoms(ends, potential.dtype, "cpu")
    output = potential.compute(batch)
    slack = 1.02  # of what rounding of the positions may change
    return int(converged(output.forces / slack, output.stress / slack, batch.system).sum())


def under_pressure(potential: Potential, frames: list[Atoms], pressure_gpa: float) -> dict[str, Any]:
    """Relax some under pressure and check the same."""
    results = list(relax(frames, potential, RelaxConfig(), pressure_gpa=pressure_gpa))
    promises(potential, frames, results, pressure_gpa)
    converged = [r for r in results if r.status is RelaxStatus.CONVERGED]
    return {
        "pressure_gpa": pressure_gpa,
        "structures": len(frames),
        "converged": len(converged),
        "largest_residual_gpa": max(r.stress_residual_gpa for r in converged),
    }


def near_minima(results: list[Relaxed]) -> list[Atoms]:
    """Displace relaxed crystals at random, mostly not out of their basins."""
    rng = np.random.default_rng(0)
    starts = []
    for result in results:
        atoms = result.atoms.copy()
        atoms.positions += rng.normal(0, 0.03, (len(atoms), 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.005, (3, 3))), scale_atoms=True)
        starts.append(atoms)
    return starts


def same_minima(ours: list[Relaxed], theirs: list[Atoms]) -> dict[str, Any]:
    """Compare the ends of two relaxations from the same starts: basins by geometry, and energies within each."""
    gaps = np.array([r.energy - e.get_potential_energy() for r, e in zip(ours, theirs, strict=True)])
    gaps /= [len(atoms) for atoms in theirs]
    together = np.array([_same_basin(r.atoms, e) for r, e in zip(ours, theirs, strict=True)])
    inside = np.abs(gaps[together])
    return {
        "starts": len(ours),
        "same_basin": int(together.sum()),
        "same_energy": int((inside < SAME).sum()),
        "median_gap_ev_per_atom": float(np.median(inside)) if len(inside) else None,
        "ours_lower": int((gaps < -SAME).sum()),
        "theirs_lower": int((gaps > SAME).sum()),
    }


def _same_basin(one: Atoms, other: Atoms) -> bool:
    """Compare two ends of one start: cells by their metric, atoms by their fractional coordinates."""
    metrics = [atoms.cell.array @ atoms.cell.array.T for atoms in (one, other)]
    delta = one.get_scaled_positions(wrap=False) - other.get_scaled_positions(wrap=False)
    delta = (delta - delta.mean(0)) @ one.cell.array
    near = np.linalg.norm(metrics[0] - metrics[1]) < STRAIN * np.linalg.norm(metrics[0])
    return bool(near and np.linalg.norm(delta, axis=1).max() < APART)


def symmetric(potential: Potential) -> dict[str, Any]:
    """Relax strained crystals of high symmetry; none may lose any."""
    starts = [
        bulk(name, kind, a=a, cubic=cubic)
        for name, kind, lengths in (
            ("Al", "fcc", (3.8, 4.3)),
            ("Cu", "fcc", (3.4, 3.9)),
            ("Cu", "bcc", (2.7, 3.1)),
            ("Al", "diamond", (5.6, 6.2)),
            ("AlCu", "rocksalt", (4.9, 5.6)),
            ("AlCu", "zincblende", (5.4, 6.0)),
        )
        for a in lengths
        for cubic in (False, True)
    ]
    starts += [bulk("AlCu", "cesiumchloride", a=a) for a in (2.8, 3.3)]
    starts += [bulk(name, "hcp", a=a, c=1.6 * a) for name, a in (("Al", 2.7), ("Al", 3.0), ("Cu", 2.4), ("Cu", 2.7))]
    results = list(relax(starts, potential, RelaxConfig(), pressure_gpa=0.0))
    changed = [
        f"{atoms.symbols} {_group(atoms)} to {_group(result.atoms)}"
        for atoms, result in zip(starts, results, strict=True)
        if _group(atoms) != _group(result.atoms)
    ]
    n_converged = sum(r.status is RelaxStatus.CONVERGED for r in results)
    return {"structures": len(starts), "converged": n_converged, "tolerance": SYMMETRY, "changed": changed}


def _group(atoms: Atoms) -> int:
    """Find the number of the space group."""
    data = spglib.get_symmetry_dataset((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), SYMMETRY)
    return int(data.number)


def alone(potential: Potential, frames: list[Atoms]) -> dict[str, Any]:
    """Relax crystals one by one and together; only rounding may differ."""
    together = list(relax(frames, potential, RelaxConfig(), pressure_gpa=0.0))
    single = [next(relax([atoms], potential, RelaxConfig(), pressure_gpa=0.0)) for atoms in frames]
    gaps = [abs(a.energy - b.energy) / len(a.atoms) for a, b in zip(together, single, strict=True)]
    return {"structures": len(frames), "largest_gap_ev_per_atom": max(gaps)}
