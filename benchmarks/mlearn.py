"""Measure the potential on the mlearn sets (Zuo et al., J. Phys. Chem. A 124, 731, 2020), all with one configuration.

Get the data with ``git clone https://github.com/materialsvirtuallab/mlearn`` and run

    python benchmarks/mlearn.py mlearn/data --elements Si Cu Mo --max-time 1800 --out mlearn.json

Where an element's training set cannot be had from there, `public_data.py` says what may take its place. What the
stresses of the labels hold and their energies do not, their Pulay stress, is learned with them: the errors of stresses
are reported with and without it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch
from public_data import mlearn

from acnn import __version__, checkpoint
from acnn.config import ModelConfig, TrainConfig
from acnn.evaluate import evaluate
from acnn.train import train

PUBLISHED = {  # moment tensor potential: energy meV/atom, force eV/Å, stress GPa, evaluated again on the test sets
    "Si": (2.31, 0.056, 0.41),
    "Cu": (0.41, 0.0069, 1.19),
    "Mo": (2.94, 0.090, 0.51),
}


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
        frames, test = mlearn(args.folder, element)
        started, cpu = time.monotonic(), time.process_time()
        result = train(frames, model=model, settings=settings, seed=args.seed)
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        metrics = evaluate(result.potential, test)
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
