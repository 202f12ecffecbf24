"""Wyckoff positions of the 230 space groups, derived from spglib's symmetry operations in the primitive cell."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations, product
from math import gcd

import numpy as np
import spglib
from numpy.typing import NDArray

from csp.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Key = tuple[int, ...]

N_GROUPS = 230
N_HALL = 530
GRID = 24  # every special position sits on a 1/24 grid of the primitive cell, along the directions that are fixed
IDENTITY = np.eye(3, dtype=np.int64)
GENERIC = np.array([0.1234567891, 0.3141592653, 0.2718281828])  # a point that lies on no symmetry element
MAX_SHIFT = 4  # lattice translations that can bring an operation's fixed points into the unit cell


@dataclass(frozen=True, eq=False)
class Wyckoff:
    """One Wyckoff position, in fractions of the primitive cell.

    Parameters
    ----------
    multiplicity
        Atoms of one orbit in the primitive cell.
    freedom
        Dimension of the position: 0 for a point, 3 for the general position.
    projector
        (3, 3); with ``offset``, takes any x to the point ``projector @ x + offset`` of the position.
    offset
        (3,).
    rotations
        (multiplicity, 3, 3); with ``translations``, make the orbit: ``rotations @ x + translations``.
    translations
        (multiplicity, 3).
    """

    multiplicity: int
    freedom: int
    projector: Floats
    offset: Floats
    rotations: Floats
    translations: Floats


@dataclass(frozen=True, eq=False)
class SpaceGroup:
    """A space group in its primitive cell.

    Parameters
    ----------
    number
        1 to 230.
    basis
        (3, 3); rows are the primitive vectors in units of the conventional ones.
    rotations
        (n, 3, 3) integer matrices of the primitive cell, acting on columns of fractions.
    translations
        (n, 3) fractions of the primitive cell.
    conventional_rotations
        (n, 3, 3) the same rotations in the conventional basis.
    """

    number: int
    basis: Floats
    rotations: Ints
    translations: Floats
    conventional_rotations: Ints

    @property
    def order(self) -> int:
        """Symmetry operations of the primitive cell."""
        return len(self.rotations)

    @cached_property
    def share(self) -> float:
        """Volume of the primitive cell in units of the conventional one."""
        return float(np.linalg.det(self.basis))

    @cached_property
    def positions(self) -> tuple[Wyckoff, ...]:
        """Wyckoff positions, the most special first; the last is the general one."""
        return _positions(self.rotations, self.translations)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence spglib's notice about its coming error handling; its global switch is not ours to turn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@lru_cache(maxsize=1)
def _hall_numbers() -> dict[int, int]:
    """Give the first Hall number, which is the standard setting, of each space group."""
    first: dict[int, int] = {}
    with quiet():
        for hall in range(1, N_HALL + 1):
            kind = spglib.get_spacegroup_type(hall)
            if kind is not None:
                first.setdefault(int(kind.number), hall)
    return first


@lru_cache(maxsize=N_GROUPS)
def space_group(number: int) -> SpaceGroup:
    """Derive a space group's primitive cell and operations.

    Parameters
    ----------
    number
        1 to 230, in spglib's standard setting.

    Returns
    -------
    SpaceGroup
        Kept in memory after the first call.
    """
    with quiet():
        data = spglib.get_symmetry_from_database(_hall_numbers()[number])
    if data is None:
        raise DataError(f"spglib has no symmetry operations for space group {number}")
    rotations, translations = np.asarray(data["rotations"], dtype=np.int64), np.asarray(data["translations"])
    basis = _primitive_basis(translations[(rotations == IDENTITY).all(axis=(1, 2))])
    to_primitive = np.linalg.inv(basis.T)
    _, first = np.unique(rotations.reshape(-1, 9), axis=0, return_index=True)
    kept = np.sort(first)
    primitive = np.rint(to_primitive @ rotations[kept] @ basis.T).astype(np.int64)
    shifts = _wrap(translations[kept] @ to_primitive.T)
    return SpaceGroup(number, basis, primitive, shifts, rotations[kept])


def _primitive_basis(centring: Floats) -> Floats:
    """Choose short primitive vectors, rows in conventional units, of the lattice with these centring vectors."""
    if len(centring) == 1:
        return np.eye(3)
    cells = np.array(list(product((-1, 0, 1), repeat=3)))
    vectors = (cells[:, None] + centring[None]).reshape(-1, 3)
    length = (vectors**2).sum(axis=1)
    vectors = vectors[np.lexsort((*vectors.T, np.round(length, 6)))]
    vectors = vectors[(vectors**2).sum(axis=1) > 1e-6]
    for triple in combinations(vectors[:60], 3):
        basis = np.array(triple)
        volume = np.linalg.det(basis)
        if abs(abs(volume) * len(centring) - 1) < 1e-6:
            return basis if volume > 0 else basis[[1, 0, 2]]
    raise ArithmeticError("no primitive basis among the shortest lattice vectors")


def _wrap(x: Floats) -> Floats:
    """Bring multiples of 1/24 into [0, 1) exactly."""
    wrapped: Floats = np.rint(x * GRID) % GRID / GRID
    return wrapped


def _positions(rotations: Ints, shifts: Floats) -> tuple[Wyckoff, ...]:
    """Find one representative of every orbit of fixed points, lines and planes, and the general position."""
    found: list[Wyckoff] = []
    seen: set[Key] = set()
    inverses = np.rint(np.linalg.inv(rotations))
    for projector, offset in _fixed_sets(rotations, shifts):
        if _key(projector, offset) in seen:
            continue
        found.append(_orbit(projector, offset, rotations, shifts))
        images = rotations @ projector @ inverses
        seen.update(map(_key, images, rotations @ offset + shifts))
    found.append(_orbit(np.eye(3), np.zeros(3), rotations, shifts))
    return tuple(sorted(found, key=lambda p: (p.freedom, p.multiplicity)))


def _orbit(projector: Floats, offset: Floats, rotations: Ints, shifts: Floats) -> Wyckoff:
    """Keep one operation for each distinct image of a generic point of the set."""
    point = projector @ GENERIC + offset
    images = rotations @ point + shifts
    difference = images[:, None] - images[None]
    same = (np.abs(difference - np.rint(difference)) < 1e-6).all(axis=2)
    kept = np.flatnonzero(np.argmax(same, axis=1) == np.arange(len(images)))
    freedom = round(float(np.trace(projector)))
    return Wyckoff(len(kept), freedom, projector, offset, rotations[kept].astype(float), shifts[kept])


def _fixed_sets(rotations: Ints, shifts: Floats) -> list[tuple[Floats, Floats]]:
    """List the points, lines and planes fixed by the operations, each as an affine projector onto it.

    Planes come from mirrors, lines from rotation axes, points from inversions, rotoinversions and from axes that meet:
    every site-symmetry group has its fixed set among these. Sets that differ by a lattice translation are one.
    """
    grid = np.array(list(product(range(-MAX_SHIFT, MAX_SHIFT + 1), repeat=3)), dtype=float)
    sets: dict[Key, tuple[Floats, Floats]] = {}
    lines: dict[tuple[int, ...], list[Floats]] = {}
    for W, w in zip(rotations, shifts, strict=True):
        powers = _powers(W)
        projector = powers.sum(axis=0) / len(powers)
        if len(powers) == 1 or not (offsets := _fixed_offsets(powers, w + grid)).size:
            continue
        normals = _annihilator(projector)
        levels = np.rint(offsets @ normals.T * 2 * GRID) % (2 * GRID)
        for offset in offsets[np.unique(levels, axis=0, return_index=True)[1]]:
            sets.setdefault(_key(projector, offset), (projector, offset))
        if round(float(np.trace(projector))) == 1:
            lines.setdefault(tuple(_direction(projector).tolist()), []).append(offsets)
    for point in _meeting_points({direction: np.concatenate(offsets) for direction, offsets in lines.items()}):
        sets.setdefault(_key(np.zeros((3, 3)), point), (np.zeros((3, 3)), point))
    return list(sets.values())


def _fixed_offsets(powers: Floats, steps: Floats) -> Floats:
    """Give a fixed point of each operation that has one.

    Parameters
    ----------
    powers
        (k, 3, 3) powers of the rotation.
    steps
        (n, 3) translations to try with it.

    Returns
    -------
    Floats
        (n_fixed, 3) distinct points: the mean of the first k images of the origin.
    """
    kept = steps[np.abs(steps @ powers.sum(axis=0).T).max(axis=1) < 1e-6]
    partial = np.cumsum(powers, axis=0)[:-1].sum(axis=0) / len(powers)
    return _distinct(np.rint(kept @ partial.T * 2 * GRID).astype(np.int64))


def _distinct(grid: Ints) -> Floats:
    """Give the distinct rows (n, 3) of multiples of 1/48, as fractions."""
    code = (grid[:, 0] * 4096 + grid[:, 1]) * 4096 + grid[:, 2]
    return grid[np.unique(code, return_index=True)[1]] / (2 * GRID)


def _powers(W: Ints) -> Floats:
    """Give W^0 to W^(k-1), k the order of W, shape (k, 3, 3)."""
    powers = [IDENTITY]
    while (power := powers[-1] @ W).tolist() != IDENTITY.tolist():
        powers.append(power)
    return np.array(powers, dtype=float)


def _meeting_points(lines: dict[tuple[int, ...], Floats]) -> Floats:
    """Give the points, within one cell, where lines of different directions meet, shape (n, 3)."""
    points: list[Ints] = [np.zeros((0, 3), dtype=np.int64)]
    for (a, first), (b, other) in combinations(lines.items(), 2):
        levels = np.rint(first @ _normals(a).T * 2 * GRID) % (2 * GRID)
        start = first[np.unique(levels, axis=0, return_index=True)[1]]  # one of each up to translations is enough
        normal = np.cross(a, b)
        gap = other[None] - start[:, None]
        i, j = np.nonzero(np.abs(gap @ normal) < 1e-6)
        along = np.cross(gap[i, j], b) @ normal / (normal @ normal)
        met = start[i] + along[:, None] * np.array(a)
        points.append(np.rint(met * 2 * GRID).astype(np.int64) % (2 * GRID))
    return _distinct(np.concatenate(points))


def _direction(projector: Floats) -> Ints:
    """Give the smallest integer vector along a line's projector, first component not 0 positive."""
    column = projector[:, np.argmax(np.abs(projector).sum(axis=0))]
    integer = np.rint(column * GRID * 5).astype(np.int64)  # fractions with denominators up to 6
    integer //= gcd(*integer.tolist())
    return integer if integer[np.flatnonzero(integer)[0]] > 0 else -integer


def _annihilator(projector: Floats) -> Ints:
    """Give integer vectors, shape (3 - freedom, 3), that are normal to a set and span all such vectors."""
    return _known_annihilator(tuple(np.rint(projector.ravel() * 12).astype(int).tolist()))


@lru_cache(maxsize=4096)
def _known_annihilator(twelfths: tuple[int, ...]) -> Ints:
    projector = np.array(twelfths).reshape(3, 3) / 12
    freedom = round(float(np.trace(projector)))
    if freedom == 0:
        return IDENTITY
    if freedom == 2:
        return _direction((np.eye(3) - projector).T)[None]
    return _normals(tuple(_direction(projector).tolist()))


def _key(projector: Floats, offset: Floats) -> Key:
    """Name a point, line or plane uniquely up to lattice translations."""
    normals = _annihilator(projector)
    level = np.rint(normals @ offset * 2 * GRID).astype(np.int64) % (2 * GRID)
    return (*normals.ravel().tolist(), *level.tolist())


@lru_cache(maxsize=256)
def _normals(direction: tuple[int, ...]) -> Ints:
    """Give two integer vectors that span all integer vectors normal to a direction, shape (2, 3)."""
    grid = np.array(list(product((-2, -1, 0, 1, 2), repeat=3)))
    flat = grid[(grid @ direction == 0) & (grid != 0).any(axis=1)]
    flat = flat[np.lexsort((*flat.T, (flat**2).sum(axis=1)))]
    for one, two in combinations(flat, 2):
        if np.cross(one, two).tolist() in (list(direction), [-x for x in direction]):
            return np.array([one, two])
    raise ArithmeticError(f"no integer normals of {direction}")
