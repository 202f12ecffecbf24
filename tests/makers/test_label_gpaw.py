"""Labels by density-functional theory: GPAW on Mg2Si at the settings of the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.units import GPa
from jobflow import JobStore
from maggma.stores import MemoryStore

from makers.config import AseLabelConfig
from makers.documents import LabelDoc, LabelKind
from makers.labelling.records import LabelContext, read_labels
from makers.labelling.run import label_structures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.dft
pytest.importorskip("gpaw", reason="GPAW is not installed: pip install 'hullseeker[dft]'")

SETTINGS = {
    "mode": {"name": "pw", "ecut": 200},
    "kpts": {"density": 2.0, "gamma": True},
    "setups": {"Mg": "2"},
    "occupations": {"name": "fermi-dirac", "width": 0.2},
    "eigensolver": "rmm-diis",
}
STRAIN = 0.01
PULAY_GPA = 0.2  # at 200 eV, whose basis grows with the cell; measured: 0.10


def antifluorite(a: float) -> Atoms:
    atoms = bulk("Si", "fcc", a=a)
    atoms += Atoms("Mg2", scaled_positions=[[0.25] * 3, [0.75] * 3], cell=atoms.cell, pbc=True)
    return atoms


def label(frames: Sequence[Atoms], folder: Path, kind: LabelKind = LabelKind.SINGLE_POINT) -> list[LabelDoc]:
    store = JobStore(MemoryStore())
    store.connect()
    config = AseLabelConfig(calculator="gpaw", settings=SETTINGS, workers=2, relax_fmax=0.02)
    context = LabelContext("demo", 0, kind, 0.0, config)
    summary = label_structures(frames, context, store, folder)
    assert summary.statuses == {"ok": len(frames)}
    found = {one.label_id: one for one in read_labels(store, "demo")}
    return [found[label_id] for label_id in summary.label_ids]


def test_mg2si_forces_vanish_and_stress_is_the_derivative_of_the_energy(tmp_path: Path) -> None:
    a = 6.35
    frames = [antifluorite(a), antifluorite(a * (1 - STRAIN)), antifluorite(a * (1 + STRAIN))]
    middle, less, more = label(frames, tmp_path)
    assert middle.formula == "Mg2Si"
    assert np.abs(middle.forces).max() < 1e-6  # by symmetry
    assert middle.provenance.versions["gpaw"]

    volumes = [abs(np.linalg.det(one.cell)) for one in (less, more)]
    numerical = -(more.energy - less.energy) / (volumes[1] - volumes[0]) / GPa
    analytic = -np.trace(middle.stress) / 3 / GPa
    assert analytic == pytest.approx(numerical, abs=PULAY_GPA)
    assert np.allclose(middle.stress, middle.stress[0][0] * np.eye(3), atol=1e-6)


def test_mg2si_relaxes_to_its_lattice_constant(tmp_path: Path) -> None:
    (relaxed,) = label([antifluorite(6.5)], tmp_path, LabelKind.RELAXATION)
    a = (4 * abs(np.linalg.det(relaxed.cell))) ** (1 / 3)
    assert a == pytest.approx(6.28, abs=0.03)  # GPAW at these coarse settings; PBE at convergence gives 6.36
    assert np.abs(relaxed.forces).max() < 0.02
    assert abs(np.trace(relaxed.stress)) / 3 / GPa < 0.5
