"""Distances in a crystal over all periodic images."""

from itertools import product

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TINY = 1e-9


def pair_vectors(atoms: Atoms, reach: float) -> tuple[Ints, Ints, Floats]:
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
        First atom (n_pairs,), second atom (n_pairs,), vector from the first to the second (n_pairs, 3) in Å: every pair
        and image once in each direction. Two atoms at the same place count as a pair at distance 0.
    """
    cell = np.asarray(atoms.cell.array, dtype=float)
    inverse = np.linalg.inv(cell)
    fractions = atoms.positions @ inverse
    difference = fractions[None] - fractions[:, None]
    difference -= np.rint(difference)
    ranges = np.floor(reach * np.sqrt((inverse**2).sum(axis=0)) + 0.5 + TINY).astype(int)
    first: list[Ints] = []
    second: list[Ints] = []
    vectors: list[Floats] = []
    home = difference @ cell
    for image in product(*(range(-n, n + 1) for n in ranges.tolist())):
        shifted = home + np.array(image, dtype=float) @ cell
        squared = np.einsum("ijk,ijk->ij", shifted, shifted)
        if not any(image):
            np.fill_diagonal(squared, np.inf)
        i, j = np.nonzero(squared < reach**2)
        first.append(i)
        second.append(j)
        vectors.append(shifted[i, j])
    return np.concatenate(first), np.concatenate(second), np.concatenate(vectors)


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
    first, second, vectors = pair_vectors(atoms, reach)
    distance = np.sqrt((vectors**2).sum(axis=1))
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
    first, second, vectors = pair_vectors(atoms, float(limits.max()) + TINY)
    distance = np.sqrt((vectors**2).sum(axis=1))
    return float((distance - limits[first, second]).min(initial=np.inf))
