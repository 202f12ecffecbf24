"""From relaxed structures to ranked phases: what is sound, what is the same crystal, how far above the hull."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase.units import GPa
from numpy.typing import NDArray

from csp.dedup import Group, distinct, match_known
from csp.errors import DataError
from csp.fingerprint import fingerprints
from csp.flags import EnergyFloor, Flag, find_flags
from csp.hull import Hull, formula_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ase import Atoms

    from csp.config import SelectConfig

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Relaxations:
    """The relaxed structures of a generation, as columns of one length.

    Parameters
    ----------
    frames
        Structures as the relaxation left them.
    energies
        Energies by the model, shape (n,), eV; not finite for what broke down.
    enthalpies
        Energy plus pressure times volume, shape (n,), eV.
    spreads
        Standard deviation of the committee, shape (n,), eV/atom.
    ends
        Status and reason of each relaxation.
    phase_ids
        Phase of a known candidate that was relaxed again; empty for a trial crystal.
    independent
        Whether the trial owes nothing to a known candidate, so that it counts as a rediscovery, shape (n,).
    """

    frames: Sequence[Atoms]
    energies: Floats
    enthalpies: Floats
    spreads: Floats
    ends: Sequence[tuple[str, str]]
    phase_ids: Sequence[str]
    independent: NDArray[np.bool_]


@dataclass(frozen=True)
class History:
    """What is remembered of a phase.

    Parameters
    ----------
    times_found
        Independent trials that relaxed into it.
    generation_found
        First generation that had it.
    """

    times_found: int
    generation_found: int


@dataclass(frozen=True)
class RankedPhase:
    """One distinct crystal.

    Parameters
    ----------
    phase_id
        Its name, the same in all generations.
    atoms
        Its lowest structure.
    fingerprint
        Of ``atoms``.
    enthalpy_per_atom
        By the model, eV/atom.
    e_above_hull
        Distance to the model's hull, eV/atom.
    spread
        Standard deviation of the committee, eV/atom.
    history
        Finds.
    """

    phase_id: str
    atoms: Atoms
    fingerprint: Floats
    enthalpy_per_atom: float
    e_above_hull: float
    spread: float
    history: History


@dataclass(frozen=True)
class Ranking:
    """Everything that is known after a generation.

    Parameters
    ----------
    flags
        Flags of each relaxation; empty for a sound one.
    phases
        Distinct sound crystals, nearest to the hull first.
    aliases
        Former names of phases that turned out to be another one, and its name.
    """

    flags: list[tuple[Flag, ...]]
    phases: list[RankedPhase]
    aliases: dict[str, str]


def rank(
    relaxations: Relaxations,
    known: Mapping[str, History],
    labelled: Sequence[Atoms],
    *,
    elements: Sequence[str],
    pressure_gpa: float,
    generation: int,
    settings: SelectConfig,
) -> Ranking:
    """Flag, deduplicate and rank the structures of a generation.

    Parameters
    ----------
    relaxations
        Trial crystals and known candidates, all relaxed by the same model.
    known
        What is remembered of the known phases.
    labelled
        Labelled structures with their calculators: what is believable, and the ends of the hull where no sound
        candidate of an element is left.
    elements
        Chemical symbols of the system.
    pressure_gpa
        Pressure of the search, GPa.
    generation
        Its number.
    settings
        Tolerances.

    Returns
    -------
    Ranking
        Flags, phases and finds.
    """
    counts = np.array([len(atoms) for atoms in relaxations.frames], dtype=np.int64)
    per_atom = relaxations.energies / counts
    energies = np.array([atoms.get_potential_energy() / len(atoms) for atoms in labelled])
    floor = EnergyFloor.from_labels(labelled, energies) if labelled else None
    flags = find_flags(relaxations.frames, per_atom, relaxations.spreads, relaxations.ends, floor, settings)
    sound = [i for i, found in enumerate(flags) if not found]
    frames = [relaxations.frames[i] for i in sound]
    enthalpies = relaxations.enthalpies[sound] / counts[sound]
    prints = fingerprints(frames, elements)
    groups = distinct(frames, enthalpies, prints, settings)
    leaders = [group.representative for group in groups]
    again = [k for k, i in enumerate(sound) if relaxations.phase_ids[i]]
    names = match_known(
        [frames[k] for k in leaders],
        prints[leaders],
        [frames[k] for k in again],
        prints[again],
        [relaxations.phase_ids[sound[k]] for k in again],
        settings,
    )
    formulas = [formula_of(frames[k]) for k in leaders]
    hull = _hull(formulas, enthalpies[leaders], elements, labelled, pressure_gpa)
    heights = hull.e_above_many(formulas, enthalpies[leaders])
    aliases: dict[str, str] = {}
    phases = []
    for group, name, height in zip(groups, names, heights, strict=True):
        k = group.representative
        history, former = _history(group, name, sound, relaxations, known, generation)
        aliases |= dict.fromkeys(former, name)
        spread = float(relaxations.spreads[sound[k]])
        phases.append(RankedPhase(name, frames[k], prints[k], float(enthalpies[k]), float(height), spread, history))
    phases.sort(key=lambda phase: (phase.e_above_hull, phase.phase_id))
    return Ranking(flags=flags, phases=phases, aliases=aliases)


def _history(
    group: Group,
    name: str,
    sound: Sequence[int],
    relaxations: Relaxations,
    known: Mapping[str, History],
    generation: int,
) -> tuple[History, list[str]]:
    """Add this generation's finds to those of the known phases that fell together here."""
    members = [sound[k] for k in group.members]
    former = {relaxations.phase_ids[i] for i in members} | {name}
    past = [known[phase] for phase in sorted(former) if phase in known]
    new = sum(bool(relaxations.independent[i]) for i in members if not relaxations.phase_ids[i])
    found = History(
        times_found=new + sum(history.times_found for history in past),
        generation_found=min((history.generation_found for history in past), default=generation),
    )
    return found, sorted(former - {name, ""})


def _hull(
    formulas: list[str], enthalpies: Floats, elements: Sequence[str], labelled: Sequence[Atoms], pressure_gpa: float
) -> Hull:
    """Build the model's hull; an element without a sound candidate is taken from its labels."""
    extra: dict[str, float] = {}
    for symbol in set(elements) - set(formulas):
        of_element = [atoms for atoms in labelled if formula_of(atoms) == symbol]
        if not of_element:
            raise DataError(f"hull: no sound candidate and no label of the element {symbol}; make more crystals of it")
        extra[symbol] = min(
            (atoms.get_potential_energy() + pressure_gpa * GPa * atoms.get_volume()) / len(atoms)
            for atoms in of_element
        )
    return Hull.from_entries([*formulas, *extra], [*enthalpies, *extra.values()])
