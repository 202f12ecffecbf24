"""The structures in flight: finished ones leave, new ones enter, those of similar size side by side."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING

import torch

from acnn.errors import NumericalError
from acnn.relax.lane import Lane
from acnn.relax.memory import Budget, affordable, is_refusal
from acnn.relax.result import Relaxed
from acnn.relax.screen import screened

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from acnn.config import RelaxConfig
    from acnn.relax.interface import PotentialLike
    from acnn.relax.pool import Job

SLOT_ATOMS = 8
"""Atoms of the smallest structures for which there are enough slots."""

SPREAD = 6
"""Slots that a structure goes into have room for at most this many times its atoms; measured, more lanes cost too."""

GROWTH = 1.5
"""Slots for structures that are larger than all in flight have room for so many times more atoms: others may follow."""

MOST_REFUSED = 1000
"""Structures that cannot be evaluated which are held at a time."""


class Engine:
    """Structures in flight and the potential that drives them.

    Parameters
    ----------
    potential
        Gives energies, forces and stresses of a batch.
    settings
        Convergence, steps and guards.
    table
        Minimum distances by atomic number, shape (119, 119), Å.
    """

    def __init__(self, potential: PotentialLike, settings: RelaxConfig, table: np.ndarray) -> None:
        device = torch.device(potential.device)
        self.potential = potential
        self.settings = settings
        self.table = torch.as_tensor(table, dtype=potential.dtype, device=device) * settings.bonds_scale
        self.budget = Budget(settings.batch_atoms or affordable(device))
        self.lanes: list[Lane] = []
        self.waiting: deque[Job] = deque()
        self.refused: list[Relaxed] = []
        self.ended = False

    def run(self, jobs: Iterator[Job]) -> Iterator[Relaxed]:
        """Relax jobs until none is left.

        Parameters
        ----------
        jobs
            Structures to relax, read as slots become free.

        Yields
        ------
        Relaxed
            Results, in the order in which they finish.
        """
        screen = screened(jobs, getattr(self.potential, "elements", None))
        self._enter(self._take(screen))
        while self.lanes or self.waiting or self.refused:
            yield from self.refused
            self.refused.clear()
            for lane in self.lanes:
                yield from self._advance(lane)
            self.lanes = [lane for lane in self.lanes if lane.pool.n_used]
            self._enter(self._take(screen))

    def _advance(self, lane: Lane) -> list[Relaxed]:
        """Take a step in a lane; if not even one of its structures fits beside the others, all of them wait."""
        try:
            return lane.advance()
        except (MemoryError, RuntimeError) as error:
            if not is_refusal(error):
                raise
            if any(other.neighbors.skin for other in self.lanes):
                self._release()
                return self._advance(lane)
            jobs = lane.evict()
            n_atoms = sum(len(job.atoms) for job in jobs)
            if len(jobs) == 1 and not self.budget.in_flight:
                raise NumericalError(f"out of memory with one structure of {n_atoms} atoms in flight") from error
            self.waiting.extendleft(jobs)
            self.budget.halve(self.budget.in_flight + n_atoms)
            return []

    def _release(self) -> None:
        """Give back the memory of neighbours that were kept."""
        for lane in self.lanes:
            lane.neighbors.release()

    def _take(self, screen: Iterator[Job | Relaxed]) -> list[Job]:
        """Take as many structures as may enter; those that had to wait come first."""
        taken: list[Job] = []
        n_atoms = 0
        n_most = max(1, self.budget.limit // SLOT_ATOMS) - sum(lane.pool.n_used for lane in self.lanes)
        while n_atoms < self.budget.room and len(taken) < n_most and len(self.refused) < MOST_REFUSED:
            job = self.waiting.popleft() if self.waiting else next(screen, None)
            if job is None:
                self.ended = True
                break
            if isinstance(job, Relaxed):
                self.refused.append(job)
                continue
            taken.append(job)
            n_atoms += len(job.atoms)
        return taken

    def _enter(self, jobs: list[Job]) -> None:
        """Put structures into slots; those for which there is no memory wait until others have left."""
        groups = self._by_width(jobs)
        for n_entered, (width, group) in enumerate(groups):
            try:
                lane = self._lane(width, len(group))
                lane.enter(group)
            except (MemoryError, RuntimeError) as error:
                if not is_refusal(error):
                    raise
                n_atoms = sum(len(job.atoms) for job in group)
                if len(group) == 1 and not self.budget.in_flight and self.budget.limit <= n_atoms:
                    raise NumericalError(f"out of memory with one structure of {n_atoms} atoms in flight") from error
                self.waiting.extendleft(job for _, later in groups[n_entered:] for job in later)
                self.budget.halve(self.budget.in_flight + n_atoms)
                self._release()
                return
            if lane not in self.lanes:
                self.lanes.append(lane)

    def _by_width(self, jobs: list[Job]) -> list[tuple[int, list[Job]]]:
        """Sort structures by the width of the slots that they go into."""
        by_size: dict[int, list[Job]] = defaultdict(list)
        for job in jobs:
            by_size[len(job.atoms)].append(job)
        groups: dict[int, list[Job]] = {lane.width: [] for lane in self.lanes}
        for size in sorted(by_size, reverse=True):
            new = int(GROWTH * size) if groups and size > max(groups) else size
            width = max((width for width in groups if size <= width <= SPREAD * max(size, SLOT_ATOMS)), default=new)
            groups.setdefault(width, []).extend(by_size[size])
        return [(width, group) for width, group in groups.items() if group]

    def _lane(self, width: int, n_jobs: int) -> Lane:
        """Find a lane with enough vacant slots, or make one."""
        for lane in self.lanes:
            if lane.width == width and lane.pool.n_vacant >= n_jobs:
                return lane
        last = self.ended and not self.waiting
        n_slots = n_jobs if last else max(n_jobs, self.budget.limit // max(SLOT_ATOMS, width // SPREAD))
        return Lane(self.potential, self.settings, self.table, self.budget, n_slots=n_slots, width=width)
