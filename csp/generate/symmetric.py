"""Random crystals: each structure keeps its own source of chance while many are pushed apart together."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray

from csp.config import GenerateConfig
from csp.generate.occupation import filler
from csp.generate.spread import spread
from csp.generate.trial import Trial, new_trial
from csp.generate.wyckoff import N_GROUPS, space_group
from csp.knowledge import Knowledge

Floats = NDArray[np.float64]

POOL = 256  # crystals pushed apart together, at most
POOL_PAIRS = 1_000_000  # pairs of atoms in one pool: bounds memory to some hundred megabytes
DENSEST = 0.86  # share of space that hard spheres of the least distances could ever fill (mixed sizes included)


@dataclass(eq=False)
class Request:
    """One random crystal that was asked for.

    Parameters
    ----------
    index
        Its place in the answer.
    counts
        Atoms by element, in the primitive cell.
    rng
        Its own source of chance.
    """

    index: int
    counts: dict[str, int]
    rng: np.random.Generator
    symmetric: bool = True
    attempts: int = 0
    seconds: float = 0.0
    trial: Trial | None = field(default=None, repr=False)


class RandomCrystals:
    """Makes random crystals for one chemical system and one state of knowledge.

    Parameters
    ----------
    settings
        How crystals are made.
    knowledge
        Least distances and volumes.
    """

    def __init__(self, settings: GenerateConfig, knowledge: Knowledge) -> None:
        self.settings = settings
        self.knowledge = knowledge
        self.elements = knowledge.elements
        self.numbers = np.array([atomic_numbers[symbol] for symbol in self.elements])
        self.distances = knowledge.distance_matrix(self.numbers) * settings.distance_scale
        self.groups = allowed_groups(settings)

    def make(self, requests: Sequence[Request], accept: Callable[[Request, Atoms], None]) -> dict[str, int]:
        """Make every request or refuse it.

        Parameters
        ----------
        requests
            What is wanted.
        accept
            Called with each finished crystal.

        Returns
        -------
        dict[str, int]
            Refusals by reason.
        """
        refused: dict[str, int] = {}
        waiting = list(reversed(requests))
        pool: list[Request] = []
        while waiting or pool:
            pool = self._refill(pool, waiting)
            started = time.perf_counter()
            trying: list[Request] = []
            for request in pool:
                reason = self._attempt(request)
                if reason:
                    refused[reason] = refused.get(reason, 0) + 1
                else:
                    trying.append(request)
            trials = [request.trial for request in trying if request.trial is not None]
            good = spread(trials, self.distances, self.settings.max_push_steps) if trials else np.zeros(0, dtype=bool)
            each = (time.perf_counter() - started) / len(pool)
            pool = []
            for request, trial, fine in zip(trying, trials, good, strict=True):
                request.seconds += each
                if fine:
                    accept(request, self._atoms(request, trial))
                else:
                    pool.append(request)
        return refused

    def _refill(self, pool: list[Request], waiting: list[Request]) -> list[Request]:
        """Move waiting requests into the pool as far as memory allows."""
        pairs = sum(sum(request.counts.values()) ** 2 for request in pool)
        while waiting and len(pool) < POOL and (pairs < POOL_PAIRS or not pool):
            pool.append(waiting.pop())
            pairs += sum(pool[-1].counts.values()) ** 2
        return pool

    def _attempt(self, request: Request) -> str:
        """Draw a new trial for a request; answer the reason where it has to be refused."""
        if request.attempts >= self.settings.max_attempts:
            return "crowded"
        if request.seconds > self.settings.time_limit_s:
            return "time"
        request.attempts += 1
        counts = tuple(request.counts.get(symbol, 0) for symbol in self.elements)
        rng = request.rng
        jitter = self.settings.volume_jitter
        volume = self.knowledge.volume(request.counts) * rng.uniform(1 - jitter, 1 + jitter)
        if self.filling(counts, volume) > DENSEST:
            return "too_dense"
        symmetric = rng.random() < self.settings.symmetric_fraction
        number = self._group(counts, rng) if symmetric else 1
        if number is None:
            return "no_group"
        chosen = filler(number).draw(counts, rng)
        if chosen is None:
            return "no_group"
        request.trial = new_trial(space_group(number), chosen, volume, rng)
        return ""

    def filling(self, counts: tuple[int, ...], volume: float) -> float:
        """Give the share of space that spheres of half the like-like least distances fill.

        Parameters
        ----------
        counts
            Atoms of each element.
        volume
            Å^3.

        Returns
        -------
        float
            Above about 0.86 no arrangement can exist.
        """
        radii = 0.5 * np.diag(self.distances)
        return float(4.0 / 3.0 * np.pi * (np.array(counts) * radii**3).sum() / volume)

    def _group(self, counts: tuple[int, ...], rng: np.random.Generator) -> int | None:
        """Draw evenly from the allowed groups that can hold the atoms."""
        remaining = list(self.groups)
        while remaining:
            number = remaining.pop(int(rng.integers(len(remaining))))
            if filler(number).possible(counts):
                return number
        return None

    def _atoms(self, request: Request, trial: Trial) -> Atoms:
        """Turn a finished trial into a crystal that carries what was asked."""
        atoms = Atoms(
            numbers=self.numbers[trial.kinds[trial.owner]],
            cell=trial.cell,
            scaled_positions=trial.fractions(),
            pbc=True,
        )
        atoms.info.update(origin="random", space_group=trial.group, attempts=request.attempts)
        return atoms


def allowed_groups(settings: GenerateConfig) -> tuple[int, ...]:
    """List the space groups that the settings allow.

    Parameters
    ----------
    settings
        How crystals are made.

    Returns
    -------
    tuple[int, ...]
        Numbers in rising order; may be empty.
    """
    low, high = settings.symmetry_operations
    numbers = range(1, N_GROUPS + 1) if settings.space_groups is None else sorted(set(settings.space_groups))
    if (low, high) == (1, 48):
        return tuple(numbers)
    return tuple(number for number in numbers if low <= space_group(number).order <= high)
