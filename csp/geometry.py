"""Distances in a crystal over all periodic images."""

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TINY = 1e-9


def pair_distances(atoms: Atoms, reach: float) -> tuple[Ints, Ints, Floats]:
    """List the pairs of atoms within reach.

    Parameters
    ----------
    atoms
        A crystal, periodic in three directions.
    reach
        Å.

    Returns
    -------
    tuple[Ints, Ints, Floats]
        First atom, second atom, distance in Å, each (n_pairs,): every pair and image once in each direction. Two atoms
        at the same place count as a pair at distance 0.
    """
    cell = np.asarray(atoms.cell.array, dtype=float)
    fractions = np.linalg.solve(cell.T, atoms.positions.T).T
    difference = fractions[None] - fractions[:, None]
    difference -= np.rint(difference)
    heights = 1.0 / np.sqrt((np.linalg.inv(cell) ** 2).sum(axis=0))
    ranges = np.floor(reach / heights + 0.5 + TINY).astype(int)
    axes = (np.arange(-n, n + 1) for n in ranges)
    images = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 1, 1, 3)
    squared = (((difference[None] + images) @ cell) ** 2).sum(axis=-1)
    home = len(images) // 2
    squared[home][np.diag_indices(len(atoms))] = np.inf
    _, first, second = np.nonzero(squared < reach**2)
    return first, second, np.sqrt(squared[squared < reach**2])


def shortest_distances(atoms: Atoms, reach: float) -> dict[tuple[int, int], float]:
    """Give the shortest distance of every pair of elements.

    Parameters
    ----------
    atoms
        A crystal.
    reach
        Å.

    Returns
    -------
    dict[tuple[int, int], float]
        Å by atomic numbers, the smaller first; pairs that do not come within reach are left out.
    """
    first, second, distance = pair_distances(atoms, reach)
    numbers = np.asarray(atoms.numbers)
    low, high = np.minimum(numbers[first], numbers[second]), np.maximum(numbers[first], numbers[second])
    code = low * 1000 + high
    kinds, where = np.unique(code, return_inverse=True)
    least = np.full(len(kinds), np.inf)
    np.minimum.at(least, where, distance)
    return {(int(kind) // 1000, int(kind) % 1000): float(d) for kind, d in zip(kinds, least, strict=True)}


def least_excess(atoms: Atoms, limits: Floats) -> float:
    """Tell how far the worst pair is from its least distance.

    Parameters
    ----------
    atoms
        A crystal.
    limits
        (n_atoms, n_atoms) least distances, Å.

    Returns
    -------
    float
        Å; negative where a pair is too close, infinite where none is near.
    """
    first, second, distance = pair_distances(atoms, float(limits.max()) + TINY)
    return float((distance - limits[first, second]).min(initial=np.inf))
