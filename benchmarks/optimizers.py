"""Energy calls to convergence of several optimisers on the same random crystals with the same ACNN.

Run: ``OMP_NUM_THREADS=1 python benchmarks/optimizers.py [--n 40] [--model FILE] [--out FILE]``. ASE's optimisers move
the cell through a FrechetCellFilter; ours is measured with several lengths of its history and of the displacement that
counts as much as a strain of one. Every call of the potential is counted, those of line searches too.
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
from relax import FMAX, get_model, machine, publish, random_crystals

from acnn.calculator import ACNNCalculator
from acnn.config import RelaxConfig
from acnn.relax import RelaxStatus, pool, relax

if TYPE_CHECKING:
    from ase import Atoms

    from acnn.nn.potential import Potential

MOST = 500  # calls
ASE = {"FIRE": FIRE, "FIRE2": FIRE2, "LBFGS": LBFGS, "BFGS": BFGS, "BFGSLineSearch": BFGSLineSearch}


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


def run_ase(optimizer: Any, potential: Potential, frames: list[Atoms]) -> dict[str, Any]:  # noqa: ANN401 - a class of ASE
    """Relax one by one with an optimiser of ASE."""
    calls, energies, n_converged = [], [], 0
    for atoms in frames:
        copy = atoms.copy()
        copy.calc = Counter(potential)
        with suppress(TooManyCallsError, ValueError):  # too many calls, or a line search that failed
            n_converged += bool(optimizer(FrechetCellFilter(copy), logfile=None).run(fmax=FMAX, steps=MOST))
        calls.append(min(copy.calc.n_calls, MOST))
        energies.append(copy.calc.last_energy / len(copy))
    return figures(calls, n_converged, energies)


def run_ours(potential: Potential, frames: list[Atoms], history: int) -> dict[str, Any]:
    """Relax together with a history of some length."""
    results = list(relax(frames, potential, RelaxConfig(history=history, max_steps=MOST), pressure_gpa=0.0))
    n_converged = sum(r.status is RelaxStatus.CONVERGED for r in results)
    return figures([r.n_steps for r in results], n_converged, [r.energy / len(r.atoms) for r in results])


def figures(calls: list[int], n_converged: int, energies: list[float]) -> dict[str, Any]:
    """Sum up."""
    return {
        "median_calls": float(np.median(calls)),
        "mean_calls": float(np.mean(calls)),
        "p90_calls": float(np.percentile(calls, 90)),
        "converged": n_converged,
        "mean_energy_per_atom": float(np.mean(energies)),
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
        report[f"ours, cell length {length}"] = run_ours(potential, frames, 20)
    report["cell_length"] = pool.CELL_LENGTH = default
    publish(report, args.out)


if __name__ == "__main__":
    main()
