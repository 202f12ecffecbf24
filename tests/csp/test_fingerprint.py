"""A fingerprint is a property of the crystal alone: not of its cell, axes, atom order or size."""

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.neighborlist import neighbor_list

import csp.fingerprint
from csp.errors import DataError
from csp.fingerprint import (
    N_BINS,
    REACH,
    STEP,
    TAPER,
    WIDTH,
    distance,
    distances,
    farthest_points,
    fingerprint,
    fingerprints,
)

ELEMENTS = ("Mg", "O", "Si")
EXACT = 1e-9  # rounding, and the tails of Gaussians beyond seven standard deviations
SEEDS = range(6)


def random_crystal(rng: np.random.Generator, n: int | None = None) -> Atoms:
    n = int(rng.integers(1, 9)) if n is None else n
    cell = np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3))
    atoms = Atoms(rng.choice(ELEMENTS, n), cell=cell, scaled_positions=rng.random((n, 3)), pbc=True)
    atoms.set_cell(atoms.cell.array * (15.0 * n / atoms.cell.volume) ** (1 / 3), scale_atoms=True)
    return atoms


def rotated(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))  # proper or not: mirror images are included
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ axes, scale_atoms=True)
    return turned


def shifted(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    moved = atoms.copy()
    moved.positions += rng.normal(0, 10, 3)
    moved.positions += rng.integers(-3, 4, (len(atoms), 3)) @ atoms.cell.array
    return moved


def permuted(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    return atoms[rng.permutation(len(atoms))]


def recelled(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    turns = np.eye(3, dtype=int)
    for _ in range(4):
        i, j = rng.choice(3, 2, replace=False)
        turns[i] += int(rng.integers(-3, 4)) * turns[j]
    other = atoms.copy()
    other.set_cell(turns @ atoms.cell.array)
    return other


def repeated(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    return make_supercell(atoms, np.diag([2, 1, 1]) + np.diag(rng.integers(0, 2, 2), k=1))


def scaled(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    grown = atoms.copy()
    grown.set_cell(atoms.cell.array * rng.uniform(0.5, 2.0), scale_atoms=True)
    return grown


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("change", [rotated, shifted, permuted, recelled, repeated, scaled], ids=lambda f: f.__name__)
def test_the_same_crystal_has_the_same_fingerprint(
    change: Callable[[Atoms, np.random.Generator], Atoms], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    atoms = random_crystal(rng)
    other = change(atoms, rng)
    assert np.abs(fingerprint(atoms, ELEMENTS) - fingerprint(other, ELEMENTS)).max() < EXACT


@pytest.mark.parametrize("seed", SEEDS)
def test_it_agrees_with_a_plain_sum_over_neighbours(seed: int) -> None:
    rng = np.random.default_rng(seed)
    atoms = random_crystal(rng)
    grown = atoms.copy()
    grown.set_cell(atoms.cell.array * (len(atoms) / atoms.cell.volume) ** (1 / 3), scale_atoms=True)
    first, second, lengths = neighbor_list("ijd", grown, REACH)
    fade = np.cos(np.pi / 2 * np.clip((lengths - TAPER) / (REACH - TAPER), 0, 1)) ** 2
    bins = STEP * np.arange(N_BINS)
    bin_fade = np.cos(np.pi / 2 * np.clip((bins - TAPER) / (REACH - TAPER), 0, 1)) ** 2
    rows = []
    for k, a in enumerate(ELEMENTS):
        for b in ELEMENTS[k:]:
            row = np.zeros(N_BINS)
            for i, j, r, f in zip(first, second, lengths, fade, strict=True):
                if (grown.symbols[i], grown.symbols[j]) in {(a, b), (b, a)}:
                    gauss = np.exp(-((bins - r) ** 2) / (2 * WIDTH**2)) / (WIDTH * np.sqrt(2 * np.pi))
                    row += f * gauss / (4 * np.pi * r * len(atoms))
            weight = np.mean(grown.symbols == a) * np.mean(grown.symbols == b) * (1 if a == b else 2)
            rows.append((row - weight * bins * bin_fade) / np.sqrt(weight) if weight else row)
    expected = np.concatenate(rows)
    assert np.abs(fingerprint(atoms, ELEMENTS) - expected / np.linalg.norm(expected)).max() < 1e-8


def test_primitive_and_conventional_cell_are_one() -> None:
    primitive, conventional = bulk("Si", "diamond", a=5.43), bulk("Si", "diamond", a=5.43, cubic=True)
    assert distance(fingerprint(primitive, ELEMENTS), fingerprint(conventional, ELEMENTS)) < EXACT


def test_a_very_skewed_cell_is_described_too() -> None:
    atoms = bulk("Mg", "hcp", a=3.2, c=5.2)
    skewed = atoms.copy()
    skewed.set_cell(np.array([[1, 0, 0], [9, 1, 0], [-7, 11, 1]]) @ atoms.cell.array)
    assert np.abs(fingerprint(skewed, ELEMENTS) - fingerprint(atoms, ELEMENTS)).max() < EXACT


@pytest.mark.parametrize("seed", SEEDS)
def test_a_skewed_lattice_is_shortened_and_stays_the_same_lattice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cell = np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3))
    skewed = np.array([[1, 0, 0], [rng.integers(50, 90), 1, 0], [-70, rng.integers(50, 90), 1]]) @ cell
    short = csp.fingerprint._shortened(skewed)
    turns = short @ np.linalg.inv(cell)
    assert np.abs(turns - np.rint(turns)).max() < 1e-6
    assert abs(np.linalg.det(turns)) == pytest.approx(1)
    assert np.linalg.norm(short, axis=1).max() < 3 * np.linalg.norm(cell, axis=1).max()


@pytest.mark.parametrize("seed", SEEDS)
def test_it_follows_positions_smoothly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    atoms = random_crystal(rng, 4)
    direction = rng.normal(size=(4, 3))
    values = []
    for step in np.linspace(0, 0.2, 201):  # neighbours cross the reach on the way
        moved = atoms.copy()
        moved.positions += step * direction
        values.append(fingerprint(moved, ELEMENTS))
    jumps = np.abs(np.diff(values, axis=0)).max(axis=1)
    assert jumps.max() > 0
    assert np.abs(np.diff(jumps)).max() < 0.1 * jumps.max()  # a discontinuity would stand out among its neighbours


def test_different_structures_of_one_element_are_told_apart() -> None:
    frames = [bulk("Mg", name, a=4.0) for name in ("fcc", "bcc", "sc", "diamond")] + [bulk("Mg", "hcp", a=3.2)]
    table = distances(*[fingerprints(frames, ELEMENTS)] * 2)
    assert table[~np.eye(5, dtype=bool)].min() > 0.05  # fcc and hcp differ least
    assert np.abs(np.diag(table)).max() < EXACT


def test_the_elements_matter() -> None:
    a, b = bulk("MgO", "zincblende", a=4.5), bulk("MgO", "rocksalt", a=4.2)
    c = bulk("SiO", "rocksalt", a=4.2)
    same_sites = distance(fingerprint(b, ELEMENTS), fingerprint(c, ELEMENTS))
    assert same_sites > 0.1
    assert distance(fingerprint(a, ELEMENTS), fingerprint(b, ELEMENTS)) > 0.1


def test_distances_stay_between_zero_and_one() -> None:
    rng = np.random.default_rng(3)
    prints = fingerprints([random_crystal(rng) for _ in range(40)], ELEMENTS)
    table = distances(prints, prints)
    assert table.shape == (40, 40)
    assert table.min() >= 0
    assert table.max() <= 1
    assert np.allclose(table, table.T)
    assert np.allclose(np.linalg.norm(prints, axis=1), 1)


def test_farthest_points_are_what_brute_force_says() -> None:
    rng = np.random.default_rng(8)
    prints = fingerprints([random_crystal(rng) for _ in range(25)], ELEMENTS)
    order = farthest_points(prints, 10, first=4)
    assert order[0] == 4
    assert len(set(order)) == 10
    table = distances(prints, prints)
    for k in range(1, 10):
        gaps = table[:, order[:k]].min(axis=1)
        assert gaps[order[k]] == pytest.approx(np.delete(gaps, order[:k]).max())


def test_farthest_points_end_with_the_structures() -> None:
    prints = fingerprints([bulk("Mg", "fcc", a=4.5)] * 3, ELEMENTS)
    assert sorted(farthest_points(prints, 10)) == [0, 1, 2]
    assert farthest_points(prints, 0) == []
    assert farthest_points(prints[:0], 5) == []


BROKEN = {
    "empty": (Atoms(cell=np.eye(3), pbc=True), "at least one atom"),
    "foreign": (bulk("Cu"), "expected only Mg, O, Si, got Cu"),
    "not finite": (Atoms("Mg", positions=[[np.nan, 0, 0]], cell=np.eye(3), pbc=True), "not finite"),
    "flat": (Atoms("Mg", cell=np.diag([3.0, 3.0, 0.0]), pbc=True), "no volume"),
}


@pytest.mark.parametrize(("atoms", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_structure_is_named(atoms: Atoms, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fingerprint(atoms, ELEMENTS)
    with pytest.raises(DataError, match=f"structure 1: .*{message}"):
        fingerprints([bulk("Mg"), atoms], ELEMENTS)


def test_fingerprints_of_different_systems_do_not_mix() -> None:
    a, b = fingerprint(bulk("Mg"), ("Mg",)), fingerprint(bulk("Mg"), ("Mg", "O"))
    with pytest.raises(DataError, match="one system"):
        distance(a, b)
