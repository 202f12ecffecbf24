"""Neighbours kept between steps are never incomplete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from analytic import Morse, random_crystals

from acnn.config import RelaxConfig
from acnn.neighbors import Neighbors, build_neighbors
from acnn.relax import relax
from acnn.relax.cache import NeighborCache
from acnn.relax.pool import Job, Pool

if TYPE_CHECKING:
    from acnn.batch import Batch

CUTOFF = 4.0  # Å


def close_pairs(neighbors: Neighbors, batch: Batch) -> list[tuple[int, int, float]]:
    """Pairs within the cutoff with their distances, sorted."""
    distances = neighbors.vectors(batch).norm(dim=2)
    near = neighbors.mask & (distances < CUTOFF)
    rows = torch.nonzero(near)[:, 0].tolist()
    values = [round(d, 6) for d in distances[near].tolist()]
    return sorted(zip(rows, neighbors.index[near].tolist(), values, strict=True))


@pytest.mark.parametrize("skin", [0.0, 0.3, 1.0])
def test_kept_neighbors_are_complete_while_structures_move(skin: float):
    rng = np.random.default_rng(1)
    frames = random_crystals(20, 5, (1, 9))
    pool = Pool(8, 9, torch.device("cpu"))
    rows = pool.enter(list(range(5)), [Job(k, atoms, 0.0) for k, atoms in enumerate(frames)])
    cache = NeighborCache(8, CUTOFF, skin, torch.float64, torch.device("cpu"))
    point = pool.point[rows]
    for step in range(12):
        size = 0.3 if step < 3 else 0.01
        chosen = slice(0, 3) if step % 4 == 2 else slice(0, 5)
        geometry = pool.geometry(rows[chosen], point[chosen])
        batch, present = pool.batch(rows[chosen], geometry, torch.float64)
        kept = cache.update(rows[chosen], geometry, present, batch)
        assert close_pairs(kept, batch) == close_pairs(build_neighbors(batch, CUTOFF), batch)
        point = point + torch.as_tensor(rng.normal(0, size, point.shape))
    if skin == 1.0:
        assert cache.n_searches < 40


def test_the_skin_does_not_change_the_path():
    frames = random_crystals(21, 4, (3, 8))
    without = list(relax(frames, Morse(), RelaxConfig(skin=0.0), pressure_gpa=5.0))
    with_skin = list(relax(frames, Morse(), RelaxConfig(skin=0.7), pressure_gpa=5.0))
    for one, other in zip(without, with_skin, strict=True):
        assert other.n_steps == one.n_steps
        assert other.energy == pytest.approx(one.energy, abs=1e-9)


def test_memory_that_does_not_suffice_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch):
    cache = NeighborCache(4, CUTOFF, 0.5, torch.float64, torch.device("cpu"))
    pad = torch.nn.functional.pad

    def small(tensor: torch.Tensor, extra: tuple[int, ...]) -> torch.Tensor:
        if tensor is cache.index:
            raise torch.OutOfMemoryError
        return pad(tensor, extra)

    monkeypatch.setattr(torch.nn.functional, "pad", small)
    with pytest.raises(torch.OutOfMemoryError):
        cache._reserve(9, 60)
    assert cache.positions.shape[1] == cache.counts.shape[1] == cache.index.shape[1] == 1
