"""Pushing atoms apart on their free coordinates, for many crystals at once.

Soft spheres: every pair closer than its least distance is moved apart by half of what is missing, and the cell is
strained, at constant volume and within its symmetry, where its own images overlap. Arrays are flat over all crystals of
a batch, and every sum runs in a fixed order within one crystal, so that no result depends on its neighbours.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csp.generate.lattice import strain_average
from csp.generate.trial import Trial

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

STEPS_PER_LIST = 5  # steps between two rebuilds of the list of close pairs
SKIN = 0.25  # Å, pairs beyond their least distance that are kept in the list
AIM = 1.015  # pairs are pushed to this multiple of their least distance, so that a finite number of steps suffices
STEP = 0.8  # share of the missing distance mended per step
STRAIN_STEP = 0.5  # the same for the cell
MAX_MOVE = 0.3  # Å per step
MAX_STRAIN = 0.05  # per step
PROGRESS = 0.8  # overlap left after a round of steps beyond which a crystal counts as stuck
PATIENCE = 2  # rounds without progress before a crystal is given up
TINY = 1e-9


@dataclass(eq=False)
class Batch:
    """Many trials as flat arrays; shapes by n_systems, n_orbits, n_atoms over the whole batch."""

    cells: Floats  # (n_systems, 3, 3)
    volumes: Floats  # (n_systems,)
    strains: Floats  # (n_systems, 9, 9) strain allowed by symmetry
    system: Ints  # (n_orbits,) system of each orbit
    kinds: Ints  # (n_orbits,)
    points: Floats  # (n_orbits, 3)
    projectors: Floats  # (n_orbits, 3, 3)
    weight: Floats  # (n_orbits,) multiplicity
    first: Ints  # (n_orbits,) first atom of each orbit
    owner: Ints  # (n_atoms,) orbit of each atom
    rotations: Floats  # (n_atoms, 3, 3)
    translations: Floats  # (n_atoms, 3)

    def positions(self) -> Floats:
        """Give the fractions of all atoms, unwrapped, shape (n_atoms, 3)."""
        x = self.points[self.owner]
        R = self.rotations
        moved: Floats = R[:, :, 0] * x[:, 0:1] + R[:, :, 1] * x[:, 1:2] + R[:, :, 2] * x[:, 2:3] + self.translations
        return moved


@dataclass(eq=False)
class Pairs:
    """Close pairs of an orbit's first atom with any atom's image; all arrays (n_pairs,) but ``image``."""

    orbit: Ints
    atom: Ints
    image: Floats  # (n_pairs, 3) whole lattice vectors
    least: Floats  # Å, least allowed distance


def spread(trials: Sequence[Trial], distances: Floats, max_steps: int, seconds: Floats) -> tuple[Bools, Floats]:
    """Push the atoms of many crystals apart, in place.

    Parameters
    ----------
    trials
        Crystals; their points and cells are changed.
    distances
        (n_kinds, n_kinds) least distances, Å.
    max_steps
        Steps before a crystal is given up.
    seconds
        (n_trials,) time that each may take; one whose time is over is given up.

    Returns
    -------
    tuple[Bools, Floats]
        (n_trials,) True where no pair, over all periodic images, is closer than its least distance, and (n_trials,)
        the time taken, s: that of each round of steps is shared evenly among the crystals in it.
    """
    clock = time.perf_counter()
    spent = np.zeros(len(trials))
    good = np.zeros(len(trials), dtype=bool)
    left = np.arange(len(trials))
    batch = gather(trials)
    before = np.full(len(trials), np.inf)
    stalls = np.zeros(len(trials), dtype=int)
    skin = SKIN if max_steps else 0.0
    for step in range(0, max_steps + 1, STEPS_PER_LIST):
        pairs = close_pairs(batch, distances, skin)
        overlap = _overlap(batch, pairs, len(left))
        before_round, clock = clock, time.perf_counter()
        spent[left] += (clock - before_round) / len(left)
        done = overlap <= 0
        stalls = np.where(overlap > PROGRESS * before, stalls + 1, stalls)
        going = ~done & (stalls < PATIENCE) & (step < max_steps) & (spent[left] < seconds[left])
        _store(batch, trials, left, done)
        good[left[done]] = True
        if not going.any():
            break
        left, before, stalls = left[going], overlap[going], stalls[going]
        batch, pairs = _keep(batch, pairs, going)
        for _ in range(STEPS_PER_LIST):
            _step(batch, pairs)
    return good, spent


def gather(trials: Sequence[Trial]) -> Batch:
    """Join trials into flat arrays."""
    n_orbits = np.array([len(trial.kinds) for trial in trials])
    n_atoms = np.array([len(trial.owner) for trial in trials])
    orbit_start = np.concatenate([[0], np.cumsum(n_orbits)[:-1]])
    owner = np.concatenate([trial.owner for trial in trials]) + np.repeat(orbit_start, n_atoms)
    cells = np.array([trial.cell for trial in trials])
    weight = np.bincount(owner, minlength=int(n_orbits.sum()))
    return Batch(
        cells=cells,
        volumes=np.linalg.det(cells),
        strains=np.array([strain_average(trial.group) for trial in trials]),
        system=np.repeat(np.arange(len(trials)), n_orbits),
        kinds=np.concatenate([trial.kinds for trial in trials]),
        points=np.concatenate([trial.points for trial in trials]),
        projectors=np.concatenate([trial.projectors for trial in trials]),
        weight=weight.astype(float),
        first=np.cumsum(weight) - weight,
        owner=owner,
        rotations=np.concatenate([trial.rotations for trial in trials]),
        translations=np.concatenate([trial.translations for trial in trials]),
    )


def close_pairs(batch: Batch, distances: Floats, skin: float) -> Pairs:
    """List every pair within its least distance plus a skin, over all periodic images.

    Parameters
    ----------
    batch
        The crystals.
    distances
        (n_kinds, n_kinds) least distances, Å.
    skin
        Å.

    Returns
    -------
    Pairs
        First atoms of orbits against all atoms: by symmetry that is every distance in the crystal.

    Notes
    -----
    A lattice image can be within reach only if it is so along each of the three directions normal to the cell's faces.
    Pairs are sorted out direction by direction, so that few images are ever written down, and none is missed.
    """
    orbit, atom = _all_pairs(batch)
    reach = distances[batch.kinds[orbit], batch.kinds[batch.owner[atom]]] + skin
    positions = batch.positions()
    heights = 1.0 / np.sqrt((np.linalg.inv(batch.cells) ** 2).sum(axis=1))
    lows: list[Floats] = []
    counts: list[Ints] = []
    for axis in range(3):
        difference = positions[atom, axis] - batch.points[orbit, axis]
        ratio = reach / heights[batch.system[orbit], axis] + TINY
        low = np.ceil(-ratio - difference)
        count = (np.floor(ratio - difference) - low).astype(np.int64) + 1
        near = np.flatnonzero(count > 0)
        orbit, atom, reach = orbit[near], atom[near], reach[near]
        lows, counts = [low[near], *(x[near] for x in lows)], [count[near], *(x[near] for x in counts)]
    image, pair = _images(lows[::-1], counts[::-1])
    orbit, atom, reach = orbit[pair], atom[pair], reach[pair]
    difference = positions[atom] - batch.points[orbit] + image
    close = _squared(difference, batch.cells[batch.system[orbit]]) < reach**2
    close &= (atom != batch.first[orbit]) | image.any(axis=1)
    return Pairs(orbit[close], atom[close], image[close], reach[close] - skin)


def _all_pairs(batch: Batch) -> tuple[Ints, Ints]:
    """List each orbit with each atom of its own system, shape (n_pairs,) twice."""
    atoms_in = np.bincount(batch.system[batch.owner], minlength=len(batch.cells))
    start = np.cumsum(atoms_in) - atoms_in
    per_orbit = atoms_in[batch.system]
    orbit = np.repeat(np.arange(len(batch.system)), per_orbit)
    first = np.cumsum(per_orbit) - per_orbit
    return orbit, np.arange(len(orbit)) + np.repeat(start[batch.system] - first, per_orbit)


def _images(lows: list[Floats], counts: list[Ints]) -> tuple[Floats, Ints]:
    """Write down the lattice images of pairs, each a box of whole numbers.

    Parameters
    ----------
    lows
        Three arrays (n_pairs,): the first image along each axis.
    counts
        Three arrays (n_pairs,): how many there are.

    Returns
    -------
    tuple[Floats, Ints]
        Images (n_images, 3) and the pair of each.
    """
    total = counts[0] * counts[1] * counts[2]
    pair = np.repeat(np.arange(len(total)), total)
    place = np.arange(len(pair)) - np.repeat(np.cumsum(total) - total, total)
    place, third = np.divmod(place, counts[2][pair])
    first, second = np.divmod(place, counts[1][pair])
    steps = (low[pair] + step for low, step in zip(lows, (first, second, third), strict=True))
    return np.stack(list(steps), axis=1), pair


def _squared(fractions: Floats, cells: Floats) -> Floats:
    """Give squared lengths of fractional vectors (n, 3) in their cells (n, 3, 3), Å^2."""
    vectors = _cartesian(fractions, cells)
    squared: Floats = vectors[:, 0] ** 2 + vectors[:, 1] ** 2 + vectors[:, 2] ** 2
    return squared


def _cartesian(fractions: Floats, cells: Floats) -> Floats:
    """Give fractional vectors (n, 3) in Å; written out so that no result depends on the batch."""
    f = fractions
    vectors: Floats = f[:, 0:1] * cells[:, 0] + f[:, 1:2] * cells[:, 1] + f[:, 2:3] * cells[:, 2]
    return vectors


def _vectors(batch: Batch, pairs: Pairs) -> tuple[Floats, Floats]:
    """Give the vectors from the orbit's point to the atom's image (n, 3) and their lengths (n,), Å."""
    fractions = batch.positions()[pairs.atom] + pairs.image - batch.points[pairs.orbit]
    vectors = _cartesian(fractions, batch.cells[batch.system[pairs.orbit]])
    length = np.sqrt(vectors[:, 0] ** 2 + vectors[:, 1] ** 2 + vectors[:, 2] ** 2)
    return vectors, length


def _overlap(batch: Batch, pairs: Pairs, n_systems: int) -> Floats:
    """Sum, for each system, how far pairs are inside their least distance, Å."""
    _, length = _vectors(batch, pairs)
    lack = np.maximum(pairs.least - length, 0.0) * batch.weight[pairs.orbit]
    return _sum(batch.system[pairs.orbit], lack, n_systems)


def _sum(place: Ints, values: Floats, n: int) -> Floats:
    """Add values up by place, in their order."""
    return np.asarray(np.bincount(place, values, minlength=n), dtype=np.float64)


def _step(batch: Batch, pairs: Pairs) -> None:
    """Move points and strain cells once."""
    vectors, length = _vectors(batch, pairs)
    lack = AIM * pairs.least - length
    inside = lack > 0
    vectors, length, lack = vectors[inside], np.maximum(length[inside], TINY), lack[inside]
    orbit = pairs.orbit[inside]
    n_orbits, n_systems = len(batch.system), len(batch.cells)
    push = vectors * (lack / length)[:, None]
    move = -0.5 * STEP * np.stack([_sum(orbit, push[:, k], n_orbits) for k in range(3)], axis=1)
    size = np.sqrt((move**2).sum(axis=1))
    move *= np.minimum(1.0, MAX_MOVE / np.maximum(size, TINY))[:, None]
    inverse = np.asarray(np.linalg.inv(batch.cells), dtype=np.float64)
    shift = _cartesian(move, inverse[batch.system])
    batch.points += _cartesian(shift, batch.projectors.transpose(0, 2, 1))
    system, weight = batch.system[orbit], batch.weight[orbit]
    virial = np.stack(
        [_sum(system, weight * push[:, i] * vectors[:, j], n_systems) for i in range(3) for j in range(3)],
        axis=1,
    )
    norm = _sum(system, weight * length**2, n_systems)
    strain = (batch.strains @ virial[..., None])[..., 0] * (STRAIN_STEP / np.maximum(norm, TINY))[:, None]
    most = np.abs(strain).max(axis=1)
    strain *= np.minimum(1.0, MAX_STRAIN / np.maximum(most, TINY))[:, None]
    cells = batch.cells @ (np.eye(3) + strain.reshape(-1, 3, 3))
    batch.cells = cells * (batch.volumes / np.linalg.det(cells))[:, None, None] ** (1 / 3)


def _store(batch: Batch, trials: Sequence[Trial], left: Ints, done: Bools) -> None:
    """Write finished systems back into their trials."""
    starts = np.searchsorted(batch.system, np.arange(len(left) + 1))
    for place in np.flatnonzero(done):
        trial = trials[left[place]]
        trial.points = batch.points[starts[place] : starts[place + 1]]
        trial.cell = batch.cells[place]


def _keep(batch: Batch, pairs: Pairs, going: Bools) -> tuple[Batch, Pairs]:
    """Drop systems from a batch and from its pairs."""
    if going.all():
        return batch, pairs
    orbits = going[batch.system]
    atoms = orbits[batch.owner]
    new_system, new_orbit, new_atom = (np.cumsum(kept) - 1 for kept in (going, orbits, atoms))
    smaller = Batch(
        cells=batch.cells[going],
        volumes=batch.volumes[going],
        strains=batch.strains[going],
        system=new_system[batch.system[orbits]],
        kinds=batch.kinds[orbits],
        points=batch.points[orbits],
        projectors=batch.projectors[orbits],
        weight=batch.weight[orbits],
        first=new_atom[batch.first[orbits]],
        owner=new_orbit[batch.owner[atoms]],
        rotations=batch.rotations[atoms],
        translations=batch.translations[atoms],
    )
    kept = orbits[pairs.orbit]
    fewer = Pairs(new_orbit[pairs.orbit[kept]], new_atom[pairs.atom[kept]], pairs.image[kept], pairs.least[kept])
    return smaller, fewer
