"""One label: what a single-point calculation says of a structure."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

from acnn.batch import FARTHEST, SMALLEST_VOLUME
from acnn.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ase import Atoms

ZEROS = {
    "forces": "forces (all are zero, which no symmetry asks for: taken as not calculated)",
    "stress": "stress (it is zero, though atoms are near each other: taken as not calculated)",
}
MOST_ENERGY = 1e7  # eV/atom; with all its electrons the heaviest element has a seventh of it


@dataclass(slots=True)
class Label:
    """One structure and what is known of it.

    Parameters
    ----------
    atoms
        The structure, without its calculator's state being touched.
    energy
        Total energy, eV.
    forces
        Shape (n_atoms, 3), eV/Å, or None.
    stress
        Shape (3, 3), eV/Å^3, tension positive, or None.
    family
        Structures of one family are held out together, or none of them; large families in blocks, see `family_blocks`.
    frame
        Its place among the structures that were read, from zero.
    """

    atoms: Atoms
    energy: float
    forces: np.ndarray | None
    stress: np.ndarray | None
    family: str
    frame: int = 0

    @property
    def digest(self) -> int:
        """A number that tells this label from others, 63 bits."""
        h = hashlib.blake2b(digest_size=8)
        for array in (self.atoms.numbers, self.atoms.positions, self.atoms.cell.array, np.array([self.energy])):
            h.update(np.ascontiguousarray(array).tobytes())
        return int.from_bytes(h.digest(), "little") >> 1


def label_of(atoms: Atoms, number: int) -> Label:
    """Read one frame.

    Parameters
    ----------
    atoms
        The structure, with a calculator that holds what is known of it.
    number
        Its place among the frames, from zero, for messages.

    Returns
    -------
    Label
        What it says, not yet checked for sense.

    Raises
    ------
    DataError
        If it has no energy, no elements, or forces or a stress of another shape.
    """
    results = getattr(atoms.calc, "results", {}) if atoms.calc is not None else {}
    known = results.get("energy", results.get("free_energy"))
    if known is None:
        other = _other_names("energy", "energy", atoms.info, [()])
        hint = f"; {other}" if other else ""
        raise DataError(f"frame {number}: expected an energy, got {', '.join(sorted(results)) or 'nothing'}{hint}")
    energy = _energy(known, number)
    last = len(chemical_symbols) - 1
    wrong = atoms.numbers[(atoms.numbers < 1) | (atoms.numbers > last)]
    if len(wrong):
        raise DataError(f"frame {number}: expected atomic numbers from 1 to {last}, got {wrong[0]}")
    forces, stress = results.get("forces"), results.get("stress")
    if forces is not None:
        forces = np.asarray(forces, dtype=float)
        if forces.shape != (len(atoms), 3):
            raise DataError(f"frame {number}: expected forces of shape {(len(atoms), 3)}, got {forces.shape}")
    if not atoms.pbc.all():
        stress = None
    if stress is not None:
        stress = _full_stress(np.asarray(stress, dtype=float), number)
    return Label(atoms, energy, forces, stress, family_of(atoms), number)


def _energy(known: object, number: int) -> float:
    """Take an energy for what it is, also from an array of one."""
    value = known.item() if isinstance(known, np.ndarray | np.generic) and known.size == 1 else known
    if isinstance(value, bool) or not isinstance(value, Real):
        raise DataError(f"frame {number}: expected an energy as one number, got {known!r}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _full_stress(stress: np.ndarray, number: int) -> np.ndarray:
    """Bring a stress into its 3x3 form."""
    if stress.shape == (6,):
        xx, yy, zz, yz, xz, xy = stress
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if stress.shape == (3, 3):
        return np.asarray(0.5 * (stress + stress.T))
    raise DataError(f"frame {number}: expected a stress of shape (6,) or (3, 3), got {stress.shape}")


def family_of(atoms: Atoms) -> str:
    """Name the family of a structure: ``info["family"]`` where it is given, else its reduced formula and size.

    Parameters
    ----------
    atoms
        The structure.

    Returns
    -------
    str
        The name.
    """
    if "family" in atoms.info:
        return str(atoms.info["family"])
    return str(atoms.get_chemical_formula())


def fault(label: Label) -> str:
    """Say why a label is unusable, or nothing.

    Parameters
    ----------
    label
        The label.

    Returns
    -------
    str
        The reason; empty for a sound one.
    """
    atoms = label.atoms
    if len(atoms) == 0:
        return "no atoms"
    arrays = [atoms.positions, atoms.cell.array, np.array(label.energy)]
    arrays += [a for a in (label.forces, label.stress) if a is not None]
    if not all(np.isfinite(a).all() for a in arrays):
        return "not finite"
    periodic = atoms.pbc.any()
    faults = {
        f"energy beyond {MOST_ENERGY:g} eV/atom": abs(label.energy) > MOST_ENERGY * len(atoms),
        f"positions beyond {FARTHEST:g} Å": not np.abs(atoms.positions).max() < FARTHEST,
        "periodic in some directions only": periodic and not atoms.pbc.all(),
        f"flat or empty cell, or less than {SMALLEST_VOLUME:g} Å^3 per atom": periodic
        and abs(atoms.cell.volume) < SMALLEST_VOLUME * len(atoms),
    }
    return next((reason for reason, wrong in faults.items() if wrong), "")


def lacks(label: Label, zeros: Collection[str]) -> Iterator[str]:
    """Name what a label does not say, or says in vain.

    Parameters
    ----------
    label
        The label.
    zeros
        Which of "forces" and "stress" were zeros that stand for nothing.

    Yields
    ------
    str
        What is lacking; in brackets what is there and not used.
    """
    atoms = label.atoms
    if label.forces is None:
        other = _other_names("forces", "force", atoms.arrays, [atoms.positions.shape])
        yield ZEROS["forces"] if "forces" in zeros else f"forces ({other})" if other else "forces"
    if label.stress is None:
        if "stress" in zeros:
            yield ZEROS["stress"]
        elif atoms.calc.results.get("stress") is not None:
            yield "stress (there is one, which is not used: not periodic in all directions)"
        elif atoms.cell.rank == 3 and not atoms.pbc.any():
            yield "stress (there is a cell, which is not used: not periodic)"
        elif any("virial" in name.lower() for name in atoms.info):
            yield "stress (there is a virial, which is not read: give the stress in eV/Å^3)"
        else:
            other = _other_names("stress", "stress", atoms.info, [(6,), (9,), (3, 3)])
            yield f"stress ({other})" if other else "stress"


def _other_names(name: str, word: str, things: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> str:
    """Say what might be meant by a name that is not there; nothing where nothing might."""
    others = [
        key
        for key, thing in things.items()
        if word in key.lower() and key != name and np.shape(thing) in shapes and np.asarray(thing).dtype.kind in "fiu"
    ]
    return f"there is {', '.join(others)}: what is to be read must be named {name}" if others else ""
