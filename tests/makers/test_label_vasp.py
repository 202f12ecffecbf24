"""The atomate2 door, through a stand-in executable: real makers, real custodian, real parsing."""

from __future__ import annotations

import gzip
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import bson
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.units import GPa
from fireworks import FWorker
from fireworks.core.rocket_launcher import rapidfire
from jobflow import Flow, JobStore, run_locally
from jobflow.managers.fireworks import flow_to_workflow
from monty.json import MontyDecoder, MontyEncoder

from makers.blobs import StructureBatch
from makers.config import VASP_LABEL_INCAR, Atomate2LabelConfig
from makers.documents import LabelDoc, LabelKind, LabelSummary
from makers.errors import ConfigError
from makers.label import DRIVER_SHARE, LabelMaker
from makers.labelling import read_labels
from makers.labelling.calculators import check_labeller

if TYPE_CHECKING:
    from fireworks import LaunchPad

STAND_IN = f"{sys.executable} {Path(__file__).parents[1] / 'fake_vasp' / 'fake_vasp.py'}"
SHIFT = -4.0  # eV/atom, of the stand-in
WRITTEN = 1e-5  # what the digits of vasprun.xml resolve, eV, eV/Å, eV/Å^3

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:No POTCAR file with matching:UserWarning"),
    pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING to false:DeprecationWarning"),  # spglib, by pymatgen
    pytest.mark.filterwarnings("ignore:Response.stored_data is not supported"),
]


@pytest.fixture
def config() -> Atomate2LabelConfig:
    run = {
        "vasp_cmd": STAND_IN,
        "vasp_gamma_cmd": STAND_IN,
        "custodian_kwargs": {"polling_time_step": 0.05, "monitor_freq": 1},
    }
    return Atomate2LabelConfig(door="atomate2", potcar_spec=True, run_vasp=run, relax_fmax=0.02)


def aluminium(n_atoms: int) -> Atoms:
    atoms = bulk("Al", cubic=True)[:n_atoms]
    if n_atoms == 4:
        atoms.symbols[[0, 2]] = "Cu"  # VASP wants species together: the order must come back
    atoms.rattle(0.1, seed=n_atoms)
    atoms.info = {"reason": "initial", "phase_id": ""}
    return atoms


def run(maker: LabelMaker, frames: list[Atoms], store: JobStore, folder: Path, kind: LabelKind) -> LabelSummary:
    job = maker.make(StructureBatch.from_atoms(frames), 0, kind)
    job.name = "label 000"
    run_locally(job, store=store, log=False, create_folders=True, root_dir=folder)
    return LabelSummary.model_validate(store.get_output(job.uuid))


def labels_by_size(store: JobStore) -> dict[int, LabelDoc]:
    return {label.n_atoms: label for label in read_labels(store, "p", status=None)}


def test_labels_have_our_units_signs_and_order(
    job_store: JobStore, config: Atomate2LabelConfig, tmp_path: Path
) -> None:
    frames = [aluminium(n) for n in (1, 4)]
    summary = run(LabelMaker("p", config), frames, job_store, tmp_path, LabelKind.SINGLE_POINT)
    assert (summary.statuses, summary.reused) == ({"ok": 2}, 0)
    labels = labels_by_size(job_store)
    for atoms in frames:
        label = labels[len(atoms)]
        atoms.calc = EMT()
        assert label.numbers == atoms.numbers.tolist()
        assert label.energy == pytest.approx(atoms.get_potential_energy() + SHIFT * len(atoms), abs=WRITTEN)
        assert np.allclose(label.forces, atoms.get_forces(), atol=WRITTEN)
        assert np.allclose(label.stress, atoms.get_stress(voigt=False), atol=WRITTEN)
        assert np.array_equal(label.positions, atoms.positions)
        assert label.provenance.door == "atomate2"
        assert label.provenance.versions["vasp"] == "6.4.2"
        assert Path(label.provenance.directory).is_dir()
    names = {doc["name"] for doc in job_store.query()}
    assert {"label 000", "label 000.1", "label 000.1.keep", "label 000.2", "label 000.collect"} <= names

    again = run(LabelMaker("p", config), frames, job_store, tmp_path, LabelKind.SINGLE_POINT)
    assert (again.statuses, again.reused) == ({"ok": 2}, 2)


def test_many_labels_are_shared_out_among_drivers(
    job_store: JobStore, config: Atomate2LabelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("makers.label.DRIVER_SHARE", 2)
    frames = [aluminium(1), aluminium(4), bulk("Cu")]
    summary = run(LabelMaker("p", config), frames, job_store, tmp_path, LabelKind.SINGLE_POINT)
    assert (summary.asked, summary.statuses, len(set(summary.label_ids))) == (3, {"ok": 3}, 3)
    assert [label.formula for label in read_labels(job_store, "p")].count("Cu") == 1
    names = {doc["name"] for doc in job_store.query()}
    assert {"label 000.part1", "label 000.part1.2.keep", "label 000.part2.1", "label 000.collect"} <= names
    assert "label 000.1" not in names


def test_documents_of_a_driver_stay_below_a_megabyte(config: Atomate2LabelConfig, launchpad: LaunchPad) -> None:
    frames = []
    for seed in range(DRIVER_SHARE):
        atoms = bulk("Al", cubic=True).repeat((10, 1, 1))
        atoms.rattle(0.1, seed=seed)
        frames.append(atoms)
    flow = Flow(LabelMaker("p", config).make(StructureBatch.from_atoms(frames), 0))
    launchpad.add_wf(flow_to_workflow(flow))
    rapidfire(launchpad, FWorker(), nlaunches=1, strm_lvl="CRITICAL")
    sizes = [len(bson.encode(doc)) for doc in launchpad.launches.find({})]
    assert launchpad.fireworks.count_documents({}) == 2 * DRIVER_SHARE + 3
    assert 500_000 < max(sizes) < 1_000_000


def test_failures_do_not_block_the_stage(
    job_store: JobStore, config: Atomate2LabelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VASP_FAULTS", "crash:1,unconverged:2,drift:3")
    maker = LabelMaker("p", config.model_copy(update={"max_failed_fraction": 0.8}))
    frames = [aluminium(n) for n in (1, 2, 3, 4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # custodian warns in its own ways of what we asked for
        summary = run(maker, frames, job_store, tmp_path, LabelKind.SINGLE_POINT)
    assert summary.statuses == {"crashed": 1, "unconverged": 1, "rejected": 1, "ok": 1}
    labels = labels_by_size(job_store)
    assert "without a result" in labels[1].message
    assert labels[1].energy is None
    assert any("ResignedUnconvergedHandler" in text for text in labels[2].provenance.corrections)
    assert labels[3].message == "ENCUT ended as 300.0, asked for 650: not comparable"


# mongomock rewrites documents in place, so FireWorks' ping thread may find none; a real MongoDB does not
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_under_fireworks_a_fizzled_calculation_does_not_block_the_stage(
    job_store: JobStore, config: Atomate2LabelConfig, launchpad: LaunchPad, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VASP_FAULTS", "crash:1")
    job = LabelMaker("p", config).make(StructureBatch.from_atoms([aluminium(1), aluminium(2)]), 0)
    job.name = "label 000"
    launchpad.add_wf(flow_to_workflow(Flow([job])))
    rapidfire(launchpad, FWorker(), nlaunches=0, sleep_time=0, strm_lvl="CRITICAL")
    states = {fw["name"]: fw["state"] for fw in launchpad.fireworks.find({})}
    assert states.pop("label 000.1") == "FIZZLED"
    assert set(states.values()) == {"COMPLETED"}
    assert LabelSummary.model_validate(job_store.get_output(job.uuid)).statuses == {"crashed": 1, "ok": 1}
    largest = max(len(json.dumps(fw, default=str)) for fw in launchpad.fireworks.find({}))
    assert largest < 100_000  # bytes; MongoDB takes 16 million


@pytest.mark.parametrize("pressure_gpa", [0.0, 10.0])
def test_relaxations_end_at_the_pressure_without_pv_in_the_energy(
    job_store: JobStore,
    config: Atomate2LabelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pressure_gpa: float,
) -> None:
    monkeypatch.setenv("FAKE_VASP_PV", str(pressure_gpa * GPa))  # VASP adds it to the energies of ionic steps
    maker = LabelMaker("p", config, pressure_gpa=pressure_gpa)
    assert run(maker, [aluminium(4)], job_store, tmp_path, LabelKind.RELAXATION).statuses == {"ok": 1}
    (label,) = read_labels(job_store, "p")
    atoms = Atoms(label.numbers, positions=label.positions, cell=label.cell, pbc=True)
    atoms.calc = EMT()
    assert label.energy == pytest.approx(atoms.get_potential_energy() + SHIFT * 4, abs=WRITTEN)
    assert np.allclose(label.forces, atoms.get_forces(), atol=1e-4)
    assert -np.trace(label.stress) / 3 / GPa == pytest.approx(pressure_gpa, abs=0.5)


def test_inputs_are_the_preset(job_store: JobStore, config: Atomate2LabelConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"incar": {"ENCUT": 700}})
    run(LabelMaker("p", config), [aluminium(1)], job_store, tmp_path, LabelKind.SINGLE_POINT)
    (label,) = read_labels(job_store, "p")
    folder = Path(label.provenance.directory)
    path = folder / "INCAR"
    text = path.read_text() if path.exists() else gzip.decompress(path.with_suffix(".gz").read_bytes()).decode()
    incar = {line.split("=")[0].strip(): line.split("=")[1].strip() for line in text.splitlines() if "=" in line}
    expected = {"ENCUT": "700.0", "PREC": "Normal", "ISPIN": "1", "ISYM": "0", "ISMEAR": "0", "NSW": "0", "NELM": "200"}
    assert {tag: incar[tag] for tag in expected} == expected
    assert float(incar["KSPACING"]) == 0.25
    assert float(incar["EDIFF"]) == 1e-7
    assert incar["LREAL"].strip(".").lower() in {"f", "false"}
    assert not list(folder.glob("KPOINTS*"))
    assert not [path for path in folder.glob("POTCAR*") if "spec" not in path.name]


def test_handlers_leave_the_physics_alone() -> None:
    from makers.labelling.vasp import CURABLE, build_maker  # noqa: PLC0415 - imports atomate2

    maker = build_maker(Atomate2LabelConfig(door="atomate2"), LabelKind.RELAXATION, 150.0)
    names = {type(handler).__name__ for handler in maker.run_vasp_kwargs["handlers"]}
    assert "PositiveEnergyErrorHandler" not in names
    assert names.isdisjoint({"IncorrectSmearingHandler", "LargeSigmaHandler", "KspacingMetalHandler"})
    assert set(CURABLE).isdisjoint({"tet", "dentet", "subspacematrix", "zpotrf", "triple_product"})
    assert maker.stop_children_kwargs == {"handle_unsuccessful": False}
    incar = maker.input_set_generator.user_incar_settings
    assert (incar["PSTRESS"], incar["ISIF"], incar["IBRION"]) == (1500.0, 3, 2)


def test_jobs_survive_the_database() -> None:
    from makers.labelling.vasp import CURABLE, build_maker, to_structure  # noqa: PLC0415 - imports atomate2

    structure, _ = to_structure(aluminium(4))
    job = build_maker(Atomate2LabelConfig(door="atomate2")).make(structure)
    text = json.dumps(job, cls=MontyEncoder)
    maker = MontyDecoder().process_decoded(json.loads(text)).function.__self__
    handlers = {type(handler).__name__: handler for handler in maker.run_vasp_kwargs["handlers"]}
    assert handlers["VaspErrorHandler"].errors_subset_to_catch == CURABLE
    assert handlers["ResignedUnconvergedHandler"].max_num_corrections == 2
    assert maker.input_set_generator.user_incar_settings["ENCUT"] == VASP_LABEL_INCAR["ENCUT"]
    assert len(text) < 50_000  # bytes of one firework


def test_wrong_makers_and_missing_executables_are_named() -> None:
    with pytest.raises(ConfigError, match="'no_such_vasp' was not found"):
        check_labeller(Atomate2LabelConfig(door="atomate2", run_vasp={"vasp_cmd": "no_such_vasp -n 4"}))
    with pytest.raises(ConfigError, match="cannot be imported"):
        check_labeller(Atomate2LabelConfig(door="atomate2", maker="atomate2.vasp.jobs.NoSuchMaker"))
    with pytest.raises(ConfigError, match="not a VASP maker"):
        check_labeller(Atomate2LabelConfig(door="atomate2", maker="atomate2.ase.jobs.EmtRelaxMaker"))
