"""A calculator for labels on the cluster of the tests: effective medium, a line per calculation, crashes on demand."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

KILL_AFTER = 5


class LoggedEMT(EMT):
    """EMT that writes down what it calculates, and takes its process with it at some crystals.

    The file is named by the variable CALCULATIONS: a setting would belong to the identity of the labels. A file
    ``calculation.kill`` in the folder of faults ends the launcher, once, as soon as KILL_AFTER calculations are done.

    Parameters
    ----------
    crash
        Chemical symbol; cells of two such atoms end the process.
    """

    def __init__(self, crash: str = "") -> None:
        super().__init__()
        self.crash = crash

    def calculate(
        self, atoms: Atoms, properties: Sequence[str] = ("energy",), system_changes: Sequence[str] = tuple(all_changes)
    ) -> None:
        """Be EMT, with trouble."""
        with Path(os.environ["CALCULATIONS"]).open("a") as file:
            file.write(f"{atoms.get_chemical_formula()} {atoms.get_volume():.3f}\n")
        if len(atoms) > 1 and set(atoms.symbols) == {self.crash}:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.abort()
        super().calculate(atoms, list(properties), list(system_changes))
        self._kill_launcher()

    @staticmethod
    def _kill_launcher() -> None:
        folder = Path(os.environ.get("FAULTS", ""))
        kill = folder / "calculation.kill"
        if kill.exists() and len(Path(os.environ["CALCULATIONS"]).read_text().splitlines()) > KILL_AFTER:
            kill.rename(folder / "calculation.killed")
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()  # this label is never finished


def logged(crash: str = "") -> LoggedEMT:
    """Return the calculator."""
    return LoggedEMT(crash)
