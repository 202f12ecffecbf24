"""Calculators that misbehave on demand, for the worker processes of the search tests (module:callable)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms


class CountingEMT(EMT):
    """EMT that writes a line per calculation, waits, and raises for cells of one atom if told to.

    Parameters
    ----------
    log
        File that gets a line per calculation.
    seconds
        How long each takes at least; a file of that name makes it fast.
    fail
        Chemical symbol; cells of a single such atom raise.
    """

    def __init__(self, log: str = "", seconds: float = 0.0, fail: str = "") -> None:
        super().__init__()
        self.log = log
        self.seconds = seconds
        self.fail = fail

    def calculate(
        self, atoms: Atoms, properties: Sequence[str] = ("energy",), system_changes: Sequence[str] = tuple(all_changes)
    ) -> None:
        """Be EMT, with trouble."""
        if self.fail and set(atoms.symbols) == {self.fail} and len(atoms) > 1:
            raise ValueError("this crystal is cursed")
        if self.seconds and not Path(f"{self.log}.fast").exists():
            time.sleep(self.seconds)
        super().calculate(atoms, list(properties), list(system_changes))
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{atoms.get_chemical_formula()} {atoms.get_volume():.6f}\n")


def counting(log: str = "", seconds: float = 0.0, fail: str = "") -> CountingEMT:
    return CountingEMT(log, seconds, fail)
