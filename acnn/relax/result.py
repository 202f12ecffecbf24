"""What comes back for each structure of a relaxation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms


class RelaxStatus(StrEnum):
    """How the relaxation of one structure ended."""

    CONVERGED = "converged"
    UNCONVERGED = "unconverged"
    UNSAFE = "unsafe"


class FailureReason(StrEnum):
    """Why a structure did not converge."""

    NO_CRYSTAL = "no_crystal"
    UNKNOWN_ELEMENT = "unknown_element"
    TOO_CLOSE = "too_close"
    VOLUME = "volume"
    ENERGY = "energy"
    STRESS = "stress"
    NOT_FINITE = "not_finite"
    MAX_STEPS = "max_steps"
    STALLED = "stalled"


@dataclass(frozen=True)
class Relaxed:
    """The end of one structure's relaxation.

    Attributes
    ----------
    index
        Place in the input, from 0.
    atoms
        The final structure: of the lowest enthalpy that was reached safely; of an unsafe start, the start.
    status
        Converged, unconverged, or unsafe.
    reason
        Empty when converged, else a value of :class:`FailureReason`.
    n_steps
        Calls of the potential that this structure took part in.
    fmax
        Largest force on an atom, eV/Å.
    stress_residual_gpa
        Largest component of stress plus pressure, GPa.
    energy
        Energy of the final structure, eV.
    enthalpy
        Energy plus pressure times volume, eV.
    spread
        Standard deviation of the committee's energies, eV/atom.
    last_safe
        The last frame that passed all guards, if the structure is unsafe and there was one.
    """

    index: int
    atoms: Atoms
    status: RelaxStatus
    reason: str
    n_steps: int
    fmax: float
    stress_residual_gpa: float
    energy: float
    enthalpy: float
    spread: float
    last_safe: Atoms | None = None
