"""Random crystals with and without symmetry."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from csp.config import GenerateConfig
from csp.generate.occupation import filler
from csp.generate.pool import Proposal
from csp.generate.trial import new_trial
from csp.generate.wyckoff import N_GROUPS, space_group
from csp.knowledge import Knowledge

Floats = NDArray[np.float64]

DENSEST = 0.86  # share of space that hard spheres could ever fill, mixed sizes included


class RandomCrystals:
    """Draws random crystals of one chemical system.

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
        self.groups = allowed_groups(settings)
        self.share = symmetric_share(settings)
        self._volumes: dict[tuple[int, ...], tuple[float, float]] = {}
        self._possible: dict[tuple[int, ...], bool] = {}

    def propose(self, counts: Mapping[str, int], rng: np.random.Generator) -> Proposal | str:
        """Draw a crystal of given contents.

        Parameters
        ----------
        counts
            Atoms by element, in the primitive cell.
        rng
            Source of chance.

        Returns
        -------
        Proposal | str
            The crystal, or ``too_dense`` where the least distances cannot be met at the volume, or ``no_group`` where
            no allowed space group can hold the atoms.
        """
        atoms = tuple(counts.get(symbol, 0) for symbol in self.knowledge.elements)
        if atoms not in self._volumes:
            self._volumes[atoms] = self.knowledge.volume(counts), self.filled(counts)
        jitter = self.settings.volume_jitter
        known, filled = self._volumes[atoms]
        volume = known * rng.uniform(1 - jitter, 1 + jitter)
        if filled > DENSEST * volume:
            return "too_dense"
        number = self._group(atoms, rng) if rng.random() < self.share else 1
        chosen = filler(number).draw(atoms, rng) if number else None
        if not number or chosen is None:
            return "no_group"
        trial = new_trial(space_group(number), chosen, volume, rng)
        return Proposal(trial, {"origin": "random", "space_group": number, "lineage": ""})

    def possible(self, counts: Mapping[str, int]) -> bool:
        """Tell whether some allowed space group can hold a cell.

        Parameters
        ----------
        counts
            Atoms by element.

        Returns
        -------
        bool
            Always true where structures without symmetry are allowed.
        """
        if 1 in self.groups:
            return True
        atoms = tuple(counts.get(symbol, 0) for symbol in self.knowledge.elements)
        if atoms not in self._possible:
            self._possible[atoms] = any(filler(number).possible(atoms) for number in self.groups)
        return self._possible[atoms]

    def filled(self, counts: Mapping[str, int]) -> float:
        """Give the volume of spheres of half the like-like least distances.

        Parameters
        ----------
        counts
            Atoms by element.

        Returns
        -------
        float
            Å^3; in a cell that is filled to more than about 0.86 no arrangement can exist.
        """
        return np.pi / 6.0 * sum(n * self.knowledge.min_distance(s, s) ** 3 for s, n in counts.items())

    def _group(self, counts: tuple[int, ...], rng: np.random.Generator) -> int | None:
        """Draw evenly from the allowed groups that can hold the atoms."""
        remaining = list(self.groups)
        while remaining:
            number = remaining.pop(int(rng.integers(len(remaining))))
            if filler(number).possible(counts):
                return number
        return None


def symmetric_share(settings: GenerateConfig) -> float:
    """Give the share of random crystals that have one of the allowed space groups.

    Parameters
    ----------
    settings
        How crystals are made.

    Returns
    -------
    float
        ``symmetric_fraction``; 1 where the user chose space groups or excluded those without symmetry.
    """
    chosen = settings.space_groups is not None or settings.symmetry_operations[0] > 1
    return 1.0 if chosen else settings.symmetric_fraction


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
