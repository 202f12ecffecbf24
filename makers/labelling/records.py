"""Labels in their collection: written one by one, found again by identity, handed to training as structures."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from pymongo.errors import BulkWriteError

from csp.knowledge import reduced_formula
from makers.documents import LabelDoc, LabelKind, LabelStatus, Provenance
from makers.errors import ConfigError
from makers.labelling.identity import label_id, settings_fingerprint, structure_hash
from makers.stores import sibling_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobflow import JobStore
    from maggma.core import Store

    from makers.config import AseLabelConfig, Atomate2LabelConfig
    from makers.labelling.outcome import Outcome

COLLECTION = "labels"
KEY = ["project", "label_id"]
UNIQUE = "label_key"  # one field that says both, so that the database itself refuses a second document
INDEXES = ("label_id", "project", "status", "chemsys", "formula", "phase_id")


@dataclass(frozen=True)
class Request:
    """One structure to label and why.

    Parameters
    ----------
    atoms
        The structure; ``info`` may hold ``reason`` and ``phase_id``.
    structure_hash
        Its identity.
    label_id
        Identity of the label.
    """

    atoms: Atoms
    structure_hash: str
    label_id: str


@dataclass(frozen=True)
class LabelContext:
    """What all labels of one call have in common.

    Parameters
    ----------
    project
        The search that asks.
    generation
        Generation, from 0.
    kind
        What is calculated.
    pressure_gpa
        Pressure of relaxations, GPa.
    config
        The `label` section.
    """

    project: str
    generation: int
    kind: LabelKind
    pressure_gpa: float
    config: AseLabelConfig | Atomate2LabelConfig

    def request(self, atoms: Atoms) -> Request:
        """Give a structure the identity of its label."""
        identity = structure_hash(atoms)
        return Request(atoms, identity, label_id(identity, self.config, self.kind, self.pressure_gpa))

    def document(self, request: Request, outcome: Outcome) -> LabelDoc:
        """Turn an outcome into the record that is stored."""
        atoms = request.atoms
        counts = atoms.symbols.formula.count()
        # a relaxation may have blown up; the record then holds what was asked for
        intact = np.isfinite(outcome.positions).all() and np.isfinite(outcome.cell).all()
        config = self.config
        return LabelDoc(
            project=self.project,
            label_id=request.label_id,
            structure_hash=request.structure_hash,
            fingerprint=settings_fingerprint(config),
            kind=self.kind,
            status=outcome.status,
            message=outcome.message,
            generation=self.generation,
            pressure_gpa=self.pressure_gpa if self.kind == LabelKind.RELAXATION else None,
            reason=str(atoms.info.get("reason", "")),
            phase_id=str(atoms.info["phase_id"]) if atoms.info.get("phase_id") else None,
            formula=reduced_formula(counts),
            chemsys="-".join(sorted(counts)),
            n_atoms=len(atoms),
            numbers=atoms.numbers.tolist(),
            positions=outcome.positions if intact else atoms.positions.tolist(),
            cell=outcome.cell if intact else atoms.cell.array.tolist(),
            energy=outcome.energy,
            forces=outcome.forces,
            stress=outcome.stress,
            provenance=Provenance(
                door=config.door,
                calculator=config.calculator if config.door == "ase" else config.maker,
                **{"directory": "", "corrections": [], **outcome.provenance},
            ),
        )


def label_store(job_store: JobStore) -> Store:
    """Return the collection of labels beside the outputs of the search, with its indexes where the store has any.

    Parameters
    ----------
    job_store
        A connected job store.

    Returns
    -------
    Store
        Connected; it shares the job store's connection, so it must not be closed.
    """
    store = sibling_store(job_store, COLLECTION, key="label_id")
    with contextlib.suppress(NotImplementedError):  # the embedded store has no indexes
        store.ensure_index(UNIQUE, unique=True)
        for field in INDEXES:
            store.ensure_index(field)
    return store


def write_label(store: Store, label: LabelDoc) -> None:
    """Write or replace one label; a failure never replaces a success that another launch of the same job has had.

    Parameters
    ----------
    store
        The collection of labels.
    label
        The record.
    """
    identity = {"project": label.project, "label_id": label.label_id}
    if label.status != LabelStatus.OK and store.count({**identity, "status": str(LabelStatus.OK)}):
        return
    doc = label.model_dump(mode="json") | {UNIQUE: f"{label.project}/{label.label_id}"}
    try:
        store.update([doc], key=KEY)
    except BulkWriteError:  # two processes wrote the same new label at the same moment: now it is there to be replaced
        store.update([doc], key=KEY)


def find_statuses(store: Store, project: str, label_ids: Iterable[str]) -> dict[str, LabelStatus]:
    """Look up what became of labels.

    Parameters
    ----------
    store
        The collection of labels.
    project
        The search.
    label_ids
        Identities.

    Returns
    -------
    dict
        Status by label; labels that do not exist are absent.
    """
    wanted = set(label_ids)
    # not by $in: the embedded store compares each record with each identity, a second for 100 in 1000
    found = store.query({"project": project}, properties=["label_id", "status"])
    return {doc["label_id"]: LabelStatus(doc["status"]) for doc in found if doc["label_id"] in wanted}


def read_labels(
    job_store: JobStore,
    project: str,
    fingerprint: str | None = None,
    *,
    kind: LabelKind | None = None,
    status: LabelStatus | None = LabelStatus.OK,
    until: int | None = None,
) -> list[LabelDoc]:
    """Read the labels of a search, in an order that depends on nothing but the labels.

    Parameters
    ----------
    job_store
        A connected job store.
    project
        The search.
    fingerprint
        Fingerprint of the label settings: labels of other settings are not comparable and are not returned. None where
        the project has labels of one kind of settings only.
    kind
        Kind of calculation; None for all.
    status
        Status; None for all.
    until
        Last generation; None for all. A job that runs again later, when there are newer labels, sees the same ones.

    Returns
    -------
    list of LabelDoc
        Ordered by generation and identity.

    Raises
    ------
    ConfigError
        If no fingerprint is given and the project has labels of several settings: they never mix.
    """
    criteria: dict[str, Any] = {"project": project}
    criteria |= {"fingerprint": fingerprint} if fingerprint is not None else {}
    criteria |= {"kind": str(kind)} if kind is not None else {}
    criteria |= {"status": str(status)} if status is not None else {}
    criteria |= {"generation": {"$lte": until}} if until is not None else {}
    docs = label_store(job_store).query(criteria)
    labels = [LabelDoc(**{k: v for k, v in doc.items() if k in LabelDoc.model_fields}) for doc in docs]
    found = sorted({label.fingerprint for label in labels})
    if len(found) > 1:
        raise ConfigError(
            f"project {project!r} has labels of several label settings ({', '.join(found)}), which cannot be compared: "
            f"name a fingerprint, or give the new settings a project of their own"
        )
    return sorted(labels, key=lambda label: (label.generation, label.label_id))


def to_training_frames(labels: Sequence[LabelDoc]) -> list[Atoms]:
    """Turn labels into structures with energy, forces and stress attached.

    Parameters
    ----------
    labels
        Labels that have results; others are left out.

    Returns
    -------
    list of Atoms
        Periodic, with a SinglePointCalculator; ``info`` carries label_id, family (structures to be kept on the same
        side of a split: the phase, or else the formula), phase_id, reason and generation.
    """
    frames = []
    for label in labels:
        if label.energy is None or label.forces is None or label.stress is None:
            continue
        info = {
            "label_id": label.label_id,
            "family": f"{label.formula}/{label.phase_id}" if label.phase_id else label.formula,
            "phase_id": label.phase_id or "",
            "reason": label.reason,
            "generation": label.generation,
        }
        atoms = Atoms(label.numbers, positions=label.positions, cell=label.cell, pbc=True, info=info)
        atoms.calc = SinglePointCalculator(
            atoms, energy=label.energy, forces=label.forces, stress=full_3x3_to_voigt_6_stress(label.stress)
        )
        frames.append(atoms)
    return frames
