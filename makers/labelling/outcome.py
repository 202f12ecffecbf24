"""What comes out of a calculation, and whether to believe it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase.units import GPa

from makers.documents import LabelKind, LabelStatus

Vectors = list[list[float]]


@dataclass(frozen=True)
class Outcome:
    """One calculation as it left the code, in plain lists (it crosses process borders as JSON).

    Parameters
    ----------
    label_id
        The label it is for.
    status
        What became of it.
    message
        Why, when the status is not ok.
    positions
        Positions of the calculated structure, (n_atoms, 3), Å; for relaxations the final ones.
    cell
        Its cell, rows are lattice vectors, (3, 3), Å.
    energy
        Total energy extrapolated to zero smearing, without pV, eV; None when there is no result.
    forces
        Forces, (n_atoms, 3), eV/Å.
    stress
        Stress +(1/V) dE/de, (3, 3), eV/Å^3, tension positive.
    provenance
        Fields of `Provenance` that only the one who calculated knows.
    """

    label_id: str
    status: LabelStatus
    message: str
    positions: Vectors
    cell: Vectors
    energy: float | None = None
    forces: Vectors | None = None
    stress: Vectors | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def validate(outcome: Outcome, max_force: float) -> Outcome:
    """Reject a result that no potential should learn from.

    Parameters
    ----------
    outcome
        A finished calculation; failed ones pass through.
    max_force
        Largest believable force component, eV/Å.

    Returns
    -------
    Outcome
        The same, or with status rejected and the reason. Numbers that are not finite are removed, others are kept.
    """
    if outcome.energy is None:
        if outcome.status == LabelStatus.OK:
            return replace(outcome, status=LabelStatus.REJECTED, message="the code reported no energy")
        return outcome
    problem = _problem(outcome)
    if problem:
        bare = replace(outcome, energy=None, forces=None, stress=None)
        return replace(bare, status=LabelStatus.REJECTED, message=problem)
    largest = float(np.abs(np.asarray(outcome.forces)).max(initial=0.0))
    if outcome.status == LabelStatus.OK and largest > max_force:
        message = f"a force component of {largest:.1f} eV/Å is larger than max_force = {max_force:g} eV/Å"
        return replace(outcome, status=LabelStatus.REJECTED, message=message)
    return outcome


def validate_pressure(outcome: Outcome, kind: LabelKind, pressure_gpa: float, tolerance_gpa: float) -> Outcome:
    """Call a relaxation unconverged whose final pressure is not the one asked for.

    Parameters
    ----------
    outcome
        A calculation.
    kind
        Only relaxations are checked.
    pressure_gpa
        Target, GPa.
    tolerance_gpa
        Largest believable distance to it, GPa.

    Returns
    -------
    Outcome
        The same, or with status unconverged.
    """
    if kind != LabelKind.RELAXATION or outcome.status != LabelStatus.OK or outcome.stress is None:
        return outcome
    pressure = -float(np.trace(np.asarray(outcome.stress))) / 3 / GPa
    if abs(pressure - pressure_gpa) <= tolerance_gpa:
        return outcome
    message = f"relaxed to a pressure of {pressure:.2f} GPa, asked for {pressure_gpa:g} GPa"
    return replace(outcome, status=LabelStatus.UNCONVERGED, message=message)


def _problem(outcome: Outcome) -> str:
    n_atoms = len(outcome.positions)
    shapes = {"forces": (n_atoms, 3), "stress": (3, 3)}
    for name, shape in shapes.items():
        values = getattr(outcome, name)
        if values is None:
            return f"the code reported no {name}: it is needed for training"
        if np.shape(values) != shape:
            return f"{name} have shape {np.shape(values)}, expected {shape}"
    for name in ("energy", "forces", "stress", "positions", "cell"):
        if not np.isfinite(np.asarray(getattr(outcome, name), dtype=float)).all():
            return f"{name} not finite"
    return ""
