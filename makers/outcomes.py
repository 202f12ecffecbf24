"""The documents that tell the story of a search: what each generation did, and the answer."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, NonNegativeInt

from csp.state import SearchState
from makers.blobs import LedgerBlob
from makers.documents import Document

NEAR_HULL_ERROR = "near_hull_energy_rmse_mev_per_atom"
"""Name of the walk-forward error that the stop rule looks at, in ``walk_forward``."""


class HullMember(Document):
    """A phase on or near the hull, as far as first principles have confirmed it."""

    phase_id: str
    formula: str = Field(description="Reduced formula.")
    enthalpy_per_atom: float = Field(description="DFT enthalpy, eV/atom, at the geometry of its best label.")
    e_above_hull: float = Field(description="DFT distance to the hull, eV/atom; 0 on the hull.")
    times_found: NonNegativeInt


class GenerationDoc(Document):
    """What a generation did, where the search stands, and what comes next."""

    schema_version: Literal[1] = 1
    project: str
    generation: NonNegativeInt
    made: NonNegativeInt = Field(description="Trial crystals made.")
    refused: dict[str, NonNegativeInt] = Field(
        description="Crystals asked for and not made, by reason; each may stand for many attempts."
    )
    statuses: dict[str, NonNegativeInt] = Field(description="Relaxations by status.")
    flags: dict[str, NonNegativeInt] = Field(description="Unsafe and suspicious structures by flag.")
    chosen: dict[str, NonNegativeInt] = Field(description="Structures sent to first principles, by reason.")
    labels: dict[str, NonNegativeInt] = Field(description="Their labels, by status.")
    metrics: dict[str, float] = Field(description="Errors of the new model; the unit is in each name.")
    walk_forward: dict[str, float] = Field(description="Errors of the old model on the new labels.")
    hull: list[HullMember] = Field(description="DFT-confirmed phases on and near the hull, by formula and height.")
    state: SearchState = Field(description="The search after this generation.")
    stop: bool
    stop_reason: str | None = Field(description="Name of the reason, when the search stops here.")
    why: str = Field(description="The decision in words, with figures.")


class AdvanceDoc(GenerationDoc):
    """Output of `advance`."""

    ledger: LedgerBlob = Field(description="What was tried and found so far, by formula and by phase. A blob.")


class PhaseSummary(Document):
    """A line of the final table."""

    phase_id: str
    formula: str
    space_group: str = Field(description="International symbol of the relaxed structure.")
    space_group_number: int
    n_atoms: int = Field(description="Atoms in the primitive cell.")
    enthalpy_per_atom: float = Field(description="eV/atom.")
    e_above_hull: float = Field(description="Distance to the final hull, eV/atom; 0 on it.")
    volume_per_atom: float = Field(description="Å^3/atom.")
    times_found: NonNegativeInt
    generation_found: NonNegativeInt


class ReportDoc(Document):
    """Output of `report`: the answer."""

    schema_version: Literal[1] = 1
    project: str
    chemsys: str
    pressure_gpa: float
    generations: NonNegativeInt
    n_labels: NonNegativeInt
    n_trials: NonNegativeInt = Field(description="Trial crystals made in all generations.")
    stop_reason: str
    why: str
    phases: list[PhaseSummary] = Field(description="Phases relaxed by first principles, by height above the hull.")


class PhaseStatus(StrEnum):
    """What first principles say of a phase."""

    STABLE = "stable"  # on the hull of first-principles enthalpies
    METASTABLE = "metastable"  # above it
    UNCONFIRMED = "unconfirmed"  # only the potential has seen it


class PhaseDoc(Document):
    """One distinct crystal: a record of the `phases` collection."""

    schema_version: Literal[1] = 1
    project: str
    phase_id: str
    formula: str = Field(description="Reduced formula, alphabetical.")
    chemsys: str
    pressure_gpa: float
    status: PhaseStatus
    source: Literal["relaxation", "single_point", "model"] = Field(
        description="Whose geometry and enthalpy these are: relaxed by first principles, one first-principles "
        "calculation at the potential's minimum, or the potential alone."
    )
    e_above_hull: float | None = Field(description="First-principles distance to the hull, eV/atom; None if unknown.")
    e_above_hull_model: float | None = Field(description="The potential's distance to its hull, eV/atom.")
    enthalpy_per_atom: float | None = Field(description="First-principles enthalpy, eV/atom; None if unknown.")
    enthalpy_per_atom_model: float | None = Field(description="The potential's enthalpy, eV/atom.")
    space_group: str = Field(description="International symbol, found by spglib.")
    space_group_number: int
    n_atoms: int = Field(description="Atoms in the primitive cell.")
    volume_per_atom: float = Field(description="Å^3.")
    structure: dict[str, Any] = Field(description="pymatgen Structure as a dictionary (Structure.from_dict reads it).")
    origin: str = Field(
        "", description="`random`, `prototype`, `mutation` or `seed`: the source of its lowest structure, if known."
    )
    lineage: str = Field(
        "", description="What that was derived from, as `rattle(Mg2Si-9910fe)`; empty where it was drawn from nothing."
    )
    generation_found: NonNegativeInt
    times_found: NonNegativeInt = Field(description="Independent trial crystals that relaxed into it.")
    label_ids: list[str] = Field(description="Its labels in the `labels` collection.")
