"""Squeeze random crystals until their atoms overlap, then relax them with a potential that learned 200 labels.

Run: ``OMP_NUM_THREADS=1 python benchmarks/squeeze.py [--n 10000] [--out FILE]``. The labels are EMT's, of random
Al-Cu crystals. Each crystal is scaled down until its closest pair is at 0.4 to 0.95 of the least distance
that the relaxer believes. It is relaxed twice: with the guards of a search, and with guards so wide that nothing but
the potential's own repulsion can push the atoms apart. What ends well must have no pair too near: asserted, with
distances worked out again by ASE.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from relax import labelled, machine, random_crystals

from acnn.config import ModelConfig, RelaxConfig, TrainConfig
from acnn.relax import Relaxed, RelaxStatus, relax
from acnn.relax.guard import distance_table
from acnn.train import train

if TYPE_CHECKING:
    from ase import Atoms

GUARDS = RelaxConfig().bonds_scale


def closest(atoms: Atoms, table: np.ndarray, reach: float) -> float:
    """Find the shortest distance in units of its pair's least one; infinite where all are beyond the reach (Å)."""
    first, second, lengths = neighbor_list("ijd", atoms, reach)
    limits = table[atoms.numbers[first], atoms.numbers[second]]
    return float((lengths / limits).min()) if len(lengths) else np.inf


def squeeze(frames: list[Atoms], table: np.ndarray, rng: np.random.Generator) -> list[Atoms]:
    """Scale each cell down until its closest pair is at 0.4 to 0.95 of the guard's distance."""
    squeezed = []
    for atoms in frames:
        copy = atoms.copy()
        factor = rng.uniform(0.4, 0.95) * GUARDS / closest(copy, table, 5.0)
        copy.set_cell(copy.cell.array * factor, scale_atoms=True)
        squeezed.append(copy)
    return squeezed


def outcome(results: list[Relaxed], table: np.ndarray) -> dict[str, Any]:
    """Count the ends, and what ended with a pair too near without being called unsafe."""
    reach = 2.5 * float(covalent_radii[29])
    ratios = np.array([closest(r.atoms, table, reach) for r in results])
    well = np.array([r.status is not RelaxStatus.UNSAFE for r in results])
    return {
        "outcomes": dict(Counter(r.status.value + (f": {r.reason}" if r.reason else "") for r in results)),
        "too_near_unnoticed": int((well & (ratios < GUARDS)).sum()),
        "converged_too_near": int(
            sum(ratio < GUARDS and r.status is RelaxStatus.CONVERGED for ratio, r in zip(ratios, results, strict=True))
        ),
    }


def main() -> None:
    """Run both relaxations and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    labels = labelled(random_crystals(100, 200, (2, 8), (9.0, 22.0)))
    potential = train(labels, model=ModelConfig(), settings=TrainConfig(), seed=0).potential
    table = distance_table(None)
    frames = squeeze(random_crystals(8, args.n, (2, 8)), table, np.random.default_rng(0))
    report: dict[str, Any] = {"machine": machine(), "structures": len(frames), "labels": len(labels)}
    # wide: pairs may be a thousand times too near, volumes grow a million times; any stress and energy will do
    wide = RelaxConfig(bonds_scale=0.001, volume_growth=1e6, volume_shrink=1e-3, energy_drop=1e9, stress_limit_gpa=1e12)
    for name, settings in (("guards_of_a_search", RelaxConfig()), ("no_guards", wide)):
        start = time.perf_counter()
        results = list(relax(frames, potential, settings, pressure_gpa=0.0))
        report[name] = outcome(results, table) | {"seconds": time.perf_counter() - start}
        print(name, json.dumps(report[name]), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    assert report["guards_of_a_search"]["too_near_unnoticed"] == 0
    assert report["no_guards"]["converged_too_near"] == 0


if __name__ == "__main__":
    main()
