"""How thin a cell is: where a lattice vector is short, an atom meets its own images by the thousand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ase.geometry import minkowski_reduce

if TYPE_CHECKING:
    from ase import Atoms


def volume_and_face(cell: list[list[float]]) -> tuple[float, float]:
    """Give the volume and the largest component of the normals of the faces; quicker than by arrays.

    Parameters
    ----------
    cell
        Lattice vectors as rows, Å.

    Returns
    -------
    tuple
        Å^3 and Å^2.
    """
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = cell
    normal = (by * cz - bz * cy, bz * cx - bx * cz, bx * cy - by * cx)
    others = (cy * az - cz * ay, cz * ax - cx * az, cx * ay - cy * ax, ay * bz - az * by, az * bx - ax * bz)
    faces = (*normal, *others, ax * by - ay * bx)
    return abs(ax * normal[0] + ay * normal[1] + az * normal[2]), max(*faces, -min(faces))


def has_vector_below(length: float, atoms: Atoms, volume: float, face: float) -> bool:
    """Say whether any lattice vector is shorter than a length.

    Parameters
    ----------
    length
        Å.
    atoms
        The crystal.
    volume
        Of its cell, Å^3.
    face
        Of its cell, from `volume_and_face`, Å^2.

    Returns
    -------
    bool
        True also where the cell is too bad to tell.
    """
    # a lattice vector is no shorter than the smallest height, which is the volume over the largest face
    return face * 2.0 * length > volume and _shortest(atoms) < length


def _shortest(atoms: Atoms) -> float:
    """Find the length of the shortest lattice vector, Å; 0 where the cell is too bad to tell."""
    try:
        reduced, _ = minkowski_reduce(atoms.cell)
    except RuntimeError:
        return 0.0
    return float(np.linalg.norm(reduced, axis=1).min())
