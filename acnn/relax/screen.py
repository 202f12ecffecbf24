"""Starts that cannot be evaluated are set aside before they enter a batch, which they would drown in neighbours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols
from ase.geometry import minkowski_reduce

from acnn.batch import FARTHEST, SMALLEST_VOLUME
from acnn.relax.result import FailureReason, Relaxed, RelaxStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ase import Atoms

    from acnn.relax.pool import Job

SHORTEST = 0.3
"""Distance of an atom from its own image below which a structure is not worth looking at, Å."""


def screened(jobs: Iterator[Job], elements: Sequence[str] | None = None) -> Iterator[Job | Relaxed]:
    """Pass on the structures that can be evaluated at all, and the results of the others.

    Parameters
    ----------
    jobs
        Structures.
    elements
        Those that the potential knows, where it says so.

    Yields
    ------
    Job or Relaxed
        A structure, or why it cannot be evaluated.
    """
    known = np.isin(chemical_symbols, elements or chemical_symbols)
    nan = math.nan
    for job in jobs:
        reason = _reason(job.atoms, known)
        if reason is None:
            yield job
        else:
            yield Relaxed(
                job.index, job.atoms.copy(), RelaxStatus.UNSAFE, reason.value, 0, nan, nan, nan, nan, spread=nan
            )


def _reason(atoms: Atoms, known: np.ndarray) -> FailureReason | None:
    """Say why a structure cannot be evaluated."""
    cell, numbers = atoms.cell.array, atoms.numbers
    if len(numbers) == 0 or not atoms.pbc.all() or numbers.min() < 1:
        return FailureReason.NO_CRYSTAL
    if not known[numbers].all():
        return FailureReason.UNKNOWN_ELEMENT
    if not (np.abs(atoms.positions).max() < FARTHEST and np.abs(cell).max() < FARTHEST):
        return FailureReason.NOT_FINITE
    volume, face = _volume_and_face(cell.tolist())
    if volume < SMALLEST_VOLUME * len(numbers):
        return FailureReason.VOLUME
    # a lattice vector is no shorter than the smallest height, which is the volume over the largest face
    if face * 2.0 * SHORTEST > volume and _shortest(atoms) < SHORTEST:
        return FailureReason.TOO_CLOSE
    return None


def _volume_and_face(cell: list[list[float]]) -> tuple[float, float]:
    """Give the volume, Å^3, and the largest component of the normals of the faces, Å^2; quicker than by arrays."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = cell
    normal = (by * cz - bz * cy, bz * cx - bx * cz, bx * cy - by * cx)
    others = (cy * az - cz * ay, cz * ax - cx * az, cx * ay - cy * ax, ay * bz - az * by, az * bx - ax * bz)
    faces = (*normal, *others, ax * by - ay * bx)
    return abs(ax * normal[0] + ay * normal[1] + az * normal[2]), max(*faces, -min(faces))


def _shortest(atoms: Atoms) -> float:
    """Find the length of the shortest lattice vector, Å; 0 where the cell is too bad to tell."""
    try:
        reduced, _ = minkowski_reduce(atoms.cell)
    except RuntimeError:
        return 0.0
    return float(np.linalg.norm(reduced, axis=1).min())
