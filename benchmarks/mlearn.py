"""Measure the potential on the mlearn sets (Zuo et al., J. Phys. Chem. A 124, 731, 2020), all with one configuration.

Get the data with ``git clone https://github.com/materialsvirtuallab/mlearn`` and run

    python benchmarks/mlearn.py mlearn/data --elements Si Cu Mo --max-time 1800 --out mlearn.json

The sets hold energies (eV), forces (eV/Å) and virial stresses (kbar, compression positive). The order of the stress
components is xx yy zz xy xz yz, except in the group Elastic of Si, where it is xx yy zz xy yz xz: found by comparing
with potentials that learned energies and forces alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import GPa

from acnn import __version__, checkpoint
from acnn.config import ModelConfig, TrainConfig
from acnn.evaluate import evaluate
from acnn.train import train

PUBLISHED = {  # moment tensor potential: energy meV/atom, force eV/Å, stress GPa, evaluated again on the test sets
    "Si": (2.31, 0.056, 0.41),
    "Cu": (0.41, 0.0069, 1.19),
    "Mo": (2.94, 0.090, 0.51),
}
KBAR = 0.1 * GPa


def read(path: Path) -> list[Atoms]:
    """Read one file of the set.

    Parameters
    ----------
    path
        A JSON file.

    Returns
    -------
    list
        Structures with their labels.
    """
    frames = []
    for entry in json.loads(path.read_text()):
        structure, outputs = entry["structure"], entry["outputs"]
        symbols = [site["species"][0]["element"] for site in structure["sites"]]
        positions = [site["xyz"] for site in structure["sites"]]
        atoms = Atoms(symbols, positions=positions, cell=structure["lattice"]["matrix"], pbc=True)
        xx, yy, zz, xy, fifth, sixth = outputs["virial_stress"]
        swapped = entry.get("group") == "Elastic" and symbols[0] == "Si"
        yz, xz = (fifth, sixth) if swapped else (sixth, fifth)
        stress = -KBAR * np.array([xx, yy, zz, yz, xz, xy])
        forces = np.array(outputs["forces"])
        atoms.calc = SinglePointCalculator(atoms, energy=outputs["energy"], forces=forces, stress=stress)
        atoms.info["group"] = str(entry.get("group", ""))
        frames.append(atoms)
    return frames


def find(folder: Path, element: str, part: str) -> Path:
    """Find a file in the layout of the repository, or flat."""
    nested = folder / element / f"{part}.json"
    return nested if nested.exists() else folder / f"{element}-{part}.json"


def main() -> None:
    """Train and test on each element; write a JSON report."""
    parser = argparse.ArgumentParser(description="mlearn: train on each element, report test errors")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--elements", nargs="+", default=["Si", "Cu", "Mo"])
    parser.add_argument("--max-time", type=float, default=1800.0, help="seconds of training for each element")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=json.loads, default={}, help="JSON of model settings, for ablations")
    parser.add_argument("--train", type=json.loads, default={}, help="JSON of training settings, for ablations")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--save", type=Path, default=None, help="folder for the potentials")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = {
        "benchmark": "mlearn",
        "acnn": __version__,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "seed": args.seed,
        "max_time_s": args.max_time,
        "results": {},
    }
    for element in args.elements:
        model = ModelConfig(**args.model)
        settings = TrainConfig(**{"max_time": args.max_time, **args.train})
        started, cpu = time.monotonic(), time.process_time()
        result = train(read(find(args.folder, element, "training")), model=model, settings=settings, seed=args.seed)
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        metrics = evaluate(result.potential, read(find(args.folder, element, "test")))
        entry = {
            "wall_s": round(seconds, 1),
            "cpu_s": round(cpu, 1),
            "steps": result.history[-1]["step"],
            "n_train": result.n_train,
            "dtype": model.dtype,
            **metrics.model_dump(),
        }
        if element in PUBLISHED:
            entry["published_mtp"] = PUBLISHED[element]
        report["results"][element] = entry
        print(element, json.dumps(entry), flush=True)
        if args.save is not None:
            checkpoint.save(result.potential, args.save / f"mlearn-{element}.acnn")
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
