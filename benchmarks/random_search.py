"""Measure the potential on random-search structures of silicon: accuracy, calibration of the committee, warm starts.

The data are those of PyXtal_FF (Yanxon et al., Mach. Learn.: Sci. Technol. 2, 027001, 2021); get them with
``git clone https://github.com/MaterSim/PyXtal_FF`` and run

    python benchmarks/random_search.py PyXtal_FF/pyxtal_ff/datasets/Si/PyXtal --additions 5 --seeds 0 1 2 3 4 5

The files Si4, Si6, Si8 and Si16 hold energies and forces (eV, Å), no stresses, from equilibrium to 30 eV/atom above it.
A few test structures far above equilibrium make a large part of the mean errors, so these are also given for the 95 %
lowest in energy, and means over seeds tell more than one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from public_data import read_silicon

from acnn import __version__
from acnn.config import ModelConfig, TrainConfig
from acnn.evaluate import evaluate
from acnn.train import TrainResult, train

if TYPE_CHECKING:
    from ase import Atoms

    from acnn.nn.potential import Potential

LOWEST = 0.95  # part of the test structures whose errors are also given alone: those lowest in energy per atom


def fit(
    frames: list[Atoms], seed: int, args: argparse.Namespace, previous: Potential | None = None
) -> tuple[TrainResult, float]:
    """Train, and say how many CPU seconds that took."""
    settings = TrainConfig(**{"max_time": args.max_time, **args.train})
    cpu = time.process_time()
    result = train(frames, model=ModelConfig(**args.model), settings=settings, seed=seed, previous=previous)
    return result, time.process_time() - cpu


def scores(result: TrainResult, frames: list[Atoms]) -> dict[str, float]:
    """Report errors on structures that a search would keep, and how the spread finds the bad ones."""
    metrics = evaluate(result.potential, frames, settings=TrainConfig())
    return metrics.model_dump()


def all_scores(result: TrainResult, frames: list[Atoms]) -> dict[str, float]:
    """Report errors on all structures that a search would keep, and on the lowest of them."""
    energies = [atoms.get_potential_energy() / len(atoms) for atoms in frames]
    ceiling = np.quantile(energies, LOWEST)
    low = scores(result, [atoms for atoms, energy in zip(frames, energies, strict=True) if energy <= ceiling])
    return {
        **scores(result, frames),
        "lowest_energy_mae_mev_per_atom": low["energy_mae_mev_per_atom"],
        "lowest_force_mae_ev_per_a": low["force_mae_ev_per_a"],
    }


def chain(pool: list[Atoms], test: list[Atoms], seed: int, args: argparse.Namespace) -> list[dict[str, float]]:
    """Add the data piece by piece, each with a warm start; the first piece is learned from scratch."""
    rounds = []
    n = args.additions
    warm, seconds = fit(pool[: len(pool) // n], seed, args)
    print(f"first training {seconds:.1f} CPU s", flush=True)
    for number in range(1, n):
        known = pool[: (number + 1) * len(pool) // n]
        old = pool[: number * len(pool) // n]
        before = scores(warm, old)
        warm, seconds = fit(known, seed, args, warm.potential)
        after = scores(warm, old)
        entry = {
            "n_labels": len(known),
            "cpu_s": round(seconds, 1),
            "steps": warm.history[-1]["step"],
            "old_force_mae_before": before["force_mae_ev_per_a"],
            "old_force_mae_after": after["force_mae_ev_per_a"],
            "old_energy_mae_before": before["energy_mae_mev_per_atom"],
            "old_energy_mae_after": after["energy_mae_mev_per_atom"],
            **all_scores(warm, test),
        }
        rounds.append(entry)
        print("warm", json.dumps(entry), flush=True)
    return rounds


def mean(entries: list[dict[str, float]]) -> dict[str, float]:
    """Average what all runs have."""
    shared = [key for key in entries[0] if all(x[key] is not None for x in entries)]
    return {key: float(np.mean([x[key] for x in entries])) for key in shared}


def averages(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Average over the seeds: from scratch, and each warm start."""
    return {
        "from_scratch": mean([run["from_scratch"] for run in runs]),
        "warm": [mean(list(starts)) for starts in zip(*(run["warm"] for run in runs), strict=True)],
    }


def main() -> None:
    """Run the three measurements with each seed; write a JSON report."""
    parser = argparse.ArgumentParser(description="random-search structures of silicon")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n-train", type=int, default=1000)
    parser.add_argument("--n-test", type=int, default=1000)
    parser.add_argument("--additions", type=int, default=0, help="successive additions of data for the warm start")
    parser.add_argument("--max-time", type=float, default=None, help="seconds of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each draws data and weights anew")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=json.loads, default={}, help="JSON of model settings, for ablations")
    parser.add_argument("--train", type=json.loads, default={}, help="JSON of training settings, for ablations")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    frames = read_silicon(args.folder)
    runs: dict[int, dict[str, Any]] = {}
    for seed in args.seeds:
        order = np.random.default_rng(seed).permutation(len(frames))
        test = [frames[k] for k in order[: args.n_test]]
        pool = [frames[k] for k in order[args.n_test : args.n_test + args.n_train]]
        result, seconds = fit(pool, seed, args)
        scratch = {"cpu_s": round(seconds, 1), "steps": result.history[-1]["step"], **all_scores(result, test)}
        print("seed", seed, "from scratch", json.dumps(scratch), flush=True)
        runs[seed] = {"from_scratch": scratch, "warm": chain(pool, test, seed, args) if args.additions else []}
    report = {
        "benchmark": "random_search",
        "acnn": __version__,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "n_train": len(pool),
        **averages(list(runs.values())),
        "seeds": runs,
    }
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
