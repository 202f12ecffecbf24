"""Energy calls to convergence of several optimisers on the same random crystals with the same ACNN.

Run: ``OMP_NUM_THREADS=1 python benchmarks/optimizers.py [--n 40] [--model FILE] [--out FILE]``. ASE's optimisers move
the cell through a FrechetCellFilter; one of them is preconditioned by distances. Ours is measured with several lengths
of its history and of the displacement that counts as much as a strain of one. Under pressure and with other sizes of
cells the default is compared with three of ASE's. Every call of the potential is counted, those of line searches too.
"""

from __future__ import annotations

import argparse
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, FIRE2, LBFGS, BFGSLineSearch
from ase.optimize.precon import Exp, PreconLBFGS
from ase.units import GPa
from relax import FMAX, get_model, machine, publish, random_crystals

from acnn.calculator import ACNNCalculator
from acnn.config import RelaxConfig
from acnn.relax import RelaxStatus, pool, relax

if TYPE_CHECKING:
    from collections.abc import Callable

    from ase import Atoms

    from acnn.nn.potential import Potential

MOST = 500  # calls
DEFAULT = RelaxConfig()
CASES = {"100 GPa": (12, 100.0), "4 atoms": (4, 0.0), "24 atoms": (24, 0.0)}  # atoms, GPa; others: 12 and 0


def preconditioned(atoms: FrechetCellFilter, logfile: None) -> PreconLBFGS:
    """Make ASE's L-BFGS with its exponential preconditioner."""
    return PreconLBFGS(atoms, precon=Exp(), logfile=logfile)


FEW = {"FIRE": FIRE, "LBFGS": LBFGS, "PreconLBFGS": preconditioned}
ASE = FEW | {"FIRE2": FIRE2, "BFGS": BFGS, "BFGSLineSearch": BFGSLineSearch}


class TooManyCallsError(Exception):
    """An optimiser has not converged in the calls allowed."""


class Counter(ACNNCalculator):
    """Count the calls, and stop at the most allowed."""

    n_calls, last_energy = 0, np.nan

    def calculate(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        """Count and compute."""
        self.n_calls += 1
        if self.n_calls > MOST:
            raise TooManyCallsError
        super().calculate(*args, **kwargs)
        self.last_energy = self.results["energy"]


def run_ase(
    optimizer: Callable[..., Any], potential: Potential, frames: list[Atoms], pressure_gpa: float = 0.0
) -> dict[str, Any]:
    """Relax one by one with an optimiser of ASE."""
    calls, energies, n_converged = [], [], 0
    for atoms in frames:
        copy = atoms.copy()
        copy.calc = Counter(potential)
        cell = FrechetCellFilter(copy, scalar_pressure=pressure_gpa * GPa)
        with suppress(TooManyCallsError, ValueError):  # too many calls, or a line search that failed
            n_converged += bool(optimizer(cell, logfile=None).run(fmax=FMAX, steps=MOST))
        calls.append(min(copy.calc.n_calls, MOST))
        energies.append((copy.calc.last_energy + pressure_gpa * GPa * copy.cell.volume) / len(copy))
    return figures(calls, n_converged, energies)


def run_ours(
    potential: Potential, frames: list[Atoms], history: int = DEFAULT.history, pressure_gpa: float = 0.0
) -> dict[str, Any]:
    """Relax together with a history of some length."""
    settings = RelaxConfig(history=history, max_steps=MOST)
    results = list(relax(frames, potential, settings, pressure_gpa=pressure_gpa))
    n_converged = sum(r.status is RelaxStatus.CONVERGED for r in results)
    return figures([r.n_steps for r in results], n_converged, [r.enthalpy / len(r.atoms) for r in results])


def figures(calls: list[int], n_converged: int, energies: list[float]) -> dict[str, Any]:
    """Sum up."""
    return {
        "median_calls": float(np.median(calls)),
        "mean_calls": float(np.mean(calls)),
        "p90_calls": float(np.percentile(calls, 90)),
        "converged": n_converged,
        "mean_enthalpy_per_atom": float(np.mean(energies)),
    }


def main() -> None:
    """Run all and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # ASE warns of line searches that end early
    potential = get_model(args.model, 60.0)
    frames = random_crystals(11, args.n, (12, 12))
    report: dict[str, Any] = {"machine": machine(), "structures": args.n, "most_calls": MOST, "fmax": FMAX}
    report |= {f"ase {name}": run_ase(optimizer, potential, frames) for name, optimizer in ASE.items()}
    report |= {f"ours, history {n}": run_ours(potential, frames, n) for n in (1, 5, 10, 20, 40)}
    default = pool.CELL_LENGTH
    for length in (0.3, 1.3):
        pool.CELL_LENGTH = length
        report[f"ours, cell length {length}"] = run_ours(potential, frames)
    report["cell_length"] = pool.CELL_LENGTH = default
    for case, (size, pressure_gpa) in CASES.items():
        frames = random_crystals(12, args.n, (size, size))
        for name, optimizer in FEW.items():
            report[f"{case}, ase {name}"] = run_ase(optimizer, potential, frames, pressure_gpa)
        report[f"{case}, ours"] = run_ours(potential, frames, pressure_gpa=pressure_gpa)
    publish(report, args.out)


if __name__ == "__main__":
    main()
