"""The demo: the whole method on magnesium and silicon, with real density-functional theory, checked at its end."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml
from ase.spacegroup import crystal
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from makers.documents import LabelKind, LabelStatus
from makers.errors import StopError
from makers.labelling import read_labels
from makers.labelling.calculators import check_labeller
from makers.labelling.records import LabelContext
from makers.labelling.run import label_structures
from makers.phases import enthalpy_per_atom, label_atoms
from workflows.config import SearchConfig, parse_config
from workflows.report import write_report
from workflows.results import query_phases
from workflows.run import open_store, run_search
from workflows.tables import answer_table

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms
    from jobflow import JobStore

logger = logging.getLogger(__name__)

# The only stable compound of Mg-Si: antifluorite Mg2Si, Fm-3m, a = 6.35 Å (Owen & Preston, Nature 113, 914, 1924).
COMPOUND = "Mg2Si"
SAME_ENTHALPY_EV = 0.01  # eV/atom; other cells of the same crystal have other k-points
SAME_VOLUME = 0.03
REFERENCE_PROJECT = "demo-reference"

# Fewer labels for the test suite: the same stages, the same question, the same check.
SMALLEST: dict[str, dict[str, Any]] = {
    "generate": {"n_initial": 34, "atoms": [1, 3]},
    "select": {"n_labels": 10, "end_members": 9},  # a wrong element would make every compound's height wrong
    "advance": {"max_generations": 4, "final_max": 4},
}


@dataclass(frozen=True)
class Verdict:
    """What the demo has shown.

    Parameters
    ----------
    found
        Whether the search found the stable compound.
    text
        The same for a person.
    """

    found: bool
    text: str


def prototype() -> Atoms:
    """Return the known compound as the literature has it; the search never sees it.

    Returns
    -------
    ase.Atoms
        Antifluorite Mg2Si, primitive cell.
    """
    return crystal(
        ["Si", "Mg"],
        [(0, 0, 0), (0.25, 0.25, 0.25)],
        spacegroup=225,
        cellpar=[6.35, 6.35, 6.35, 90, 90, 90],
        primitive_cell=True,
    )


def demo_config(*, smallest: bool) -> SearchConfig:
    """Return the search file of the demo.

    Parameters
    ----------
    smallest
        Whether to take the fewest labels.

    Returns
    -------
    SearchConfig
        The settings.
    """
    content = yaml.safe_load(files("workflows").joinpath("configs", "demo.yaml").read_text(encoding="utf-8"))
    if smallest:
        for section, values in SMALLEST.items():
            content[section] |= values
    return parse_config(content, source="demo.yaml")


def run_demo(folder: Path, *, smallest: bool = False) -> str:
    """Run the search, and compare its answer with the known compound relaxed by the same labeller.

    Parameters
    ----------
    folder
        Where results go.
    smallest
        Whether to take the fewest labels.

    Returns
    -------
    str
        What was found, where it is, and how to query it.

    Raises
    ------
    StopError
        If the stable compound was not found.
    """
    start = time.perf_counter()
    config = demo_config(smallest=smallest)
    check_labeller(config.label)
    logger.info(
        "demo: searching %s at %g GPa; labels by GPAW (PBE, plane waves), %d at a time; results in %s",
        config.chemsys,
        config.pressure_gpa,
        config.label.workers if config.label.door == "ase" else 1,
        folder,
    )
    answer = run_search(config, folder)
    store = open_store(folder)
    verdict = compare(store, config, folder)
    page = write_report(store, config.project, folder / "report")
    text = (
        f"{answer_table(answer)}\n\n{verdict.text}\n\n"
        f"took {(time.perf_counter() - start) / 60:.1f} minutes; results in {folder}, report {page}\n"
        f"query them: hullseeker query {folder} --stable"
    )
    if not verdict.found:
        raise StopError(text)
    return text


def compare(store: JobStore, config: SearchConfig, folder: Path) -> Verdict:
    """Relax the known compound with the labeller, and look for it among the phases.

    Parameters
    ----------
    store
        Connected job store of the search.
    config
        The search file.
    folder
        Its folder, for scratch files.

    Returns
    -------
    Verdict
        Whether the compound is there, on the hull.
    """
    logger.info("demo: relaxing the known %s (antifluorite) with the labeller, to compare", COMPOUND)
    context = LabelContext(REFERENCE_PROJECT, 0, LabelKind.RELAXATION, config.pressure_gpa, config.label)
    summary = label_structures([prototype()], context, store, folder)
    if summary.statuses != {str(LabelStatus.OK): 1}:
        return Verdict(found=False, text=f"the labeller could not relax the known {COMPOUND}: {summary.statuses}")
    reference = read_labels(store, REFERENCE_PROJECT)[0]
    structure = AseAtomsAdaptor.get_structure(label_atoms(reference))
    matcher = StructureMatcher()
    for doc in query_phases(store, config.project, formula=COMPOUND):
        found = Structure.from_dict(doc["structure"])
        if doc["source"] == "relaxation" and matcher.fit(found, structure):
            difference = doc["enthalpy_per_atom"] - enthalpy_per_atom(reference, config.pressure_gpa)
            volumes = found.volume / len(found) * len(structure) / structure.volume
            if abs(difference) > SAME_ENTHALPY_EV or abs(volumes - 1) > SAME_VOLUME:
                continue  # the matcher scales volumes away, so the same lattice at another size would pass
            stable = doc["status"] == "stable"
            text = (
                f"found the known compound: {COMPOUND}, {doc['space_group']}, {1000 * difference:+.1f} meV/atom from "
                f"the prototype relaxed by the same labeller, {'on' if stable else 'NOT on'} the hull, "
                f"rediscovered {doc['times_found']} times"
            )
            return Verdict(found=stable, text=text)
    return Verdict(found=False, text=f"did not find the known compound {COMPOUND} (antifluorite, Fm-3m)")
