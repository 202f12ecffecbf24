"""Fingerprints of crystals: smooth pair distributions that no choice of cell, axes or atom order can change."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from csp.errors import DataError

Floats = NDArray[np.float64]

# Lengths are in units of the cube root of the volume per atom: so two thermal or numerical states of one crystal look
# alike, and the cost does not depend on the density. Volume itself is compared separately.
REACH = 3.2  # about 137 neighbours
WIDTH = 0.05  # standard deviation of the Gaussian of one neighbour, about 0.12 Å in a metal
TAPER = 2.4  # from here to REACH neighbours fade out, so that none appears or disappears at once
N_BINS = 80
STEP = REACH / (N_BINS - 1)
SPREAD = 9  # bins on each side that a Gaussian reaches: seven standard deviations
CLOSEST = 1e-6  # closer than this is the atom itself
ROUNDING = 1e-6  # of squared distances far beyond REACH
MANY_IMAGES = 400  # a cell with more images than this is skewed: reduce it first


@lru_cache(maxsize=64)
def _pair_blocks(elements: tuple[str, ...]) -> NDArray[np.int64]:
    """Block number of each pair of elements, (119, 119); -1 for elements outside the system."""
    table = np.full((119, 119), -1, dtype=np.int64)
    for block, (a, b) in enumerate(combinations_with_replacement(elements, 2)):
        i, j = atomic_numbers[a], atomic_numbers[b]
        table[i, j] = table[j, i] = block
    return table


def fingerprint(atoms: Atoms, elements: Sequence[str]) -> Floats:
    r"""Describe a crystal by its pair distributions.

    For each pair of elements, :math:`\sqrt{x_A x_B}\, r\, (g_{AB}(r) - 1)` with the partial radial distribution
    :math:`g_{AB}`, broadened by Gaussians and faded out smoothly, in the spirit of Oganov and Valle,
    J. Chem. Phys. 130, 104504 (2009); lengths in units of the cube root of the volume per atom; normalised to one.

    Parameters
    ----------
    atoms
        A periodic crystal.
    elements
        Chemical symbols of the system: they fix the length and the order of the blocks.

    Returns
    -------
    Floats
        Shape (n_pairs * N_BINS,), of unit length. The same for every cell, supercell, rotation, translation, mirror
        image, order of atoms and uniform scaling; a continuous function of the positions.

    Raises
    ------
    DataError
        If there are no atoms, an element is not of the system, the cell has no volume, or a number is not finite.
    """
    elements = tuple(elements)
    _check(atoms, elements)
    scale = (len(atoms) / float(atoms.cell.volume)) ** (1 / 3)
    first, second, lengths = _pairs(atoms.cell.array * scale, atoms.positions * scale)
    blocks = _pair_blocks(elements)[atoms.numbers[first], atoms.numbers[second]]
    weights = np.where(first == second, 1.0, 2.0) * _fade(lengths) / lengths
    density = _broadened(blocks, lengths, weights, len(elements) * (len(elements) + 1) // 2) / len(atoms)
    centres = STEP * np.arange(N_BINS, dtype=np.float64)
    vector = _weighted(density, atoms, elements, centres * _fade(centres)).reshape(-1)
    norm = float(np.linalg.norm(vector))
    if not norm > 0:
        raise DataError(f"fingerprint of {len(atoms)} atoms: expected neighbours within reach, got none")
    return vector / norm


def fingerprints(frames: Sequence[Atoms], elements: Sequence[str]) -> Floats:
    """Describe many crystals.

    Parameters
    ----------
    frames
        Periodic crystals.
    elements
        Chemical symbols of the system.

    Returns
    -------
    Floats
        Shape (n_frames, n_pairs * N_BINS); rows of unit length.

    Raises
    ------
    DataError
        If a crystal cannot be described; the message has its index.
    """
    n_pairs = len(elements) * (len(elements) + 1) // 2
    rows = np.empty((len(frames), n_pairs * N_BINS))
    for i, atoms in enumerate(frames):
        try:
            rows[i] = fingerprint(atoms, elements)
        except DataError as exc:
            raise DataError(f"structure {i}: {exc}") from exc
    return rows


def distance(a: Floats, b: Floats) -> float:
    """Compare two fingerprints.

    Parameters
    ----------
    a
        Fingerprint, shape (d,).
    b
        Fingerprint, shape (d,).

    Returns
    -------
    float
        Half of one minus the cosine: 0 for the same crystal, 0.5 for unrelated ones, 1 at most.
    """
    return float(distances(a[None], b[None])[0, 0])


def distances(a: Floats, b: Floats) -> Floats:
    """Compare two sets of fingerprints, all with all.

    Parameters
    ----------
    a
        Fingerprints, shape (n, d), rows of unit length.
    b
        Fingerprints, shape (m, d), rows of unit length.

    Returns
    -------
    Floats
        Shape (n, m), between 0 and 1.

    Raises
    ------
    DataError
        If the fingerprints are of different systems.
    """
    if a.shape[1:] != b.shape[1:]:
        raise DataError(f"fingerprints: expected one system, got lengths {a.shape[1:]} and {b.shape[1:]}")
    return np.clip((1.0 - a @ b.T) / 2, 0.0, 1.0)


def farthest_points(fingerprints: Floats, n: int, first: int = 0) -> list[int]:
    """Order structures so that each is as far as possible from those before it.

    Parameters
    ----------
    fingerprints
        Shape (n_structures, d).
    n
        How many are wanted.
    first
        Index of the first one.

    Returns
    -------
    list[int]
        At most ``n`` different indices; ties go to the lower index.
    """
    order = [first] if len(fingerprints) and n > 0 else []
    gaps = np.full(len(fingerprints), np.inf)
    while 0 < len(order) < min(n, len(fingerprints)):
        gaps = np.minimum(gaps, distances(fingerprints, fingerprints[order[-1:]])[:, 0])
        gaps[order] = -1.0
        order.append(int(np.argmax(gaps)))
    return order


def _check(atoms: Atoms, elements: tuple[str, ...]) -> None:
    symbols = [chemical_symbols[z] for z in atoms.numbers]
    name = "".join(f"{symbol}{symbols.count(symbol)}" for symbol in sorted(set(symbols)))
    if len(atoms) == 0:
        raise DataError("fingerprint: expected at least one atom, got none")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        raise DataError(f"fingerprint of {name}: positions or cell are not finite")
    if not atoms.cell.volume > 0:
        raise DataError(f"fingerprint of {name}: the cell has no volume")
    foreign = sorted(set(symbols) - set(elements))
    if foreign:
        raise DataError(f"fingerprint of {name}: expected only {', '.join(elements)}, got {', '.join(foreign)}")


def _pairs(cell: Floats, positions: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """All pairs of atoms and images closer than REACH, each pair of different atoms once: indices and distances."""
    shifts = _images(cell)
    if len(shifts) > MANY_IMAGES:
        cell = _shortened(cell)
        shifts = _images(cell)
    inside = np.linalg.solve(cell.T, positions.T).T % 1.0 @ cell
    first, second = np.triu_indices(len(positions))
    apart, moves = inside[second] - inside[first], shifts @ cell
    rough = (apart**2).sum(axis=1)[:, None] + apart @ (2.0 * moves.T) + (moves**2).sum(axis=1)
    pair, image = np.nonzero(rough < REACH**2 + ROUNDING)
    vectors = apart[pair] + moves[image]
    squares = np.einsum("px,px->p", vectors, vectors)  # once more, for the few near ones, without cancellation
    near = (squares < REACH**2) & (squares > CLOSEST**2)
    return first[pair[near]], second[pair[near]], np.sqrt(squares[near])


def _broadened(blocks: NDArray[np.int64], lengths: Floats, weights: Floats, n_blocks: int) -> Floats:
    """Sum the normalised Gaussians of all pairs over a sphere's solid angle, block by block; (n_blocks, N_BINS)."""
    width = N_BINS + 2 * SPREAD
    nearest = np.rint(lengths / STEP).astype(np.int64)
    bins = nearest[:, None] + np.arange(-SPREAD, SPREAD + 1)
    peaks = np.exp(-(((bins * STEP - lengths[:, None]) / WIDTH) ** 2) / 2) * weights[:, None]
    where = blocks[:, None] * width + bins + SPREAD
    sums = np.bincount(where.reshape(-1), weights=peaks.reshape(-1), minlength=n_blocks * width)
    norm = 4 * np.pi * WIDTH * np.sqrt(2 * np.pi)
    density: Floats = sums.reshape(n_blocks, width)[:, SPREAD:-SPREAD] / norm
    return density


def _shortened(cell: Floats) -> Floats:
    """Shorten the lattice vectors by whole multiples of each other, as long as that helps."""
    cell = cell.copy()
    changed = True
    while changed:
        changed = False
        for i, j in ((0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)):
            times = np.rint(cell[i] @ cell[j] / (cell[j] @ cell[j]))
            if abs(times) > 0 and np.linalg.norm(cell[i] - times * cell[j]) < np.linalg.norm(cell[i]) - CLOSEST:
                cell[i] -= times * cell[j]
                changed = True
    return cell


def _images(cell: Floats) -> Floats:
    """Whole-number shifts that bring every image within REACH of any atom of the cell, (n, 3)."""
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    n = np.ceil(REACH / heights).astype(int)
    axes = np.meshgrid(*(np.arange(-k, k + 1) for k in n), indexing="ij")
    return np.stack([axis.reshape(-1) for axis in axes], axis=1).astype(np.float64)


def _fade(lengths: Floats) -> Floats:
    """One below TAPER, zero above REACH, smooth between."""
    phase = np.clip((lengths - TAPER) / (REACH - TAPER), 0.0, 1.0)
    faded: Floats = np.cos(np.pi * phase / 2) ** 2
    return faded


def _weighted(density: Floats, atoms: Atoms, elements: tuple[str, ...], background: Floats) -> Floats:
    """Subtract the uniform background and weight the blocks by composition; (n_pairs, N_BINS)."""
    fractions = {symbol: np.mean(atoms.numbers == atomic_numbers[symbol]) for symbol in elements}
    rows = np.zeros_like(density)
    for block, (a, b) in enumerate(combinations_with_replacement(elements, 2)):
        twice = 1.0 if a == b else 2.0  # A-B and B-A share a block
        weight = twice * fractions[a] * fractions[b]
        if weight > 0:
            rows[block] = (density[block] - weight * background) / np.sqrt(weight)
    return rows
