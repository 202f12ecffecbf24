"""Neighbours kept between steps, searched again only for structures that have moved too far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from acnn.batch import Batch
from acnn.neighbors import Neighbors, build_neighbors

if TYPE_CHECKING:
    from acnn.relax.pool import Geometry

ROUNDING = 1e-5
"""Part of the skin's reach left unused for rounding, Å."""


class NeighborCache:
    """Neighbours of every slot, found with a skin beyond the cutoff.

    A list stays exact while no pair can have come from beyond the searched reach to within the cutoff: with the cell
    deformed by D and atoms displaced by at most u on top of that, distances shrink at most by the factor
    1 - ‖D - 1‖ and by 2 u.

    Parameters
    ----------
    n_slots
        Structures held.
    cutoff
        Range within which all neighbours are needed, Å.
    skin
        Searched beyond the cutoff, Å; 0: search at every step.
    dtype
        Floating type of the potential.
    device
        Where the tensors live.
    """

    def __init__(self, n_slots: int, cutoff: float, skin: float, dtype: torch.dtype, device: torch.device) -> None:
        self.cutoff, self.skin = cutoff, skin
        self.n_searches = 0
        self.dtype, self.device = dtype, device
        self._allocate(n_slots)

    def _allocate(self, n_slots: int) -> None:
        """Make room for a neighbour of an atom in each slot."""
        dtype, device = self.dtype, self.device
        self.valid = torch.zeros(n_slots, dtype=torch.bool, device=device)
        self.cells = torch.eye(3, dtype=torch.float64, device=device).repeat(n_slots, 1, 1)
        self.positions = torch.zeros((n_slots, 1, 3), dtype=torch.float64, device=device)
        self.counts = torch.zeros((n_slots, 1), dtype=torch.int64, device=device)
        self.index = torch.zeros((n_slots, 1, 1), dtype=torch.int64, device=device)
        self.shift = torch.zeros((n_slots, 1, 1, 3), dtype=dtype, device=device)

    def release(self) -> None:
        """Give the memory back, and search at every step from now on."""
        self.skin = 0.0
        self._allocate(1)

    def forget(self, rows: torch.Tensor) -> None:
        """Drop the neighbours of slots that hold another structure now.

        Parameters
        ----------
        rows
            Slots, shape (n,).
        """
        if self.skin:
            self.valid[rows] = False

    def update(self, rows: torch.Tensor, geometry: Geometry, present: torch.Tensor, batch: Batch) -> Neighbors:
        """Give the neighbours of some slots, searching where needed.

        Parameters
        ----------
        rows
            Slots, shape (n,).
        geometry
            Their geometry.
        present
            Where the atoms are in the padded layout, shape (n, width).
        batch
            The same structures end to end.

        Returns
        -------
        Neighbors
            All neighbours within the cutoff, and some within the skin.
        """
        if self.skin == 0:
            self.n_searches += len(rows)
            return build_neighbors(batch, self.cutoff)
        self._reserve(present.shape[1], 1)
        stale = ~self.valid[rows] | self._moved(rows, geometry, present)
        if bool(stale.any()):
            self._search(rows, geometry, present, batch, stale)
        atoms = torch.arange(present.shape[1], device=rows.device)
        place = (rows[:, None] * self.positions.shape[1] + atoms)[present]
        counts = self.counts.flatten()[place]
        width = max(1, int(counts.max()))
        first = torch.cumsum(present.sum(1), 0) - present.sum(1)
        mask = torch.arange(width, device=counts.device) < counts[:, None]
        index = self.index.flatten(0, 1)[place, :width] + first[batch.system][:, None]
        own = torch.arange(batch.n_atoms, device=counts.device)[:, None]
        return Neighbors(torch.where(mask, index, own), self.shift.flatten(0, 1)[place, :width], mask)

    def _moved(self, rows: torch.Tensor, geometry: Geometry, present: torch.Tensor) -> torch.Tensor:
        """Tell which structures may have neighbours that are not in their list, shape (n,)."""
        deformation = torch.linalg.solve(self.cells[rows], geometry.cells)
        away = (geometry.positions - self.positions[rows] @ deformation) * present[:, :, None]
        away = (away - away.sum(1, keepdim=True) / present.sum(1)[:, None, None]) * present[:, :, None]
        strain = deformation - torch.eye(3, dtype=torch.float64, device=deformation.device)
        square = strain.mT @ strain
        largest = (square @ square).norm(dim=(1, 2)) ** 0.25
        reach = (1.0 - largest) * (self.cutoff + self.skin) - 2.0 * away.norm(dim=2).amax(1)
        moved: torch.Tensor = ~(reach > self.cutoff + ROUNDING)
        return moved

    def _search(
        self, rows: torch.Tensor, geometry: Geometry, present: torch.Tensor, batch: Batch, stale: torch.Tensor
    ) -> None:
        """Search the neighbours of some of the structures and store them."""
        chosen = stale[batch.system]
        counts = present[stale].sum(1)
        system = torch.repeat_interleave(counts)
        part = Batch(batch.numbers[chosen], batch.positions[chosen], batch.cells[stale], system)
        found = build_neighbors(part, self.cutoff + self.skin)
        slots = rows[stale]
        self._reserve(present.shape[1], found.index.shape[1])
        self.n_searches += len(slots)
        place = (slots[system], torch.nonzero(present[stale])[:, 1])
        width = found.index.shape[1]
        first = torch.cumsum(counts, 0) - counts
        self.index[*place, :width] = found.index - first[system][:, None]
        self.shift[*place, :width] = found.shift
        self.counts[place] = found.mask.sum(1)
        self.cells[slots] = geometry.cells[stale]
        self.positions[slots] = geometry.positions[stale]
        self.valid[slots] = True

    def _reserve(self, n_atoms: int, width: int) -> None:
        """Make room for more atoms in a slot, or more neighbours of an atom."""
        atoms = max(0, n_atoms - self.positions.shape[1])
        more = max(0, width - self.index.shape[2])
        if not atoms and not more:
            return
        pad = torch.nn.functional.pad
        self.positions, self.counts, self.index, self.shift = (  # all or, where the memory does not suffice, none
            pad(self.positions, (0, 0, 0, atoms)),
            pad(self.counts, (0, atoms)),
            pad(self.index, (0, more, 0, atoms)),
            pad(self.shift, (0, 0, 0, more, 0, atoms)),
        )
