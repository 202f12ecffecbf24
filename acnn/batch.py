"""The flat batch: many periodic structures side by side in a few tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase.data import chemical_symbols

from acnn.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

VACUUM = 30.0
"""Distance between images of a structure that is not periodic, Å; larger than any cutoff in use."""

SMALLEST_VOLUME = 0.3
"""Volume of an atom below which a structure is not worth looking at, Å^3; hydrogen at a TPa has more."""

FARTHEST = 1e6
"""Coordinates beyond this are no positions, Å; single precision could not tell images there apart."""


@dataclass(frozen=True)
class Batch:
    """Structures laid end to end; all tensors on one device.

    Attributes
    ----------
    numbers
        Atomic numbers, shape (n_atoms,), int64.
    positions
        Cartesian positions, shape (n_atoms, 3), Å.
    cells
        Lattice vectors as rows, shape (n_systems, 3, 3), Å.
    system
        The structure that each atom belongs to, shape (n_atoms,), int64, sorted.
    """

    numbers: torch.Tensor
    positions: torch.Tensor
    cells: torch.Tensor
    system: torch.Tensor

    @property
    def n_atoms(self) -> int:
        """Number of atoms of all structures together."""
        return int(self.positions.shape[0])

    @property
    def n_systems(self) -> int:
        """Number of structures."""
        return int(self.cells.shape[0])

    @classmethod
    def from_atoms(
        cls, frames: Sequence[Atoms], dtype: torch.dtype, device: torch.device | str = "cpu", *, first: int = 0
    ) -> Batch:
        """Lay structures end to end.

        Parameters
        ----------
        frames
            Structures, periodic in all three directions or (molecules, single atoms) in none; the
            latter are put into a cell with 30 Å between images.
        dtype
            Floating type of positions and cells.
        device
            Where the tensors go.
        first
            Number of the first structure, for messages.

        Returns
        -------
        Batch
            The flat batch, in the order of `frames`.

        Raises
        ------
        DataError
            If a structure has no atoms, a singular cell, mixed periodicity, an atomic number of no element, or an atom
            that is too far away or at no finite place; names its index.
        """
        for index, atoms in enumerate(frames, first):
            _check_atoms(atoms, index)
        cells = np.array([_cell(atoms, k) for k, atoms in enumerate(frames, first)]).reshape(-1, 3, 3)
        counts = np.array([len(atoms) for atoms in frames], dtype=np.int64)
        numbers = np.concatenate([atoms.numbers for atoms in frames] or [np.zeros(0)]).astype(np.int64)
        positions = np.concatenate([atoms.positions for atoms in frames] or [np.zeros((0, 3))])
        return cls(
            numbers=torch.as_tensor(numbers, device=device),
            positions=torch.as_tensor(positions, dtype=dtype, device=device),
            cells=torch.as_tensor(cells, dtype=dtype, device=device),
            system=torch.as_tensor(np.repeat(np.arange(len(frames)), counts), device=device),
        )


def _check_atoms(atoms: Atoms, index: int) -> None:
    """Refuse what would give wrong numbers silently: an atom at NaN has no neighbours, number -1 is that of Og."""
    numbers, positions = atoms.numbers, atoms.positions
    if len(numbers) == 0:
        raise DataError(f"structure {index}: expected at least one atom, got none")
    if numbers.min() < 1 or numbers.max() >= len(chemical_symbols):
        wrong = numbers[(numbers < 1) | (numbers >= len(chemical_symbols))]
        raise DataError(f"structure {index}: {wrong[0]} is no element's atomic number")
    if not np.abs(positions).max() < FARTHEST:  # also where it is NaN
        raise DataError(f"structure {index}: expected finite positions below {FARTHEST:g} Å")


def _cell(atoms: Atoms, index: int) -> np.ndarray:
    """Give the cell of one structure, shape (3, 3), Å; a large box for a molecule."""
    if not atoms.pbc.any():
        extent = np.ptp(atoms.positions, axis=0)
        return np.diag(extent + VACUUM)
    if not atoms.pbc.all():
        raise DataError(f"structure {index}: expected periodicity in all directions or none, got {atoms.pbc}")
    cell = np.asarray(atoms.cell.array, dtype=float)
    if not np.isfinite(cell).all() or abs(np.linalg.det(cell)) < 1e-6:
        raise DataError(f"structure {index}: expected three independent lattice vectors, got {cell.tolist()}")
    return cell
