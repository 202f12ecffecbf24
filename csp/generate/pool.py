"""Many proposals at once: each structure keeps its own source of chance while all are pushed apart together."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray

from csp.compositions import CompositionRule
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
    given
        True for the user's own structure, which the numbers of atoms and the compositions of the settings do not bind.
    """

    trial: Trial
    info: dict[str, str | int | float]
    given: bool = False


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
    reason
        Why the last attempt failed.
    """

    index: int
    propose: Proposer
    rng: np.random.Generator
    attempts: int = 0
    seconds: float = 0.0
    reason: str = ""
    proposal: Proposal | None = field(default=None, repr=False)


class Pool:
    """Works requests off until each is made or refused.

    Parameters
    ----------
    settings
        Attempts, steps and time per structure; what it may consist of.
    knowledge
        Least distances.
    elements
        Chemical symbols of the system, all known to ``knowledge``.

    Notes
    -----
    Whatever the source, a structure is handed out only if all of this holds of the finished crystal: no pair closer
    than its least distance, the symmetry that it is said to have, and a number of atoms and a composition that the
    settings allow. Otherwise it is drawn again, and refused in the end: ``crowded``, ``symmetry``, ``atoms``,
    ``formula_units``, ``composition``; or ``time``, or for the reason of the source.
    """

    def __init__(self, settings: GenerateConfig, knowledge: Knowledge, elements: Sequence[str]) -> None:
        self.settings = settings
        self.rule = CompositionRule(elements, settings)
        self.elements = knowledge.elements
        self.numbers = np.array([atomic_numbers[symbol] for symbol in self.elements])
        self.distances = knowledge.distance_matrix(self.numbers)
        self.roomy = (float(self.distances.max()) / FARTHEST) ** 3  # Å^3, beyond which no cell is too small

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
        while request.attempts < self.settings.max_attempts:
            if request.seconds >= self.settings.time_limit_s:
                return "time"
            started = time.perf_counter()
            request.attempts += 1
            answer = request.propose(request.rng)
            request.seconds += time.perf_counter() - started
            if isinstance(answer, str):
                return answer
            request.reason = self._objection(answer)
            if not request.reason:
                request.proposal = answer
                return "too_dense" if self._too_far(answer.trial) else ""
        return request.reason

    def _counts(self, trial: Trial) -> dict[str, int]:
        """Count atoms by element."""
        numbers = np.bincount(trial.kinds[trial.owner], minlength=len(self.elements)).tolist()
        return {symbol: n for symbol, n in zip(self.elements, numbers, strict=True) if n}

    def _objection(self, proposal: Proposal) -> str:
        """Tell why the settings do not allow what a proposal consists of; "" if they do."""
        return "" if proposal.given else self.rule.objection(self._counts(proposal.trial))

    def _too_far(self, trial: Trial) -> bool:
        """Tell whether some least distance is longer than the cell leaves room for."""
        volume = abs(np.linalg.det(trial.cell))
        if volume >= self.roomy:
            return False
        kinds = np.unique(trial.kinds)
        return bool(self.distances[np.ix_(kinds, kinds)].max() > FARTHEST * volume ** (1 / 3))

    def _push(self, requests: list[Request], accept: Callable[[Request, Atoms], None], max_steps: int) -> list[Request]:
        """Push the atoms of some structures apart, hand out the good ones and give back the others."""
        proposals = [request.proposal for request in requests if request.proposal is not None]
        seconds = self.settings.time_limit_s - np.array([request.seconds for request in requests])
        good, spent = spread([proposal.trial for proposal in proposals], self.distances, max_steps, seconds)
        again: list[Request] = []
        for request, proposal, fine, took in zip(requests, proposals, good, spent.tolist(), strict=True):
            started = time.perf_counter()
            answer = self._finished(proposal) if fine else "crowded"
            request.seconds += took + time.perf_counter() - started
            if isinstance(answer, str):
                request.reason = answer
                again.append(request)
            else:
                accept(request, answer)
        return again

    def _finished(self, proposal: Proposal) -> Atoms | str:
        """Turn a finished trial into a crystal, checked once more by independent means, or tell what is wrong."""
        if objection := self._objection(proposal):
            return objection
        trial = proposal.trial
        kinds, fractions = trial.kinds[trial.owner], trial.fractions()
        if not trial.is_symmetric(fractions):
            return "symmetry"
        atoms = Atoms(numbers=self.numbers[kinds], cell=trial.cell, scaled_positions=fractions, pbc=True)
        excess = least_excess(atoms, self.distances[np.ix_(kinds, kinds)]) if np.isfinite(fractions).all() else np.nan
        if not excess >= -ROUNDING:  # false for what is no number
            return "crowded"
        atoms.info.update(proposal.info)
        atoms.info["formula"] = reduced_formula(self._counts(trial))
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
