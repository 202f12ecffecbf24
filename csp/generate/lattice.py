"""Random lattices that fit a space group, and reduced cells."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from csp.generate.wyckoff import SpaceGroup, space_group

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LENGTH_SPREAD = 0.55  # edge lengths vary by exp(+-0.55) before the symmetry averages them
COSINE_SPREAD = 0.45  # cosines of the cell angles vary within +-0.45
LEAST_VOLUME = 0.3  # of the product of the edges: flatter cells are drawn again


def random_lattice(group: SpaceGroup, rng: np.random.Generator, volume: float) -> Floats:
    """Draw a primitive cell that has the symmetry of a space group.

    A random metric tensor is averaged over the rotations of the group, which gives every lattice of its crystal system.

    Parameters
    ----------
    group
        The space group.
    rng
        Source of chance.
    volume
        Of the primitive cell, Å^3.

    Returns
    -------
    Floats
        (3, 3), rows are the group's primitive vectors, Å, in a fixed orientation: conventional a along x,
        conventional b in the xy plane.
    """
    flat = True
    while flat:
        lengths = np.exp(rng.uniform(-LENGTH_SPREAD, LENGTH_SPREAD, 3))
        a, b, c = rng.uniform(-COSINE_SPREAD, COSINE_SPREAD, 3).tolist()
        flat = 1 + 2 * a * b * c - (a * a + b * b + c * c) < LEAST_VOLUME**2
    metric = np.array([[1, a, b], [a, 1, c], [b, c, 1]]) * (lengths[:, None] * lengths)
    metric = (metric_average(group.number) @ metric.ravel()).reshape(3, 3)
    upright = np.linalg.cholesky(metric)
    scaled: Floats = group.basis @ upright * (volume / (group.share * upright.diagonal().prod())) ** (1 / 3)
    return scaled


@lru_cache(maxsize=256)
def metric_average(number: int) -> Floats:
    """Give the (9, 9) matrix that averages a conventional metric tensor over a group's rotations."""
    rotations = space_group(number).conventional_rotations.astype(float)
    average: Floats = np.einsum("nki,nlj->ijkl", rotations, rotations).reshape(9, 9) / len(rotations)
    return average


@lru_cache(maxsize=256)
def strain_average(number: int) -> Floats:
    """Give the (9, 9) matrix that keeps the part of a Cartesian strain that a group allows, without its trace.

    Holds for every lattice of ``random_lattice`` because its orientation is fixed.
    """
    group = space_group(number)
    metric = (metric_average(number) @ np.diag([1.0, 1.21, 1.44]).ravel()).reshape(3, 3)
    cell = np.linalg.cholesky(metric)
    rotations = cell.T @ group.conventional_rotations @ np.linalg.inv(cell.T)
    average = np.einsum("nik,njl->ijkl", rotations, rotations).reshape(9, 9) / len(rotations)
    trace = np.eye(3).ravel()
    allowed: Floats = average - np.outer(trace, trace) / 3
    return allowed


def reduction(cell: Floats) -> Ints:
    """Find the short lattice vectors of a cell.

    Parameters
    ----------
    cell
        (3, 3), rows, Å.

    Returns
    -------
    Ints
        (3, 3) with determinant 1: ``matrix @ cell`` is Minkowski-reduced but for rare ties; handedness is kept.
    """
    matrix = np.eye(3, dtype=np.int64)
    gram = cell @ cell.T
    for _ in range(100):
        change = _pair_step(gram) if (change := _triple_step(gram)) is None else change
        if change is None:
            break
        matrix = change @ matrix
        gram = change @ gram @ change.T
    return matrix


def _pair_step(gram: Floats) -> Ints | None:
    """Shorten one vector by another, or give None when no pair can be shortened."""
    g = gram.tolist()
    for i in range(3):
        for j in range(3):
            if i != j and 2 * abs(g[i][j]) > g[j][j] * (1 + 1e-9):
                change = np.eye(3, dtype=np.int64)
                change[i, j] = -round(g[i][j] / g[j][j])
                return change
    return None


def _triple_step(gram: Floats) -> Ints | None:
    """Shorten the longest vector by a sum or difference of the two others, or give None."""
    g = gram.tolist()
    k = max(range(3), key=lambda i: g[i][i])
    i, j = (n for n in range(3) if n != k)
    for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        added = g[i][i] + g[j][j] + 2 * (a * g[k][i] + b * g[k][j] + a * b * g[i][j])
        if added < -1e-9 * g[k][k]:
            change = np.eye(3, dtype=np.int64)
            change[k, i], change[k, j] = a, b
            return change
    return None
