"""One label by one ASE calculator: what a worker process does."""

from __future__ import annotations

import platform
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE
from ase.units import GPa

from makers.documents import LabelKind, LabelStatus
from makers.labelling.calculators import build_calculator, calculator_versions
from makers.labelling.outcome import Outcome, Vectors

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

UNCONVERGED_ERRORS = {"SCFError", "ConvergenceError", "KohnShamConvergenceError"}
MAX_STEP = 0.1  # Å per relaxation step: a random crystal's first steps must not throw atoms through each other
FIRST_SHARE = 0.6  # of the steps for BFGS; what it cannot do, FIRE finishes


@dataclass(frozen=True)
class Task:
    """One label to calculate, in plain lists (it crosses process borders as JSON).

    Parameters
    ----------
    label_id
        Identity of the label.
    kind
        Single point or relaxation.
    numbers
        Atomic numbers.
    positions
        Positions, (n_atoms, 3), Å.
    cell
        Cell, rows are lattice vectors, (3, 3), Å.
    pressure_gpa
        Pressure of a relaxation, GPa.
    fmax
        Relaxations stop below it, eV/Å.
    max_steps
        Relaxations give up after as many steps.
    """

    label_id: str
    kind: LabelKind
    numbers: list[int]
    positions: Vectors
    cell: Vectors
    pressure_gpa: float = 0.0
    fmax: float = 0.02
    max_steps: int = 100

    def atoms(self) -> Atoms:
        """Return the structure, periodic in all directions."""
        return Atoms(self.numbers, positions=self.positions, cell=self.cell, pbc=True)


class Labeller:
    """Calculates labels one after the other with one kind of calculator.

    ASE's own calculators are built anew for each label; one named as module:callable may be expensive to build and
    is kept until a label fails.

    Parameters
    ----------
    calculator
        ASE name, or module:callable.
    settings
        Keyword arguments of the calculator.
    """

    def __init__(self, calculator: str, settings: dict[str, Any]) -> None:
        self.calculator = calculator
        self.settings = settings
        self._kept: Calculator | None = None

    def label(self, task: Task) -> Outcome:
        """Calculate one label; whatever happens to it is data.

        Parameters
        ----------
        task
            What to calculate.

        Returns
        -------
        Outcome
            Result, or status and reason.
        """
        start, clock = datetime.now(UTC), time.perf_counter()
        atoms = task.atoms()
        versions: dict[str, str] = {}
        try:
            atoms.calc = self._get()
            versions = calculator_versions(atoms.calc)
            status, message = LabelStatus.OK, ""
            if task.kind == LabelKind.RELAXATION:
                status, message = relax(atoms, task)
            results = {
                "energy": float(atoms.get_potential_energy()),
                "forces": atoms.get_forces().tolist(),
                "stress": atoms.get_stress(voigt=False).tolist(),
            }
        except Exception as exc:  # noqa: BLE001 - the isolation of one structure: any failure of a code is a status
            self._kept = None
            traceback.print_exc()
            status, message, results = *failure(exc), {}
        return Outcome(
            label_id=task.label_id,
            status=status,
            message=message,
            positions=atoms.positions.tolist(),
            cell=atoms.cell.array.tolist(),
            provenance={
                "versions": versions,
                "host": platform.node(),
                "started": start.isoformat(timespec="seconds"),
                "seconds": time.perf_counter() - clock,
            },
            **results,
        )

    def _get(self) -> Calculator:
        if ":" not in self.calculator:
            return build_calculator(self.calculator, self.settings)
        if self._kept is None:
            self._kept = build_calculator(self.calculator, self.settings)
        return self._kept


def relax(atoms: Atoms, task: Task) -> tuple[LabelStatus, str]:
    """Minimise the enthalpy over positions and cell, in place.

    BFGS on the logarithm of the deformation gradient first; FIRE for what BFGS cannot do.

    Parameters
    ----------
    atoms
        Structure with its calculator.
    task
        Pressure, threshold and number of steps.

    Returns
    -------
    tuple
        Status ok or unconverged, and the reason.
    """
    crystal = FrechetCellFilter(atoms, scalar_pressure=task.pressure_gpa * GPa)
    first = max(1, int(FIRST_SHARE * task.max_steps))
    for optimiser, steps in ((BFGS, first), (FIRE, task.max_steps - first)):
        driver: Any = optimiser  # its annotations forget that ASE's filters are as good as atoms
        if driver(crystal, logfile=None, maxstep=MAX_STEP).run(fmax=task.fmax, steps=steps):
            return LabelStatus.OK, ""
    return LabelStatus.UNCONVERGED, f"not below {task.fmax:g} eV/Å after {task.max_steps} steps"


def failure(exc: Exception) -> tuple[LabelStatus, str]:
    """Name what an exception of a calculator means.

    Parameters
    ----------
    exc
        The exception.

    Returns
    -------
    tuple
        Status and message.
    """
    names = {cls.__name__ for cls in type(exc).__mro__}
    lines = str(exc).strip().splitlines() or [""]
    message = f"{type(exc).__name__}: {lines[-1]}"[:500]
    return (LabelStatus.UNCONVERGED if names & UNCONVERGED_ERRORS else LabelStatus.CRASHED), message
