"""The neighbour search against ASE's, on ordinary and on nasty cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list

from acnn import neighbors as neighbors_module
from acnn.batch import Batch
from acnn.neighbors import Neighbors, build_neighbors

CUTOFF = 5.0  # Å
DISTANCE_TOLERANCE = 1e-9  # Å, rounding of float64


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Search in C and by PyTorch."""
    if request.param == "torch":
        monkeypatch.setattr(neighbors_module, "load_library", lambda *_: None)
    elif neighbors_module.load_library(neighbors_module.SOURCES, torch.device("cpu")) is None:
        pytest.skip("no C compiler here")
    return str(request.param)


def random_crystal(rng: np.random.Generator, n_atoms: int, *, skew: float = 0.0, flat: float = 1.0) -> Atoms:
    """Make a random cell of about 15 Å^3 per atom; skew adds multiples of vectors, flat squeezes one."""
    cell = np.eye(3) * (15.0 * n_atoms) ** (1 / 3) + rng.normal(0, 0.5, (3, 3))
    cell[2] *= flat
    cell[0] /= flat
    cell[1] += skew * cell[0]
    cell[2] += skew * cell[1] - 1.3 * skew * cell[0]
    scaled = rng.random((n_atoms, 3)) * 3 - 1
    return Atoms("C" * n_atoms, cell=cell, scaled_positions=scaled, pbc=True)


def triplets(neighbors: Neighbors, batch: Batch, system: int) -> set[tuple[int, int, int, int, int]]:
    rows = torch.nonzero(batch.system == system)[:, 0]
    first = int(rows[0])
    found = set()
    for i in rows.tolist():
        for k in torch.nonzero(neighbors.mask[i])[:, 0].tolist():
            shift = [int(x) for x in neighbors.shift[i, k].tolist()]
            found.add((i - first, int(neighbors.index[i, k]) - first, *shift))
    return found


def ase_triplets(atoms: Atoms, cutoff: float) -> set[tuple[int, int, int, int, int]]:
    i, j, shifts = neighbor_list("ijS", atoms, cutoff)
    return {(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, shifts, strict=True)}


def nasty_frames() -> list[Atoms]:
    rng = np.random.default_rng(7)
    frames = [random_crystal(rng, n) for n in (1, 2, 5, 12, 40)]
    frames += [random_crystal(rng, n, skew=s) for n, s in ((1, 4.0), (3, -7.0), (8, 2.5))]
    frames += [random_crystal(rng, n, flat=f) for n, f in ((1, 0.3), (4, 0.25), (6, 3.0))]
    frames += [bulk("Cu"), bulk("Fe", cubic=True), Atoms("H", cell=np.eye(3) * 1.1, pbc=True)]
    left_handed = random_crystal(rng, 4)
    left_handed.set_cell(left_handed.cell[[1, 0, 2]])
    return [*frames, left_handed]


def test_neighbors_equal_those_of_ase():
    frames = nasty_frames()
    batch = Batch.from_atoms(frames, torch.float64)
    found = build_neighbors(batch, CUTOFF)
    for k, atoms in enumerate(frames):
        assert triplets(found, batch, k) == ase_triplets(atoms, CUTOFF), f"frame {k}"


@pytest.mark.parametrize("seed", range(5))
def test_neighbors_of_random_cells_equal_those_of_ase(seed: int):
    rng = np.random.default_rng(seed)
    frames = [random_crystal(rng, int(rng.integers(1, 9)), skew=float(rng.normal())) for _ in range(10)]
    batch = Batch.from_atoms(frames, torch.float64)
    found = build_neighbors(batch, 4.3)
    for k, atoms in enumerate(frames):
        assert triplets(found, batch, k) == ase_triplets(atoms, 4.3), f"seed {seed} frame {k}"


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    batch = Batch.from_atoms(nasty_frames(), torch.float64)
    whole = build_neighbors(batch, CUTOFF)
    monkeypatch.setattr(neighbors_module, "PAIRS_PER_BLOCK", {"cpu": 50, "cuda": 50})
    monkeypatch.setattr(neighbors_module, "FIRST_WIDTH", 3)
    cut = build_neighbors(batch, CUTOFF)
    assert torch.equal(whole.index, cut.index)
    assert torch.equal(whole.shift, cut.shift)
    assert torch.equal(whole.mask, cut.mask)


def test_vectors_have_the_distances_of_ase():
    atoms = random_crystal(np.random.default_rng(3), 6, skew=1.0)
    batch = Batch.from_atoms([atoms], torch.float64)
    found = build_neighbors(batch, CUTOFF)
    distances = found.vectors(batch).norm(dim=2)[found.mask]
    expected = neighbor_list("d", atoms, CUTOFF)
    assert np.allclose(np.sort(distances.numpy()), np.sort(expected), atol=DISTANCE_TOLERANCE)
    assert (found.vectors(batch)[~found.mask] == 0).all()


def test_both_ways_find_the_same(monkeypatch: pytest.MonkeyPatch):
    batch = Batch.from_atoms(nasty_frames(), torch.float64)
    one = build_neighbors(batch, CUTOFF)
    monkeypatch.setattr(neighbors_module, "load_library", lambda *_: None)
    other = build_neighbors(batch, CUTOFF)
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.shift, other.shift)


def test_numbers_that_are_none_end_the_search(way: str):
    if way == "torch":
        pytest.skip("only loops could run for ever")
    batch = Batch.from_atoms([random_crystal(np.random.default_rng(4), 3)], torch.float64)
    batch.positions[1, 0] = np.nan
    batch.positions[2, 0] = 1e200
    found = build_neighbors(batch, CUTOFF)
    assert not (found.index[0][found.mask[0]] == 1).any()


def test_isolated_atom_has_only_padding():
    batch = Batch.from_atoms([Atoms("H", cell=np.eye(3) * 20, pbc=True)], torch.float64)
    found = build_neighbors(batch, CUTOFF)
    assert found.index.tolist() == [[0]]
    assert not found.mask.any()


def test_float32_finds_the_same_neighbors_away_from_the_cutoff():
    frames = nasty_frames()
    exact = build_neighbors(Batch.from_atoms(frames, torch.float64), CUTOFF)
    batch = Batch.from_atoms(frames, torch.float32)
    found = build_neighbors(batch, CUTOFF)
    assert found.shift.dtype == torch.float32
    assert int(found.mask.sum()) == int(exact.mask.sum())
