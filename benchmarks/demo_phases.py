"""Which phases of Mg-Si are stable for the demo's labeller: known prototypes relaxed by GPAW at the demo's settings.

Run: ``python benchmarks/demo_phases.py [--out FILE]`` (about three minutes on two cores). The demo's claim rests on it:
Mg2Si, antifluorite, is the only stable compound, and the ground states of the elements are the right ones.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal
from jobflow import JobStore
from maggma.stores import MemoryStore

from csp.hull import Hull
from makers.documents import LabelKind
from makers.labelling import read_labels
from makers.labelling.records import LabelContext
from makers.labelling.run import label_structures
from makers.phases import enthalpy_per_atom
from workflows.demo import demo_config, prototype

CUBIC = [90, 90, 90]


def prototypes() -> dict[str, Atoms]:
    """Return the competing crystals by name."""
    return {
        "Mg hcp": bulk("Mg", "hcp", a=3.19, c=5.18),
        "Mg fcc": bulk("Mg", "fcc", a=4.52),
        "Mg bcc": bulk("Mg", "bcc", a=3.57),
        "Si diamond": bulk("Si", "diamond", a=5.47),
        "Si simple hexagonal": crystal(["Si"], [(0, 0, 0)], spacegroup=191, cellpar=[2.6, 2.6, 2.45, 90, 90, 120]),
        "Mg2Si antifluorite": prototype(),
        "MgSi CsCl": crystal(["Mg", "Si"], [(0, 0, 0), (0.5,) * 3], spacegroup=221, cellpar=[3.3] * 3 + CUBIC),
        "MgSi rock salt": crystal(
            ["Mg", "Si"], [(0, 0, 0), (0.5,) * 3], spacegroup=225, cellpar=[5.5] * 3 + CUBIC, primitive_cell=True
        ),
        "MgSi L1_0": crystal(["Mg", "Si"], [(0, 0, 0), (0.5,) * 3], spacegroup=123, cellpar=[3.0, 3.0, 4.0, *CUBIC]),
        "Mg3Si L1_2": crystal(["Si", "Mg"], [(0, 0, 0), (0.5, 0.5, 0)], spacegroup=221, cellpar=[4.3] * 3 + CUBIC),
        "Mg3Si D0_3": crystal(
            ["Si", "Mg", "Mg"],
            [(0, 0, 0), (0.25,) * 3, (0.5,) * 3],
            spacegroup=225,
            cellpar=[6.8] * 3 + CUBIC,
            primitive_cell=True,
        ),
        "MgSi2 fluorite": crystal(
            ["Mg", "Si"], [(0, 0, 0), (0.25,) * 3], spacegroup=225, cellpar=[5.9] * 3 + CUBIC, primitive_cell=True
        ),
        "MgSi2 AlB2": crystal(
            ["Mg", "Si"], [(0, 0, 0), (1 / 3, 2 / 3, 0.5)], spacegroup=191, cellpar=[3.8, 3.8, 4.2, 90, 90, 120]
        ),
    }


def main() -> None:
    """Relax, print the table, check the claim, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file")
    out = parser.parse_args().out
    config = demo_config(smallest=False)
    named = prototypes()
    frames = []
    for name, atoms in named.items():
        frame = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=True)
        frame.info = {"reason": "reference", "phase_id": name}
        frames.append(frame)
    store = JobStore(MemoryStore(), additional_stores={"data": MemoryStore()})
    store.connect()
    context = LabelContext("reference", 0, LabelKind.RELAXATION, 0.0, config.label)
    with tempfile.TemporaryDirectory() as scratch:
        label_structures(frames, context, store, Path(scratch))
    labels = {label.phase_id: label for label in read_labels(store, "reference")}
    names = [name for name in named if name in labels]
    formulas = [labels[name].formula for name in names]
    enthalpies = np.array([enthalpy_per_atom(labels[name], 0.0) for name in names])
    heights = Hull.from_entries(formulas, enthalpies).e_above_many(formulas, enthalpies)
    elements = Hull.from_entries(
        [f for f in formulas if f in {"Mg", "Si"}],
        [e for f, e in zip(formulas, enthalpies, strict=True) if f in {"Mg", "Si"}],
    )
    formation = elements.e_above_many(formulas, enthalpies)
    for row in zip(names, 1000 * formation, 1000 * heights, strict=True):
        print("{:22s} formation {:8.1f} meV/atom   above the hull {:7.1f} meV/atom".format(*row))
    stable = [name for name, height in zip(names, heights, strict=True) if height < 1e-6]
    print("stable:", ", ".join(stable))
    if out:
        result = {
            "settings": config.label.model_dump(mode="json"),
            "hardware": platform.processor() or platform.machine(),
            "versions": next(iter(labels.values())).provenance.versions,
            "formation_mev_per_atom": dict(zip(names, np.round(1000 * formation, 2).tolist(), strict=True)),
            "above_hull_mev_per_atom": dict(zip(names, np.round(1000 * heights, 2).tolist(), strict=True)),
            "stable": stable,
        }
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    assert set(stable) == {"Mg hcp", "Si diamond", "Mg2Si antifluorite"}, stable


if __name__ == "__main__":
    main()
