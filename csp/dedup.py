"""Which crystals are the same: cheap buckets first, careful matching only where they leave a doubt."""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import numpy as np
import spglib
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core.structure import Structure

from csp.config import SelectConfig
from csp.errors import DataError
from csp.fingerprint import distances
from csp.hull import formula_of

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Space groups that are mirror images of each other: the same crystal by enthalpy and by fingerprint.
ENANTIOMORPHS = {
    78: 76, 95: 91, 96: 92, 145: 144, 153: 151, 154: 152, 170: 169, 172: 171, 179: 178, 181: 180, 213: 212,
}  # fmt: skip
MAX_MATCHES = 6  # nearest crystals that one is matched with carefully; the fingerprint has ranked them


@dataclass(frozen=True)
class Group:
    """Structures that are one crystal.

    Parameters
    ----------
    representative
        Index of the member of lowest enthalpy.
    members
        Indices of all members, ascending, the representative among them.
    """

    representative: int
    members: tuple[int, ...]


class _Crystal:
    """One structure with what is known of it, worked out when it is asked for."""

    def __init__(self, atoms: Atoms, settings: SelectConfig) -> None:
        self.atoms = atoms
        self.settings = settings

    @cached_property
    def volume(self) -> float:
        """Volume per atom, Å^3."""
        return float(self.atoms.cell.volume) / len(self.atoms)

    @cached_property
    def groups(self) -> frozenset[int]:
        """Space groups within the tolerances; mirror images under one number."""
        found = (space_group(self.atoms, tolerance) for tolerance in self.settings.symmetry_tolerances)
        return frozenset(ENANTIOMORPHS.get(number, number) for number in found)

    @cached_property
    def primitive(self) -> Structure:
        """Reduced primitive cell for the matcher."""
        species = [chemical_symbols[z] for z in self.atoms.numbers]
        whole = Structure(self.atoms.cell.array, species, self.atoms.positions, coords_are_cartesian=True)
        return whole.get_primitive_structure().get_reduced_structure()


def space_group(atoms: Atoms, tolerance: float) -> int:
    """Find the space group.

    Parameters
    ----------
    atoms
        A periodic crystal.
    tolerance
        Distance by which symmetric atoms may miss each other, Å.

    Returns
    -------
    int
        International number, 1 to 230; 1 where no symmetry can be made out.
    """
    cell = (atoms.cell.array, atoms.positions @ np.linalg.inv(atoms.cell.array), atoms.numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # spglib is changing how it reports errors
        try:
            dataset = spglib.get_symmetry_dataset(cell, symprec=tolerance)
        except spglib.SpglibError:
            dataset = None
    return 1 if dataset is None else int(dataset.number)


def distinct(
    frames: Sequence[Atoms],
    enthalpies_per_atom: Sequence[float] | Floats,
    fingerprints: Floats,
    settings: SelectConfig,
) -> list[Group]:
    """Sort structures into crystals.

    From the lowest enthalpy upwards every structure either joins a crystal that is there or becomes a new one. It is
    compared only with crystals of its formula, within the tolerances of enthalpy and volume. Fingerprints that agree
    closely settle the matter, fingerprints that differ clearly too; between them the space groups must be compatible
    and pymatgen's matcher must agree.

    Parameters
    ----------
    frames
        Periodic crystals.
    enthalpies_per_atom
        Shape (n,), eV/atom.
    fingerprints
        Shape (n, d), see :mod:`csp.fingerprint`.
    settings
        Tolerances.

    Returns
    -------
    list[Group]
        Sorted by formula, then enthalpy. Every structure is in exactly one group. Which structures are together does
        not depend on the order of the input.

    Raises
    ------
    DataError
        If lengths differ or an enthalpy is not finite.
    """
    enthalpies = np.asarray(enthalpies_per_atom, dtype=np.float64)
    _check(frames, enthalpies, fingerprints)
    crystals = [_Crystal(atoms, settings) for atoms in frames]
    buckets: dict[str, list[int]] = defaultdict(list)
    for i, atoms in enumerate(frames):
        buckets[formula_of(atoms)].append(i)
    groups: list[Group] = []
    for formula in sorted(buckets):
        groups += _distinct_in_bucket(_canonical(buckets[formula], enthalpies, crystals, fingerprints), enthalpies,
                                      crystals, fingerprints, settings)  # fmt: skip
    return groups


def match_known(
    frames: Sequence[Atoms],
    fingerprints: Floats,
    known_frames: Sequence[Atoms],
    known_fingerprints: Floats,
    known_ids: Sequence[str],
    settings: SelectConfig,
) -> list[str]:
    """Give every distinct crystal its phase: the one that it was known as, or a new name.

    Enthalpies are left out, since the model that gave them changes. No two crystals get the same known phase: the
    nearest one does.

    Parameters
    ----------
    frames
        Distinct crystals.
    fingerprints
        Their fingerprints, shape (n, d).
    known_frames
        One structure of each known phase.
    known_fingerprints
        Their fingerprints, shape (m, d).
    known_ids
        Names of the known phases, (m,).
    settings
        Tolerances; ``match_volume`` is the one for volumes.

    Returns
    -------
    list[str]
        A phase for each crystal, no name twice. New names are a formula and a hash of the fingerprint, as
        "Mg2Si-3f9a1c"; neither chance nor the order of the input has a part in them.

    Raises
    ------
    DataError
        If lengths differ or a known name comes twice.
    """
    if not len(known_frames) == len(known_fingerprints) == len(known_ids) or len(frames) != len(fingerprints):
        raise DataError(
            f"phases: expected one fingerprint and name each, got {len(frames)} crystals with {len(fingerprints)}, "
            f"{len(known_frames)} known ones with {len(known_fingerprints)} and {len(known_ids)}"
        )
    if len(set(known_ids)) < len(known_ids):
        twice = sorted({name for name in known_ids if list(known_ids).count(name) > 1})
        raise DataError(f"phases: expected every known name once, got {', '.join(twice)} more often")
    pairs = _matches(frames, fingerprints, known_frames, known_fingerprints, settings)
    names: dict[int, str] = {}
    given: set[str] = set()
    for _, name, i in sorted((gap, known_ids[k], i) for gap, i, k in pairs):
        if i not in names and name not in given:
            names[i] = name
            given.add(name)
    used = set(known_ids)
    new = sorted((formula_of(frames[i]), fingerprints[i].tobytes(), i) for i in range(len(frames)) if i not in names)
    for formula, _, i in new:
        names[i] = new_phase_id(formula, fingerprints[i], used)
        used.add(names[i])
    return [names[i] for i in range(len(frames))]


def new_phase_id(formula: str, fingerprint: Floats, used: Collection[str]) -> str:
    """Name a new phase.

    Parameters
    ----------
    formula
        Reduced formula.
    fingerprint
        Fingerprint, shape (d,); rounded, so that the last bits do not matter.
    used
        Names that are taken.

    Returns
    -------
    str
        Formula and six hexadecimal digits, such as "Mg2Si-3f9a1c".
    """
    rounded = np.round(fingerprint, 3) + 0.0  # no negative zeros
    for attempt in count():
        digest = hashlib.sha256(f"{formula}/{attempt}/".encode() + rounded.astype("<f8").tobytes()).hexdigest()
        name = f"{formula}-{digest[:6]}"
        if name not in used:
            return name
    raise DataError("phases: no free name")  # pragma: no cover - count() never ends


def labelled_already(
    frames: Sequence[Atoms],
    fingerprints: Floats,
    labelled_frames: Sequence[Atoms],
    labelled_fingerprints: Floats,
    settings: SelectConfig,
) -> Bools:
    """Say which structures are so near to a labelled one that another label would teach nothing.

    Parameters
    ----------
    frames
        Structures.
    fingerprints
        Their fingerprints, shape (n, d).
    labelled_frames
        Structures with labels.
    labelled_fingerprints
        Their fingerprints, shape (m, d).
    settings
        ``same_distance`` and ``label_volume`` are the tolerances.

    Returns
    -------
    Bools
        Shape (n,).
    """
    answer = np.zeros(len(frames), dtype=bool)
    labelled: dict[str, list[int]] = defaultdict(list)
    for k, atoms in enumerate(labelled_frames):
        labelled[formula_of(atoms)].append(k)
    volumes = np.array([atoms.cell.volume / len(atoms) for atoms in labelled_frames])
    for i, atoms in enumerate(frames):
        others = labelled.get(formula_of(atoms), [])
        if others:
            gaps = distances(fingerprints[i : i + 1], labelled_fingerprints[others])[0]
            change = np.abs(volumes[others] * len(atoms) / atoms.cell.volume - 1)
            answer[i] = bool(((gaps <= settings.same_distance) & (change <= settings.label_volume)).any())
    return answer


def _check(frames: Sequence[Atoms], enthalpies: Floats, fingerprints: Floats) -> None:
    if enthalpies.shape != (len(frames),) or len(fingerprints) != len(frames):
        raise DataError(
            f"distinct: expected {len(frames)} enthalpies and fingerprints, one per structure, "
            f"got {enthalpies.shape} and {len(fingerprints)}"
        )
    wrong = np.flatnonzero(~np.isfinite(enthalpies))
    if len(wrong):
        raise DataError(f"distinct: structure {int(wrong[0])} has no finite enthalpy")


def _canonical(indices: list[int], enthalpies: Floats, crystals: Sequence[_Crystal], fingerprints: Floats) -> list[int]:
    """Sort by enthalpy; ties by volume, size and fingerprint, never by place in the input."""
    return sorted(
        indices,
        key=lambda i: (float(enthalpies[i]), crystals[i].volume, len(crystals[i].atoms), fingerprints[i].tobytes()),
    )


def _distinct_in_bucket(
    order: list[int], enthalpies: Floats, crystals: Sequence[_Crystal], fingerprints: Floats, settings: SelectConfig
) -> list[Group]:
    """Sort the structures of one formula, given from the lowest enthalpy upwards."""
    leaders: list[int] = []
    members: dict[int, list[int]] = {}
    oldest = 0  # first leader that is still within the tolerance of enthalpy
    for i in order:
        while oldest < len(leaders) and enthalpies[i] - enthalpies[leaders[oldest]] > settings.enthalpy_tolerance_ev:
            oldest += 1
        leader = _find(i, leaders[oldest:], crystals, fingerprints, settings)
        if leader is None:
            leaders.append(i)
            members[i] = [i]
        else:
            members[leader].append(i)
    return [Group(leader, tuple(sorted(members[leader]))) for leader in leaders]


def _find(
    i: int, leaders: list[int], crystals: Sequence[_Crystal], fingerprints: Floats, settings: SelectConfig
) -> int | None:
    """Find the crystal that structure ``i`` is, among some."""
    if not leaders:
        return None
    gaps = distances(fingerprints[i : i + 1], fingerprints[leaders])[0]
    near = [int(k) for k in np.argsort(gaps, kind="stable") if gaps[k] <= settings.max_distance]
    for k in near[:MAX_MATCHES]:
        leader = crystals[leaders[k]]
        if _same(crystals[i], leader, float(gaps[k]), settings.volume_tolerance, settings):
            return leaders[k]
    return None


def _same(a: _Crystal, b: _Crystal, gap: float, volume_tolerance: float, settings: SelectConfig) -> bool:
    """Say whether two structures of one formula are one crystal."""
    if abs(a.volume - b.volume) > volume_tolerance * min(a.volume, b.volume) or gap > settings.max_distance:
        return False
    if gap <= settings.same_distance:
        return True
    if not a.groups & b.groups:
        return False
    matcher = StructureMatcher(
        ltol=settings.length_tolerance,
        stol=settings.site_tolerance,
        angle_tol=settings.angle_tolerance,
        primitive_cell=False,
    )
    return bool(matcher.fit(a.primitive, b.primitive, skip_structure_reduction=True))


def _matches(
    frames: Sequence[Atoms],
    fingerprints: Floats,
    known_frames: Sequence[Atoms],
    known_fingerprints: Floats,
    settings: SelectConfig,
) -> list[tuple[float, int, int]]:
    """All pairs of a crystal and a known phase that are the same: distance, crystal, phase."""
    known: dict[str, list[int]] = defaultdict(list)
    for k, atoms in enumerate(known_frames):
        known[formula_of(atoms)].append(k)
    phases = [_Crystal(atoms, settings) for atoms in known_frames]
    pairs = []
    for i, atoms in enumerate(frames):
        others = known.get(formula_of(atoms), [])
        if not others:
            continue
        crystal = _Crystal(atoms, settings)
        gaps = distances(fingerprints[i : i + 1], known_fingerprints[others])[0]
        nearest = [int(k) for k in np.argsort(gaps, kind="stable")[:MAX_MATCHES]]
        pairs += [
            (float(gaps[k]), i, others[k])
            for k in nearest
            if _same(crystal, phases[others[k]], float(gaps[k]), settings.match_volume, settings)
        ]
    return pairs
