"""Neighbour search for a flat batch of periodic structures, on the batch's device.

The lattice points inside a sphere are enumerated from the triangular form of the cell: planes first, then the
lines of each plane, then the points of each line, each interval being exact. So the work is in proportion to the
number of neighbours for any cell: one atom, a cell smaller than the cutoff, a very skewed one; no cell has to be
reduced first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from acnn.compiled import load_library

if TYPE_CHECKING:
    from acnn.batch import Batch
    from acnn.compiled import Library

SOURCES = ("neighbors.c", "loop.h")

FIRST_WIDTH = 64
"""Neighbours of an atom for which there is room at first."""

PAIRS_PER_BLOCK = {"cpu": 1 << 16, "cuda": 1 << 24}
"""Pairs of atoms handled at a time: keeps temporaries in the cache of a CPU, bounded on a GPU."""

SLACK = 32.0
"""Widening of an enumeration interval, in units of the floating type's rounding; the distance decides afterwards."""


@dataclass(frozen=True)
class Neighbors:
    """Neighbours of every atom of a batch, padded to the same number K.

    The vector from an atom to a neighbour is ``positions[index] + shift @ cell - positions``. Real neighbours
    come first in each row, padding after them.

    Attributes
    ----------
    index
        Neighbour's atom index in the batch, own index for padding, shape (n_atoms, K), int64.
    shift
        Lattice image of the neighbour, whole numbers in the batch's floating type, shape (n_atoms, K, 3).
    mask
        True for a neighbour, false for padding, shape (n_atoms, K).
    """

    index: torch.Tensor
    shift: torch.Tensor
    mask: torch.Tensor

    def vectors(self, batch: Batch) -> torch.Tensor:
        """Compute the vectors to the neighbours, differentiable in positions and cells.

        Parameters
        ----------
        batch
            The batch, or one with the same atoms moved or strained.

        Returns
        -------
        torch.Tensor
            Vectors, shape (n_atoms, K, 3), Å; zero for padding.
        """
        images = torch.bmm(self.shift, batch.cells[batch.system])
        return batch.positions[self.index] - batch.positions[:, None, :] + images


def build_neighbors(batch: Batch, cutoff: float) -> Neighbors:
    """Find all neighbours closer than a cutoff, periodic images included.

    Parameters
    ----------
    batch
        Structures; any cell shape and size, positions need not be wrapped.
    cutoff
        Largest distance of a neighbour, Å.

    Returns
    -------
    Neighbors
        Padded neighbours; an atom is its own neighbour only through a lattice image.

    Notes
    -----
    Cost is in proportion to the number of neighbours plus the number of pairs of atoms within each structure.
    """
    library = load_library(SOURCES, batch.positions.device)
    if library is not None:
        return _search_compiled(library, batch, cutoff)
    geometry = _Geometry(batch, cutoff)
    parts = [geometry.search(start, stop) for start, stop in geometry.blocks()]
    center = torch.cat([part[0] for part in parts])
    neighbor = torch.cat([part[1] for part in parts])
    shift = torch.cat([part[2] for part in parts])
    return _pad(center, neighbor, shift, batch)


def _search_compiled(library: Library, batch: Batch, cutoff: float) -> Neighbors:
    """Search atom by atom; again with longer rows, where the first guess was too short."""
    n_atoms, device = batch.n_atoms, batch.positions.device
    positions, cells = batch.positions.detach().double().contiguous(), batch.cells.detach().double().contiguous()
    starts = torch.searchsorted(batch.system, torch.arange(batch.n_systems + 1, device=device))
    counts = torch.empty(n_atoms, dtype=torch.int64, device=device)
    slack = SLACK * torch.finfo(positions.dtype).eps
    width, most = 0, FIRST_WIDTH
    while width < most:
        width = most
        index = torch.empty((n_atoms, width), dtype=torch.int64, device=device)
        shift = torch.empty((n_atoms, width, 3), dtype=torch.float32, device=device)
        geometry = (positions, cells, batch.system.contiguous(), starts)
        library.run("search", n_atoms, *geometry, float(cutoff), slack, width, index, shift, counts)
        most = max(1, int(counts.max()))
    index, shift = index[:, :most].contiguous(), shift[:, :most].to(batch.positions.dtype).contiguous()
    return Neighbors(index, shift, torch.arange(most, device=device) < counts[:, None])


class _Geometry:
    """Triangular cells and fractional positions of a batch, ready for the enumeration."""

    def __init__(self, batch: Batch, cutoff: float) -> None:
        with torch.no_grad():
            lengths = batch.cells.norm(dim=2)
            self.order = lengths.argsort(dim=1)
            cells = torch.gather(batch.cells, 1, self.order[:, :, None].expand(-1, -1, 3))
            self.lower = _triangular(cells)
            inverse = torch.linalg.inv(batch.cells)
            fractional = torch.bmm(batch.positions[:, None, :], inverse[batch.system])[:, 0]
            self.fractional = torch.gather(fractional, 1, self.order[batch.system])
        self.system = batch.system
        self.cutoff = cutoff
        self.slack = SLACK * torch.finfo(batch.positions.dtype).eps * (1.0 + float(self.fractional.abs().amax()))
        self.counts = torch.bincount(batch.system, minlength=batch.n_systems)
        self.first = self.counts.cumsum(0) - self.counts
        self.partners = self.counts[batch.system]

    def blocks(self) -> list[tuple[int, int]]:
        """Cut the atoms into runs of bounded numbers of pairs."""
        limit = PAIRS_PER_BLOCK["cpu" if self.system.device.type == "cpu" else "cuda"]
        total = self.partners.cumsum(0)
        n_blocks = int(torch.div(total[-1] - 1, limit, rounding_mode="floor")) + 1
        edges = torch.arange(1, n_blocks, device=total.device) * limit
        cuts = [0, *torch.unique(torch.searchsorted(total, edges)).tolist(), int(total.shape[0])]
        return [(a, b) for a, b in pairwise(cuts) if b > a]

    def search(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Enumerate the neighbours of the atoms from start to stop.

        Parameters
        ----------
        start
            First atom.
        stop
            Last atom plus one.

        Returns
        -------
        tuple[torch.Tensor, torch.Tensor, torch.Tensor]
            Centre and neighbour indices, shape (n,), and images, shape (n, 3); sorted by centre.
        """
        center, rank = _expand(self.partners[start:stop])
        center = center + start
        system = self.system[center]
        neighbor = self.first[system] + rank
        delta = self.fractional[neighbor] - self.fractional[center]
        lower = self.lower[system]
        pair, x3 = self._interval(delta[:, 2], torch.full_like(delta[:, 2], self.cutoff), lower[:, 5])
        delta2, lower2 = delta[pair], lower[pair]
        y3 = x3 * lower2[:, 5]
        left = (self.cutoff**2 - y3 * y3).clamp(min=0.0)
        line, x2 = self._interval(delta2[:, 1], left.sqrt(), lower2[:, 2], x3 * lower2[:, 4])
        pair, x3, y3, left = pair[line], x3[line], y3[line], left[line]
        delta1, lower1 = delta[pair], lower[pair]
        y2 = x2 * lower1[:, 2] + x3 * lower1[:, 4]
        left = (left - y2 * y2).clamp(min=0.0)
        offset = x3 * lower1[:, 3] + x2 * lower1[:, 1]
        point, x1 = self._interval(delta1[:, 0], left.sqrt(), lower1[:, 0], offset)
        y1 = x1 * lower1[point, 0] + offset[point]
        pair = pair[point]
        shift = (torch.stack([x1, x2[point], x3[point]], dim=1) - delta[pair]).round()
        keep = y1 * y1 + (y2 * y2)[point] + (y3 * y3)[point] < self.cutoff**2
        keep &= (center[pair] != neighbor[pair]) | shift.any(dim=1)
        pair, shift = pair[keep], shift[keep]
        unsorted = torch.empty_like(shift).scatter_(1, self.order[system[pair]], shift)
        return center[pair], neighbor[pair], unsorted

    def _interval(
        self, delta: torch.Tensor, radius: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Enumerate the whole n with abs((delta + n) * step + offset) <= radius: parents and delta + n, shape (n,)."""
        half = radius / step + self.slack
        middle = delta if offset is None else delta + offset / step
        low = torch.ceil(-half - middle)
        count = (torch.floor(half - middle) - low + 1.0).clamp(min=0.0).long()
        parent, rank = _expand(count)
        return parent, (delta + low)[parent] + rank


def _triangular(cells: torch.Tensor) -> torch.Tensor:
    """Orthogonalise the rows: entries 11, 21, 22, 31, 32, 33 of the lower triangle, shape (n, 6), Å."""
    a, b, c = cells.unbind(1)
    l11 = a.norm(dim=1)
    e1 = a / l11[:, None]
    l21 = (b * e1).sum(1)
    b = b - l21[:, None] * e1
    l22 = b.norm(dim=1)
    e2 = b / l22[:, None]
    l31, l32 = (c * e1).sum(1), (c * e2).sum(1)
    l33 = (c - l31[:, None] * e1 - l32[:, None] * e2).norm(dim=1)
    return torch.stack([l11, l21, l22, l31, l32, l33], dim=1)


def _expand(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Repeat each parent as often as counted: parents and running numbers within each, shape (sum,)."""
    parent = torch.repeat_interleave(counts)
    start = counts.cumsum(0) - counts
    rank = torch.arange(parent.shape[0], device=counts.device) - start[parent]
    return parent, rank


def _pad(center: torch.Tensor, neighbor: torch.Tensor, shift: torch.Tensor, batch: Batch) -> Neighbors:
    """Lay a list sorted by centre into rows of equal length."""
    n_atoms, device = batch.n_atoms, batch.positions.device
    counts = torch.bincount(center, minlength=n_atoms)
    width = max(int(counts.max()), 1)
    start = counts.cumsum(0) - counts
    slot = torch.arange(center.shape[0], device=device) + (torch.arange(n_atoms, device=device) * width - start)[center]
    index = torch.arange(n_atoms, device=device)[:, None].repeat(1, width)
    index.view(-1)[slot] = neighbor
    shifts = torch.zeros((n_atoms * width, 3), dtype=batch.positions.dtype, device=device)
    shifts[slot] = shift
    mask = torch.arange(width, device=device) < counts[:, None]
    return Neighbors(index, shifts.view(n_atoms, width, 3), mask)
