"""Calculators that misbehave on demand, for the worker processes of the label tests (module:callable)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase.calculators.calculator import SCFError, all_changes
from ase.calculators.emt import EMT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

GOLD_FAULTS = {1: "crash", 2: "hang", 3: "raise", 4: "nan", 5: "unconverged", 6: "exit"}


class FaultyEMT(EMT):
    """EMT that fails by the number of atoms wherever gold is asked for."""

    def __init__(self, seconds: float = 0.0, pids: str = "") -> None:
        super().__init__()
        self.seconds = seconds
        if pids:
            Path(pids, str(os.getpid())).touch()

    def calculate(
        self, atoms: Atoms, properties: Sequence[str] = ("energy",), system_changes: Sequence[str] = tuple(all_changes)
    ) -> None:
        """Fail if asked to, else be EMT."""
        time.sleep(self.seconds)
        fault = GOLD_FAULTS.get(len(atoms)) if set(atoms.symbols) == {"Au"} else None
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "exit":
            os._exit(7)
        if fault == "hang":
            time.sleep(600)
        if fault == "raise":
            raise ValueError("bad geometry")
        if fault == "unconverged":
            raise SCFError("250 cycles")
        super().calculate(atoms, list(properties), list(system_changes))
        if fault == "nan":
            self.results["forces"] = np.full((len(atoms), 3), np.nan)


def faulty(seconds: float = 0.0, pids: str = "") -> FaultyEMT:
    return FaultyEMT(seconds, pids)
