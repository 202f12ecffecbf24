"""The whole search: in memory, in a folder, and under FireWorks; with failures of labels and of stages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ase.calculators.emt import EMT
from fireworks import FWorker
from fireworks.core.rocket_launcher import rapidfire
from jobflow import SETTINGS
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from makers.stores import embedded_job_store
from workflows.launch import WORKERS, submit_search
from workflows.results import generations, query_phases, report

if TYPE_CHECKING:
    from jobflow import JobStore

pytestmark = pytest.mark.integration

SAME_ENERGY = 1e-4  # eV/atom; the stored cell is primitive and symmetrised within 0.05 Å; 0.05 eV/Å leave 3e-4
RELAXED = 0.02  # eV/Å, label.relax_fmax of the tiny search


def answer(store: JobStore, project: str = "tiny") -> dict[str, Any]:
    """Return what a search found, without what differs from run to run (times, random identities)."""
    done = report(store, project)
    assert done is not None
    return {
        "stop": done.stop_reason,
        "generations": [(g.made, g.statuses, g.chosen, g.labels) for g in generations(store, project)],
        "metrics": [g.metrics["energy_mae_mev_per_atom"] for g in generations(store, project)],
        "phases": [
            (p.formula, p.space_group_number, round(p.enthalpy_per_atom, 5), round(p.e_above_hull, 5), p.times_found)
            for p in done.phases
        ],
    }


def test_search_in_memory_ends_with_an_answer(in_memory):
    done = report(in_memory, "tiny")
    steps = generations(in_memory, "tiny")
    assert [g.generation for g in steps] == [0, 1, 2]
    assert [g.stop for g in steps] == [False, False, True]
    assert done.stop_reason == steps[-1].stop_reason == "max_generations"
    assert done.generations == 3
    assert done.n_trials == sum(g.made for g in steps) == 48
    assert done.n_labels == sum(g.labels["ok"] for g in steps)
    assert {p.formula for p in done.phases if p.e_above_hull == 0} >= {"Cu", "Au"}
    assert steps[0].walk_forward == {}
    assert steps[1].walk_forward["energy_mae_mev_per_atom"] > 0


def test_phases_are_those_of_the_labeller_and_of_pymatgens_hull(in_memory):
    phases = [p for p in query_phases(in_memory, "tiny") if p["source"] == "relaxation"]
    entries = []
    for phase in phases:
        structure = Structure.from_dict(phase["structure"])
        atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
        atoms.calc = EMT()
        assert atoms.get_potential_energy() / len(atoms) == pytest.approx(phase["enthalpy_per_atom"], abs=SAME_ENERGY)
        assert np.abs(atoms.get_forces()).max() < 2 * RELAXED
        assert len(structure) == phase["n_atoms"]
        assert structure.reduced_formula.replace("CuAu", "AuCu") == phase["formula"]
        energy = phase["enthalpy_per_atom"] * len(structure)
        entries.append(PDEntry(structure.composition, energy, name=phase["phase_id"]))
    hull = PhaseDiagram(entries)
    for entry, phase in zip(entries, phases, strict=True):
        assert hull.get_e_above_hull(entry) == pytest.approx(phase["e_above_hull"], abs=1e-6)
        assert (phase["status"] == "stable") == (phase["e_above_hull"] == 0)


def test_same_seed_in_a_folder_gives_the_same_answer(in_memory, finished):
    store = embedded_job_store(finished / "store")
    store.connect()
    assert answer(store) == answer(in_memory)


def test_results_survive_the_process(finished):
    script = (
        "import json, sys; from workflows.run import open_store; from workflows.results import query_phases, report;"
        "store = open_store(sys.argv[1]);"
        "print(json.dumps([[p['formula'], p['phase_id']] for p in query_phases(store, 'tiny')]));"
        "print(report(store, 'tiny').model_dump_json())"
    )
    out = subprocess.run([sys.executable, "-c", script, str(finished)], capture_output=True, text=True, check=True)  # noqa: S603
    phases, answered = out.stdout.splitlines()
    store = embedded_job_store(finished / "store")
    store.connect()
    assert json.loads(phases) == [[p["formula"], p["phase_id"]] for p in query_phases(store, "tiny")]
    assert json.loads(answered) == report(store, "tiny").model_dump(mode="json")


def test_search_under_fireworks_completes_with_the_same_answer(
    in_memory, launchpad, tiny_config, tmp_path, monkeypatch
):
    store = embedded_job_store(tmp_path / "store")
    store.connect()
    monkeypatch.setattr(SETTINGS, "JOB_STORE", store)
    said = submit_search(tiny_config(), launchpad)
    assert "tiny" in said
    rapidfire(launchpad, FWorker(), nlaunches=0, sleep_time=0, strm_lvl="CRITICAL")

    states = Counter(fw["state"] for fw in launchpad.fireworks.find({}))
    assert set(states) == {"COMPLETED"}
    assert [wf["state"] for wf in launchpad.workflows.find({})] == ["COMPLETED"]
    assert answer(store) == answer(in_memory)

    # every job, those of later generations and the spawned ones included, asks for the worker of its stage
    categories = [(fw["name"], fw["spec"].get("_category")) for fw in launchpad.fireworks.find({})]
    for name, category in categories:
        stage = name.split(" ", maxsplit=1)[0]
        own = stage in WORKERS and not name.endswith(".collect")
        assert category == WORKERS[stage if own else "advance"]["_category"], name
    assert ("label 002.1", "dft") in categories
    assert ("label 002.final.1", "dft") in categories
