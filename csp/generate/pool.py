"""Many proposals at once: each structure keeps its own source of chance while all are pushed apart together."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray

from csp.config import GenerateConfig
from csp.generate.spread import spread
from csp.generate.trial import Trial
from csp.geometry import least_excess
from csp.knowledge import Knowledge, reduced_formula

Floats = NDArray[np.float64]

POOL = 256  # structures in work at a time, at most
POOL_PAIRS = 600_000  # pairs of atoms pushed apart together: bounds memory to some hundred megabytes
FARTHEST = 3.0  # times the cube root of a cell's volume: only needles let two kinds of atoms keep further apart
ROUNDING = 1e-9  # Å, by which a distance may fall short for rounding alone


@dataclass(eq=False)
class Proposal:
    """A trial and what is to be told of it.

    Parameters
    ----------
    trial
        Coordinates, whose atoms may still be too close.
    info
        Goes into ``atoms.info``: origin, lineage, family.
    """

    trial: Trial
    info: dict[str, str | int | float]


Proposer = Callable[[np.random.Generator], Proposal | str]
"""Draws a proposal, or answers the reason why there never can be one."""


@dataclass(eq=False)
class Request:
    """One structure that was asked for.

    Parameters
    ----------
    index
        Its place in the answer.
    propose
        Draws one attempt.
    rng
        Its own source of chance.
    attempts
        Attempts so far.
    seconds
        Time spent on it so far.
    """

    index: int
    propose: Proposer
    rng: np.random.Generator
    attempts: int = 0
    seconds: float = 0.0
    proposal: Proposal | None = field(default=None, repr=False)


class Pool:
    """Works requests off until each is made or refused.

    Parameters
    ----------
    settings
        Attempts, steps and time per structure.
    knowledge
        Least distances.
    """

    def __init__(self, settings: GenerateConfig, knowledge: Knowledge) -> None:
        self.settings = settings
        self.elements = knowledge.elements
        self.numbers = np.array([atomic_numbers[symbol] for symbol in self.elements])
        self.distances = knowledge.distance_matrix(self.numbers)

    def work(self, requests: Sequence[Request], accept: Callable[[Request, Atoms], None]) -> dict[str, int]:
        """Make every request or refuse it.

        Parameters
        ----------
        requests
            What is wanted.
        accept
            Called with each finished structure.

        Returns
        -------
        dict[str, int]
            Refusals by reason.
        """
        refused: Counter[str] = Counter()
        waiting = list(reversed(requests))
        pool: list[Request] = []
        while waiting or pool:
            while waiting and len(pool) < POOL:
                pool.append(waiting.pop())
            trying: list[Request] = []
            for request in pool:
                reason = self._attempt(request)
                if reason:
                    refused[reason] += 1
                else:
                    trying.append(request)
            early = [request for request in trying if request.attempts <= self.settings.unpushed_attempts]
            late = [request for request in trying if request.attempts > self.settings.unpushed_attempts]
            pool = [request for group in self._portions(early) for request in self._push(group, accept, 0)]
            steps = self.settings.max_push_steps
            pool += [request for group in self._portions(late) for request in self._push(group, accept, steps)]
        return dict(refused)

    def _attempt(self, request: Request) -> str:
        """Draw a proposal for a request; answer the reason where it has to be refused."""
        if request.attempts >= self.settings.max_attempts:
            return "crowded"
        if request.seconds > self.settings.time_limit_s:
            return "time"
        started = time.perf_counter()
        request.attempts += 1
        answer = request.propose(request.rng)
        request.seconds += time.perf_counter() - started
        if isinstance(answer, str):
            return answer
        request.proposal = answer
        return "too_dense" if self._too_far(answer.trial) else ""

    def _too_far(self, trial: Trial) -> bool:
        """Tell whether some least distance is longer than the cell leaves room for."""
        room = FARTHEST * abs(np.linalg.det(trial.cell)) ** (1 / 3)
        if self.distances.max() <= room:
            return False
        kinds = np.unique(trial.kinds)
        return bool(self.distances[np.ix_(kinds, kinds)].max() > room)

    def _push(self, requests: list[Request], accept: Callable[[Request, Atoms], None], max_steps: int) -> list[Request]:
        """Push the atoms of some structures apart, hand out the good ones and give back the others."""
        started = time.perf_counter()
        proposals = [request.proposal for request in requests if request.proposal is not None]
        good = spread([proposal.trial for proposal in proposals], self.distances, max_steps)
        each = (time.perf_counter() - started) / max(len(requests), 1)
        again: list[Request] = []
        for request, proposal, fine in zip(requests, proposals, good, strict=True):
            request.seconds += each
            atoms = self._atoms(proposal) if fine else None
            if atoms is None:
                again.append(request)
            else:
                accept(request, atoms)
        return again

    def _atoms(self, proposal: Proposal) -> Atoms | None:
        """Turn a finished trial into a crystal, checked once more by independent means; None if it fails."""
        trial = proposal.trial
        kinds = trial.kinds[trial.owner]
        atoms = Atoms(numbers=self.numbers[kinds], cell=trial.cell, scaled_positions=trial.fractions(), pbc=True)
        if least_excess(atoms, self.distances[np.ix_(kinds, kinds)]) < -ROUNDING:
            return None
        counts = np.bincount(kinds, minlength=len(self.elements)).tolist()
        atoms.info.update(proposal.info)
        atoms.info["formula"] = reduced_formula(dict(zip(self.elements, counts, strict=True)))
        return atoms

    def _portions(self, requests: list[Request]) -> list[list[Request]]:
        """Cut requests into groups whose pairs of atoms, with those images that come within reach, fit into memory."""
        reach = 4.2 * float(self.distances.max()) ** 3
        groups: list[list[Request]] = []
        room = 0.0
        for request in requests:
            trial = request.proposal.trial if request.proposal else None
            pairs = 0.0
            if trial:
                images = max(1.0, reach / abs(np.linalg.det(trial.cell)))
                pairs = len(trial.kinds) * len(trial.owner) * images
            if pairs > room or not groups:
                groups.append([])
                room = POOL_PAIRS
            groups[-1].append(request)
            room -= pairs
        return groups
