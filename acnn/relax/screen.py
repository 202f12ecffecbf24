"""Starts that cannot be evaluated are set aside before they enter a batch, which they would drown in neighbours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from acnn.batch import FARTHEST, SMALLEST_VOLUME
from acnn.lattice import has_vector_below, volume_and_face
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
    volume, face = volume_and_face(cell.tolist())
    if volume < SMALLEST_VOLUME * len(numbers):
        return FailureReason.VOLUME
    if has_vector_below(SHORTEST, atoms, volume, face):
        return FailureReason.TOO_CLOSE
    return None
