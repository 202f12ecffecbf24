"""The limits that a structure must keep on every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from ase.data import atomic_numbers, covalent_radii

from acnn.batch import SMALLEST_VOLUME
from acnn.compiled import load_library
from acnn.errors import ConfigError
from acnn.neighbors import SOURCES
from acnn.relax.result import FailureReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acnn.batch import Batch
    from acnn.compiled import Library
    from acnn.config import RelaxConfig
    from acnn.neighbors import Neighbors

CODES = tuple(FailureReason)
"""Reasons by number, from 1; 0 is none."""

CODE = {reason: number for number, reason in enumerate(CODES, start=1)}
"""Numbers of the reasons."""

RETRIED = (FailureReason.TOO_CLOSE, FailureReason.VOLUME, FailureReason.NOT_FINITE)
"""Reasons that a shorter step may avoid."""

GPA = 1.0 / 160.21766208
"""One GPa in eV/Å^3."""

N_NUMBERS = 119
"""Atomic numbers 0 to 118."""

RADII_FRACTION = 0.8
"""Minimum distance of a pair in units of the sum of its covalent radii, where none is given."""


def distance_table(min_distance: Mapping[tuple[str, str], float] | np.ndarray | None) -> np.ndarray:
    """Lay out the minimum distances by atomic number.

    Parameters
    ----------
    min_distance
        Distances by pair of symbols (either order), Å, or a square array by atomic number; pairs that are
        missing, or all if none, get 0.8 times the sum of their covalent radii.

    Returns
    -------
    np.ndarray
        Symmetric table, shape (119, 119), Å.

    Raises
    ------
    ConfigError
        If a symbol is unknown, a distance negative or the array of a wrong shape.
    """
    radii = np.where(np.isfinite(covalent_radii), covalent_radii, 0.2)
    radii = np.concatenate([radii, np.full(N_NUMBERS, radii[-1])])[:N_NUMBERS]
    table: np.ndarray = RADII_FRACTION * (radii[:, None] + radii[None, :])
    if min_distance is None:
        return table
    if isinstance(min_distance, np.ndarray):
        n = min_distance.shape[0]
        if min_distance.shape != (n, n) or n > N_NUMBERS:
            raise ConfigError(f"min_distance: expected a square array by atomic number, got {min_distance.shape}")
        given = np.maximum(min_distance, min_distance.T)
        table[:n, :n] = np.where(given > 0, given, table[:n, :n])
        return table
    for (one, two), value in min_distance.items():
        if one not in atomic_numbers or two not in atomic_numbers or not value >= 0:
            raise ConfigError(
                f"min_distance: expected two element symbols and a distance in Å, got {one}-{two}: {value}"
            )
        a, b = atomic_numbers[one], atomic_numbers[two]
        table[a, b] = table[b, a] = value
    return table


def closest_ratio(batch: Batch, neighbors: Neighbors, table: torch.Tensor) -> torch.Tensor:
    """Find the shortest distance of each structure in units of its pair's minimum.

    Parameters
    ----------
    batch
        Structures.
    neighbors
        Their neighbours.
    table
        Minimum distances by atomic number, shape (119, 119), Å.

    Returns
    -------
    torch.Tensor
        Smallest ratio, infinite for a structure without neighbours, shape (n_systems,).
    """
    library = load_library(SOURCES, batch.positions.device)
    if library is not None:
        ratio = _closest_compiled(library, batch, neighbors, table)
    else:
        distances = neighbors.vectors(batch).square().sum(2).sqrt()
        limits = table[batch.numbers[:, None], batch.numbers[neighbors.index]]
        ratio = (distances / limits).masked_fill(~neighbors.mask, torch.inf).amin(1)
        ratio = torch.where(torch.isfinite(ratio) | torch.isinf(ratio), ratio, torch.zeros_like(ratio))
    smallest = torch.full((batch.n_systems,), torch.inf, dtype=ratio.dtype, device=ratio.device)
    return smallest.scatter_reduce(0, batch.system, ratio, "amin")


def _closest_compiled(library: Library, batch: Batch, neighbors: Neighbors, table: torch.Tensor) -> torch.Tensor:
    """Give the smallest ratio of each atom, pair by pair."""
    ratio = torch.empty(batch.n_atoms, dtype=torch.float64, device=table.device)
    atoms = batch.positions.double(), batch.cells.double(), batch.system, batch.numbers
    pairs = neighbors.index, neighbors.shift.float(), neighbors.mask
    kept = [tensor.contiguous() for tensor in (*atoms, *pairs, table.double())]
    library.run("closest", batch.n_atoms, *kept[:4], neighbors.index.shape[1], *kept[4:7], len(table), kept[7], ratio)
    return ratio.to(batch.positions.dtype)


def first_broken(
    settings: RelaxConfig,
    *,
    ratio: torch.Tensor,
    volume_per_atom: torch.Tensor,
    growth: torch.Tensor,
    drop: torch.Tensor,
    stress: torch.Tensor,
    finite: torch.Tensor,
) -> torch.Tensor:
    """Find the limit that each structure breaks.

    Parameters
    ----------
    settings
        The limits.
    ratio
        Shortest distance in units of what is allowed, shape (n,).
    volume_per_atom
        Shape (n,), Å^3.
    growth
        Volume in units of the start's, shape (n,).
    drop
        How far the energy is below the start's, shape (n,), eV/atom.
    stress
        Largest component, shape (n,), eV/Å^3.
    finite
        Whether energy and gradient are finite, shape (n,).

    Returns
    -------
    torch.Tensor
        Number of the reason, 0 for none, shape (n,); distances come before volume, finiteness, stress and energy.
    """
    broken = {
        FailureReason.ENERGY: drop > settings.energy_drop,
        FailureReason.STRESS: stress > settings.stress_limit_gpa * GPA,
        FailureReason.NOT_FINITE: ~finite,
        FailureReason.VOLUME: ~((growth > settings.volume_shrink) & (growth < settings.volume_growth))
        | (volume_per_atom < SMALLEST_VOLUME),
        FailureReason.TOO_CLOSE: ~(ratio >= 1.0),
    }
    codes = torch.zeros_like(ratio, dtype=torch.int64)
    for reason, where in broken.items():
        codes = torch.where(where, CODE[reason], codes)
    return codes
