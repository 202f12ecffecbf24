"""What is unphysical or suspicious about a relaxed structure; every flag has a name."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from csp.config import SelectConfig
from csp.errors import DataError
from csp.hull import atomic_fractions, formula_of

Floats = NDArray[np.float64]

SIMILAR_VOLUME = 0.25  # labels of similar volume: the logarithms of the volumes differ by less
SMALLEST = 0.1  # an element's fitted volume is at least this fraction of the smallest labelled one


class Flag(StrEnum):
    """Why a structure is unphysical or suspicious."""

    TOO_CLOSE = "too_close"  # two atoms came nearer than anything known
    VOLUME = "volume"  # the cell ran away or collapsed
    ENERGY = "energy"  # the energy jumped
    STRESS = "stress"  # a pressure beyond reason
    NOT_FINITE = "not_finite"  # the model broke down
    NO_CRYSTAL = "no_crystal"  # no atoms, or not periodic
    UNKNOWN_ELEMENT = "unknown_element"  # the model has not learned it
    UNCONVERGED = "unconverged"  # the relaxation came to no end
    COMMITTEE = "committee"  # the committee disagrees far more than usual
    ENERGY_TOO_LOW = "energy_too_low"  # below anything physical for its volume


# How relaxations end without danger, by the names of their reasons.
HARMLESS_ENDS = ("max_steps", "stalled", "unconverged")


@dataclass(frozen=True)
class EnergyFloor:
    """The lowest energies that labels make believable, over volume; composition is taken out linearly.

    Parameters
    ----------
    elements
        Chemical symbols of the system.
    energies
        Reference energy of each element, eV/atom.
    volumes
        Reference volume of each element, Å^3/atom.
    log_volumes
        Logarithm of each label's volume over its reference, shape (n_labels,).
    residuals
        Energy of each label above its reference, shape (n_labels,), eV/atom.
    """

    elements: tuple[str, ...]
    energies: Floats
    volumes: Floats
    log_volumes: Floats
    residuals: Floats

    @classmethod
    def from_labels(cls, frames: Sequence[Atoms], energies_per_atom: Sequence[float] | Floats) -> Self:
        """Learn the floor from labelled structures.

        Parameters
        ----------
        frames
            Labelled structures.
        energies_per_atom
            First-principles energies, shape (n,), eV/atom.

        Returns
        -------
        Self
            The floor.

        Raises
        ------
        DataError
            If there are no labels, lengths differ, or an energy is not finite.
        """
        energies = np.asarray(energies_per_atom, dtype=np.float64)
        if not frames or energies.shape != (len(frames),) or not np.isfinite(energies).all():
            raise DataError(f"energy floor: expected a finite energy for each of {len(frames)} labels, at least one")
        formulas = [formula_of(atoms) for atoms in frames]
        elements = tuple(sorted({symbol for atoms in frames for symbol in atoms.symbols}))
        fractions = atomic_fractions(formulas, elements)
        volumes = np.array([atoms.cell.volume / len(atoms) for atoms in frames])
        references: Floats = np.asarray(np.linalg.lstsq(fractions, energies, rcond=None)[0], dtype=np.float64)
        sizes: Floats = np.asarray(np.linalg.lstsq(fractions, volumes, rcond=None)[0], dtype=np.float64)
        sizes = np.maximum(sizes, SMALLEST * volumes.min())
        return cls(
            elements=elements,
            energies=references,
            volumes=sizes,
            log_volumes=np.log(volumes / (fractions @ sizes)),
            residuals=energies - fractions @ references,
        )

    def below(self, frames: Sequence[Atoms], energies_per_atom: Sequence[float] | Floats) -> Floats:
        """Say how far energies are below the lowest label of similar volume.

        Parameters
        ----------
        frames
            Relaxed structures.
        energies_per_atom
            Energies by the model, shape (n,), eV/atom.

        Returns
        -------
        Floats
            Shape (n,), eV/atom, positive below the floor. Where no label has a similar volume, the lowest of all
            labels is the floor.

        Raises
        ------
        DataError
            If a structure has an element without a label.
        """
        fractions = atomic_fractions([formula_of(atoms) for atoms in frames], self.elements)
        volumes = np.array([atoms.cell.volume / len(atoms) for atoms in frames])
        places = np.log(volumes / (fractions @ self.volumes))
        order = np.argsort(self.log_volumes, kind="stable")
        sorted_volumes, residuals = self.log_volumes[order], np.append(self.residuals[order], np.inf)
        low = np.searchsorted(sorted_volumes, places - SIMILAR_VOLUME)
        high = np.searchsorted(sorted_volumes, places + SIMILAR_VOLUME)
        ranges = np.stack([low, high], axis=1).reshape(-1)
        floor = np.where(low < high, np.minimum.reduceat(residuals, ranges)[::2], residuals.min())
        depth: Floats = floor - (np.asarray(energies_per_atom, dtype=np.float64) - fractions @ self.energies)
        return depth


def relaxation_flag(status: str, reason: str) -> Flag | None:
    """Translate the end of a relaxation.

    Parameters
    ----------
    status
        converged, unconverged or unsafe.
    reason
        Why it did not converge.

    Returns
    -------
    Flag | None
        None for a converged structure.

    Raises
    ------
    DataError
        If status or reason have no meaning here.
    """
    if status == "converged":
        return None
    if status == "unconverged" and reason in HARMLESS_ENDS:
        return Flag.UNCONVERGED
    if status in ("unsafe", "unconverged") and reason in set(Flag):
        return Flag(reason)
    known = ", ".join((*Flag, *HARMLESS_ENDS))
    raise DataError(f"relaxation: expected converged, or unsafe or unconverged with one of {known}; got {status}, "
                    f"{reason!r}")  # fmt: skip


def find_flags(
    frames: Sequence[Atoms],
    energies_per_atom: Sequence[float] | Floats,
    spreads: Sequence[float] | Floats,
    ends: Sequence[tuple[str, str]],
    floor: EnergyFloor | None,
    settings: SelectConfig,
) -> list[tuple[Flag, ...]]:
    """Flag all relaxed structures of a generation.

    Parameters
    ----------
    frames
        Structures as the relaxation left them.
    energies_per_atom
        Energies by the model, shape (n,), eV/atom; not finite is a flag.
    spreads
        Standard deviation of the committee, shape (n,), eV/atom; zeros for a committee of one.
    ends
        Status and reason of each relaxation.
    floor
        What labels say about low energies; None where there are none.
    settings
        ``committee_factor`` and ``too_low_ev``.

    Returns
    -------
    list[tuple[Flag, ...]]
        Flags of each structure, without repetition; empty for a sound one.

    Raises
    ------
    DataError
        If lengths differ, or a status or reason is unknown.
    """
    energies = np.asarray(energies_per_atom, dtype=np.float64)
    spread = np.asarray(spreads, dtype=np.float64)
    if not len(frames) == len(energies) == len(spread) == len(ends):
        raise DataError(
            f"flags: expected one of each, got {len(frames)} structures, {len(energies)} energies, "
            f"{len(spread)} spreads, {len(ends)} ends"
        )
    first = [relaxation_flag(status, reason) for status, reason in ends]
    finite = np.isfinite(energies) & np.isfinite(spread)
    sound = finite & np.array([flag is None for flag in first], dtype=bool)
    usual = float(np.median(spread[sound])) if sound.any() else np.inf
    disagreed = finite & (spread > settings.committee_factor * usual)
    low = np.zeros(len(frames), dtype=bool)
    if floor is not None and finite.any():
        checked = np.flatnonzero(finite)
        low[checked] = floor.below([frames[int(i)] for i in checked], energies[checked]) > settings.too_low_ev
    extra = ((Flag.NOT_FINITE, ~finite), (Flag.COMMITTEE, disagreed), (Flag.ENERGY_TOO_LOW, low))
    return [
        tuple(dict.fromkeys([flag for flag in (first[i],) if flag] + [flag for flag, where in extra if where[i]]))
        for i in range(len(frames))
    ]


def count_flags(flags: Sequence[tuple[Flag, ...]]) -> dict[str, int]:
    """Count flags by name; a structure with two flags counts under both.

    Parameters
    ----------
    flags
        Flags of each structure.

    Returns
    -------
    dict[str, int]
        By name, in the order of :class:`Flag`; absent flags are left out.
    """
    counts = Counter(flag for found in flags for flag in found)
    return {flag.value: counts[flag] for flag in Flag if counts[flag]}
