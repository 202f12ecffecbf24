"""What may be labelled: a generation's distinct crystals and its unsafe structures, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from csp.errors import DataError
from csp.flags import Flag
from csp.hull import formula_of

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Candidates:
    """What may be labelled, as columns of one length: distinct sound crystals, and unsafe structures.

    Parameters
    ----------
    frames
        The structure that would be labelled: a relaxed crystal, or the last safe frame of an unsafe one.
    fingerprints
        Of ``frames``, shape (n, d).
    e_above_hull
        Distance from the model's hull, shape (n,), eV/atom; not looked at for flagged structures.
    spread
        Standard deviation of the committee, shape (n,), eV/atom; not looked at for flagged structures.
    flags
        Flags of each structure; empty for a sound one.
    labelled
        Whether a label of (nearly) this structure exists, shape (n,).
    """

    frames: Sequence[Atoms]
    fingerprints: Floats
    e_above_hull: Floats
    spread: Floats
    flags: Sequence[tuple[Flag, ...]]
    labelled: Bools

    def __post_init__(self) -> None:
        """Check lengths and numbers.

        Raises
        ------
        DataError
            If a column is too short or long, or a sound structure has a number that is not finite.
        """
        for name in ("fingerprints", "e_above_hull", "spread", "flags", "labelled"):
            length = len(getattr(self, name))
            if length != len(self.frames):
                raise DataError(f"candidates: expected {len(self.frames)} {name}, one per structure, got {length}")
        for name in ("e_above_hull", "spread"):
            wrong = np.flatnonzero(self.sound & ~np.isfinite(getattr(self, name)))
            if len(wrong):
                raise DataError(f"candidates: structure {int(wrong[0])} has no flag but no finite {name} either")

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self.frames)

    @cached_property
    def sound(self) -> Bools:
        """Which structures have no flag, shape (n,)."""
        return np.array([not found for found in self.flags], dtype=bool)

    @cached_property
    def formulas(self) -> list[str]:
        """Reduced formulas, so that equivalent formula units are one composition."""
        return [formula_of(atoms) for atoms in self.frames]

    @cached_property
    def volumes(self) -> Floats:
        """Volumes, shape (n,), Å^3/atom."""
        return np.array([atoms.cell.volume / len(atoms) for atoms in self.frames], dtype=np.float64)
