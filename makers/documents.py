"""The documents that stages exchange: small, validated, and the only things a person needs to query."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt

from makers.blobs import LedgerBlob, ModelBlob, StructureBatch


class Document(BaseModel):
    """Base of all job outputs: unknown keys, silent defaults and infinities are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class LabelStatus(StrEnum):
    """What became of a first-principles calculation."""

    OK = "ok"
    UNCONVERGED = "unconverged"  # the self-consistency or the relaxation did not converge
    CRASHED = "crashed"  # the code died or raised
    TIMEOUT = "timeout"
    REJECTED = "rejected"  # finished, but the validator does not believe it


class LabelKind(StrEnum):
    """What was calculated."""

    SINGLE_POINT = "single_point"
    RELAXATION = "relaxation"


class Provenance(Document):
    """Where a label comes from."""

    door: Literal["ase", "atomate2"] = Field(description="Which door the structure went through.")
    calculator: str = Field(description="Calculator or atomate2 maker, as named in the search file.")
    versions: dict[str, str] = Field(description="Versions of the code and its interface.")
    host: str = Field(description="Machine that ran it.")
    directory: str = Field(description="Folder of the calculation; empty for in-process calculators.")
    started: str = Field(description="Start, ISO 8601, UTC.")
    seconds: NonNegativeFloat = Field(description="Wall time, s.")
    corrections: list[str] = Field(description="What custodian changed on the way, in words.")


class LabelDoc(Document):
    """One first-principles calculation of one structure: a record of the `labels` collection."""

    schema_version: Literal[1] = 1
    project: str = Field(description="The search that asked for it.")
    label_id: str = Field(description="Hash of structure, settings fingerprint and kind: the identity of the label.")
    structure_hash: str = Field(description="Hash of the structure that was asked for.")
    fingerprint: str = Field(description="Hash of the label settings; labels of different fingerprints never mix.")
    kind: LabelKind
    status: LabelStatus
    message: str = Field(description="Why, when the status is not ok.")
    generation: NonNegativeInt
    pressure_gpa: float | None = Field(default=None, description="Pressure of a relaxation, GPa; else None.")
    reason: str = Field(description="Why it was chosen: initial, stable, uncertain, unsafe, diverse, final.")
    phase_id: str | None = Field(description="Candidate phase that the structure belongs to, if any.")
    formula: str = Field(description="Reduced formula.")
    chemsys: str
    n_atoms: NonNegativeInt
    numbers: list[int] = Field(description="Atomic numbers, length n_atoms.")
    positions: list[list[float]] = Field(description="Positions of the calculated structure, (n_atoms, 3), Å.")
    cell: list[list[float]] = Field(description="Cell, rows are lattice vectors, (3, 3), Å.")
    energy: float | None = Field(
        description="Total energy extrapolated to zero smearing, without pV, eV; None unless a result exists."
    )
    forces: list[list[float]] | None = Field(description="Forces, (n_atoms, 3), eV/Å.")
    stress: list[list[float]] | None = Field(description="Stress +(1/V) dE/de, (3, 3), eV/Å^3, tension positive.")
    provenance: Provenance


class GenerateCounts(Document):
    """What one chunk of `generate` came to."""

    asked: NonNegativeInt
    made: NonNegativeInt
    refused: dict[str, NonNegativeInt] = Field(description="Crystals asked for and not made, by reason.")
    seconds: NonNegativeFloat
    started: str = Field(description="When the job began, ISO 8601, UTC.")


class GenerateDoc(Document):
    """Output of `generate`: one chunk of trial crystals."""

    batch: StructureBatch = Field(description="Trial crystals; a blob in the `data` store.")
    ledger: LedgerBlob = Field(description="Crystals made per reduced formula. A blob.")
    counts: GenerateCounts


class RelaxCounts(Document):
    """What one chunk of `relax` came to."""

    statuses: dict[str, NonNegativeInt]
    reasons: dict[str, NonNegativeInt] = Field(description="Why structures did not converge, counted.")
    seconds: NonNegativeFloat


class RelaxDoc(Document):
    """Output of `relax`: one chunk, relaxed."""

    relaxed: StructureBatch = Field(
        description="Every structure as the relaxation left it; columns energy and enthalpy (eV), status, reason, "
        "n_steps, fmax (eV/Å), stress_residual_gpa, spread (eV/atom), origin, phase_id. A blob in the `data` store."
    )
    last_safe: StructureBatch = Field(description="Last safe frame of each unsafe structure; column reason. A blob.")
    counts: RelaxCounts


class SelectSummary(Document):
    """What `select` found and chose, without the structures."""

    n_candidates: NonNegativeInt = Field(description="Converged structures of this generation.")
    n_distinct: NonNegativeInt = Field(description="Distinct candidates known after this generation.")
    chosen: dict[str, NonNegativeInt] = Field(description="Structures to label, by reason.")
    statuses: dict[str, NonNegativeInt] = Field(description="Relaxations by status.")
    flags: dict[str, NonNegativeInt] = Field(description="Unsafe and suspicious structures, by name of the flag.")
    seconds: NonNegativeFloat


class SelectDoc(Document):
    """Output of `select`: what goes to first principles, and the candidates known so far."""

    chosen: StructureBatch = Field(description="Structures to label; columns reason, phase_id. A blob.")
    pool: StructureBatch = Field(
        description="Distinct candidates within the window, best first; columns phase_id, enthalpy_per_atom, "
        "e_above_hull (eV/atom, model), spread (eV/atom), origin, lineage, times_found, generation_found. A blob."
    )
    ledger: LedgerBlob = Field(
        description="Finds of each candidate so far, new names, and the least height of each formula above the hull. "
        "A blob."
    )
    summary: SelectSummary


class LabelSummary(Document):
    """Output of `label`: what became of the chosen structures. The labels themselves are in `labels`."""

    asked: NonNegativeInt
    statuses: dict[str, NonNegativeInt]
    reused: NonNegativeInt = Field(description="Labels that existed already and were not calculated again.")
    label_ids: list[str]
    seconds: NonNegativeFloat


class TrainSummary(Document):
    """What `train` came to, without the model."""

    n_labels: NonNegativeInt
    dropped: dict[str, NonNegativeInt] = Field(description="Labels left out, by reason.")
    metrics: dict[str, float] = Field(description="Errors after training; the unit is in each name.")
    walk_forward: dict[str, float] = Field(
        description="Errors of the previous model on the labels that it had not seen; empty in generation 0."
    )
    seconds: NonNegativeFloat


class TrainDoc(Document):
    """Output of `train`: the model and what it is worth."""

    model: ModelBlob = Field(description="Checkpoint; a blob in the `data` store.")
    summary: TrainSummary
