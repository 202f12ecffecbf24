"""The ASE door: labels in supervised processes, one structure's failure is nobody else's."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.units import GPa

from makers.config import AseLabelConfig
from makers.documents import LabelKind, LabelStatus
from makers.errors import LabelError
from makers.labelling.identity import settings_fingerprint
from makers.labelling.outcome import Outcome, validate
from makers.labelling.records import LabelContext, read_labels, to_training_frames
from makers.labelling.run import check_failures, judge, label_structures

if TYPE_CHECKING:
    from jobflow import JobStore

SAME = 1e-12  # the same code on the same numbers


@pytest.fixture
def test_calculators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def copper(n: int) -> list[Atoms]:
    frames = []
    for seed in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.info = {"reason": "initial", "phase_id": f"phase-{seed}"}
        frames.append(atoms)
    return frames


def gold(n_atoms: int) -> Atoms:
    atoms = bulk("Au", cubic=True) * (2, 1, 1)
    return atoms[:n_atoms]


def context(
    config: AseLabelConfig, kind: LabelKind = LabelKind.SINGLE_POINT, pressure_gpa: float = 0.0
) -> LabelContext:
    return LabelContext("test", 2, kind, pressure_gpa, config)


def test_two_workers_give_what_the_calculator_gives(job_store: JobStore, tmp_path: Path) -> None:
    config = AseLabelConfig(calculator="emt", workers=2)
    frames = copper(4)
    summary = label_structures(frames, context(config), job_store, tmp_path)
    assert (summary.asked, summary.statuses, summary.reused) == (4, {"ok": 4}, 0)

    labels = {label.label_id: label for label in read_labels(job_store, "test", settings_fingerprint(config))}
    for atoms, label_id in zip(frames, summary.label_ids, strict=True):
        label = labels[label_id]
        atoms.calc = EMT()
        assert label.energy == pytest.approx(atoms.get_potential_energy(), abs=SAME)
        assert np.allclose(label.forces, atoms.get_forces(), atol=SAME)
        assert np.allclose(label.stress, atoms.get_stress(voigt=False), atol=SAME)
        assert (label.reason, label.phase_id, label.generation) == ("initial", atoms.info["phase_id"], 2)
        assert label.provenance.versions["ase"]
        assert label.provenance.seconds > 0
    assert list(tmp_path.iterdir()) == []  # no scratch is left


def test_training_frames_carry_the_label(job_store: JobStore, tmp_path: Path) -> None:
    config = AseLabelConfig(calculator="emt")
    label_structures(copper(1), context(config), job_store, tmp_path)
    (label,) = read_labels(job_store, "test")
    (frame,) = to_training_frames([label])
    assert frame.get_potential_energy() == label.energy
    assert np.array_equal(frame.get_forces(), label.forces)
    assert np.allclose(frame.get_stress(voigt=False), label.stress, atol=SAME)
    assert frame.info["label_id"] == label.label_id
    assert frame.info["family"].startswith("Cu")
    assert to_training_frames([label.model_copy(update={"energy": None})]) == []


@pytest.mark.usefixtures("test_calculators")
def test_failures_stay_with_their_structure(job_store: JobStore, tmp_path: Path) -> None:
    config = AseLabelConfig(calculator="label_calculators:faulty", workers=2, timeout_s=2.0)
    frames = [*copper(3), *(gold(n) for n in (1, 2, 3, 4, 5, 6))]
    summary = label_structures(frames, context(config), job_store, tmp_path)
    labels = {label.label_id: label for label in read_labels(job_store, "test", status=None)}
    by_atoms = {n: labels[label_id] for n, label_id in zip((1, 2, 3, 4, 5, 6), summary.label_ids[3:], strict=True)}

    assert summary.statuses == {"ok": 3, "crashed": 3, "timeout": 1, "rejected": 1, "unconverged": 1}
    assert "SIGSEGV" in by_atoms[1].message
    assert by_atoms[2].status == LabelStatus.TIMEOUT
    assert "2 s" in by_atoms[2].message
    assert by_atoms[3].message == "ValueError: bad geometry"
    assert by_atoms[4].message == "forces not finite"
    assert by_atoms[4].energy is None
    assert by_atoms[5].status == LabelStatus.UNCONVERGED
    assert "exit code 7" in by_atoms[6].message
    assert all(labels[label_id].status == LabelStatus.OK for label_id in summary.label_ids[:3])
    with pytest.raises(LabelError, match="6 of 9 labels failed"):
        check_failures(summary, 0.5)
    check_failures(summary, 0.7)


def test_existing_labels_are_not_calculated_again(job_store: JobStore, tmp_path: Path) -> None:
    config = AseLabelConfig(calculator="emt")
    frames = copper(3)
    first = label_structures(frames[:2], context(config), job_store, tmp_path)
    again = label_structures([*frames, frames[2]], context(config), job_store, tmp_path)
    assert again.label_ids[:2] == first.label_ids
    assert (again.asked, again.reused, again.statuses) == (4, 2, {"ok": 4})
    labels = read_labels(job_store, "test", status=None)
    assert Counter(label.label_id for label in labels) == Counter(set(again.label_ids))


@pytest.mark.usefixtures("test_calculators")
def test_failed_labels_are_tried_again(job_store: JobStore, tmp_path: Path) -> None:
    config = AseLabelConfig(calculator="label_calculators:faulty")
    for _ in range(2):
        summary = label_structures([gold(3)], context(config), job_store, tmp_path)
        assert (summary.reused, summary.statuses) == (0, {"crashed": 1})


def test_relaxation_reaches_the_pressure(job_store: JobStore, tmp_path: Path) -> None:
    config = AseLabelConfig(calculator="emt", relax_fmax=0.01)
    pressure_gpa = 20.0
    summary = label_structures(copper(1), context(config, LabelKind.RELAXATION, pressure_gpa), job_store, tmp_path)
    assert summary.statuses == {"ok": 1}
    (label,) = read_labels(job_store, "test", kind=LabelKind.RELAXATION)
    atoms = Atoms(label.numbers, positions=label.positions, cell=label.cell, pbc=True)
    atoms.calc = EMT()
    assert label.energy == pytest.approx(atoms.get_potential_energy(), abs=SAME)
    assert label.pressure_gpa == pressure_gpa
    residual = np.asarray(label.stress) / GPa + pressure_gpa * np.eye(3)
    assert np.abs(residual).max() < 0.5  # fmax = 0.01 eV/Å on 4 atoms in 40 Å^3
    assert np.abs(label.forces).max() < 0.01


def test_relaxation_that_runs_out_of_steps_says_so(job_store: JobStore, tmp_path: Path) -> None:
    config = AseLabelConfig(calculator="emt", relax_max_steps=2)
    label_structures(copper(1), context(config, LabelKind.RELAXATION), job_store, tmp_path)
    (label,) = read_labels(job_store, "test", status=None)
    assert label.status == LabelStatus.UNCONVERGED
    assert "after 2 steps" in label.message
    assert label.energy is not None


def test_processes_that_cannot_start_end_the_stage(job_store: JobStore, tmp_path: Path) -> None:
    config = AseLabelConfig(calculator="no_such_package.calculators:make")
    with pytest.raises(LabelError, match="cannot be imported"):
        label_structures(copper(1), context(config), job_store, tmp_path)


def test_exploded_relaxation_is_kept_as_it_was_asked_for() -> None:
    atoms = copper(1)[0]
    here = context(AseLabelConfig(calculator="emt"), LabelKind.RELAXATION)
    request = here.request(atoms)
    nowhere = [[math.nan] * 3] * 4
    outcome = Outcome(request.label_id, LabelStatus.CRASHED, "exploded", nowhere, [[math.inf] * 3] * 3)
    provenance = {"versions": {}, "host": "", "started": "", "seconds": 0.0}
    label = here.document(request, judge(dataclasses.replace(outcome, provenance=provenance), here))
    assert (label.status, label.message) == (LabelStatus.CRASHED, "exploded")
    assert np.array_equal(label.positions, atoms.positions)


def test_validator_rejects_what_cannot_be_learned_from() -> None:
    good = Outcome(
        "x", LabelStatus.OK, "", [[0.0] * 3], np.eye(3).tolist(), -1.0, [[0.0] * 3], np.zeros((3, 3)).tolist()
    )
    changes = {
        "50 eV": {"forces": [[51.0, 0.0, 0.0]]},
        "energy not finite": {"energy": math.inf},
        "no stress": {"stress": None},
        "shape": {"forces": [[0.0] * 3] * 2},
        "no energy": {"energy": None},
    }
    assert validate(good, 50.0) == good
    for text, change in changes.items():
        judged = validate(Outcome(**vars(good) | change), 50.0)
        assert judged.status == LabelStatus.REJECTED
        assert text in judged.message
