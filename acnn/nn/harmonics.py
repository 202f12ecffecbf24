"""Cartesian monomials, real spherical harmonics and their couplings."""

from __future__ import annotations

import math

import numpy as np
import torch

MAX_DEGREE = 4


def monomials(u: torch.Tensor, l_max: int) -> torch.Tensor:
    """Evaluate all monomials x^a y^b z^c of degree 0 to ``l_max``.

    Parameters
    ----------
    u
        The three Cartesian components, each of shape (n_atoms, K), stacked first: (3, n_atoms, K).
    l_max
        Highest degree, at most 4.

    Returns
    -------
    torch.Tensor
        Shape (n_atoms, n_monomials, K), ordered by degree, then as ``monomial_powers``.
    """
    x, y, z = u.unbind(0)
    columns = [torch.ones_like(x)]
    previous = [columns[0]]
    for degree in range(1, l_max + 1):
        # degree d in x-major order: x times all of degree d-1, y times those without x, z times the last one
        n = len(previous)
        tail = previous[n - degree :]
        previous = [x, y, z] if degree == 1 else [x * p for p in previous] + [y * p for p in tail] + [z * previous[-1]]
        columns += previous
    return torch.stack(columns, dim=1)


def monomial_powers(degree: int) -> list[tuple[int, int, int]]:
    """List the exponents (a, b, c) of one degree in the order of `monomials`."""
    return [(a, b, degree - a - b) for a in range(degree, -1, -1) for b in range(degree - a, -1, -1)]


def monomial_counts(l_max: int) -> list[int]:
    """Count the monomials of each degree."""
    return [(degree + 1) * (degree + 2) // 2 for degree in range(l_max + 1)]


def sphere_quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Give points and weights that integrate polynomials up to degree 15 over the unit sphere exactly.

    Returns
    -------
    tuple
        Points, shape (n, 3), and weights, shape (n,), that sum to one.
    """
    nodes, weights = np.polynomial.legendre.leggauss(8)
    phi = 2 * np.pi * np.arange(16) / 16
    z, p = np.meshgrid(nodes, phi, indexing="ij")
    s = np.sqrt(1 - z**2)
    points = np.stack([s * np.cos(p), s * np.sin(p), z], -1).reshape(-1, 3)
    return points, np.repeat(weights / 2, 16) / 16


def _monomial_values(points: np.ndarray, degree: int) -> np.ndarray:
    powers = np.array(monomial_powers(degree))
    values: np.ndarray = np.prod(points[:, None, :] ** powers[None], axis=-1)
    return values


def harmonic_matrix(degree: int) -> np.ndarray:
    """Express the real harmonics of one degree by monomials of that degree on the unit sphere.

    The harmonics are the part of the monomials that is orthogonal to all lower degrees, made orthonormal
    with respect to the mean over the sphere. Any orthonormal set spans the same rotation-invariant space,
    so the usual phases do not matter here.

    Parameters
    ----------
    degree
        The degree l.

    Returns
    -------
    numpy.ndarray
        Shape (2l + 1, (l + 1)(l + 2) / 2).
    """
    points, weights = sphere_quadrature()
    values = _monomial_values(points, degree)
    gram = values.T @ (weights[:, None] * values)
    root = np.linalg.cholesky(gram)
    if degree >= 2:
        lower = _monomial_values(points, degree - 2)  # on the sphere it spans every lower degree of equal parity
        overlap = values.T @ (weights[:, None] * lower)
    else:
        overlap = np.zeros((len(gram), 0))
    # coefficient vectors c with c^T overlap = 0, orthonormal in the metric of the Gram matrix
    constraint = np.linalg.solve(root, overlap)
    u, _, _ = np.linalg.svd(constraint, full_matrices=True)
    free = u[:, constraint.shape[1] :]
    return np.asarray(np.linalg.solve(root.T, free).T)


def harmonic_table(l_max: int) -> list[torch.Tensor]:
    """Give the matrices from monomials to harmonics for each degree, scaled to a mean square of 1/(2l+1)."""
    return [torch.tensor(harmonic_matrix(degree) / math.sqrt(2 * degree + 1)) for degree in range(l_max + 1)]


def coupling(l_max: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the symmetric product of two harmonics as a matrix over their unordered pairs.

    Parameters
    ----------
    l_max
        Highest degree of the factors and of the product.

    Returns
    -------
    tuple
        ``first`` and ``second``, shape (n_pairs,), the factors' numbers; and the matrix, shape
        (n_pairs, (l_max + 1)^2). Pairs that couple to nothing are left out.
    """
    points, weights = sphere_quadrature()
    y = np.concatenate(
        [_monomial_values(points, degree) @ harmonic_matrix(degree).T for degree in range(l_max + 1)], axis=1
    )
    gaunt = np.einsum("q,qa,qb,qc->abc", weights, y, y, y, optimize=True)
    first, second = np.triu_indices(y.shape[1])
    matrix = gaunt[first, second] * np.where(first == second, 1.0, 2.0)[:, None]
    keep = np.abs(matrix).max(axis=1) > 1e-10
    matrix[np.abs(matrix) < 1e-12] = 0.0
    return torch.tensor(first[keep]), torch.tensor(second[keep]), torch.tensor(matrix[keep])
