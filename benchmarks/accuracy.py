"""Compare models trained within the same CPU minutes on the same public data, one thread each, in one run.

    python benchmarks/accuracy.py --data ag-au=PATH silicon=PATH carbon=PATH --minutes 5 30 \
        --peer-python PYTHON --models acnn mace-16 mace-32 pypolymlp --out accuracy.json

``PYTHON`` is an interpreter with mace-torch and pypolymlp. Where the data come from is in `public_data.py`; how each
model is trained is in `peers.py`. Labels that are wild by the default limits of ACNN are set aside for all models
alike, from train and test, and counted. Every model is trained in a process of its own, whose CPU seconds are counted
from its start to the end of its training; its predictions are scored here, by the same code for all. Each result is
written as soon as it is there; those that a report holds already are not computed again. A model that fails is
entered with its message.

pypolymlp has no budget of its own: its models are fitted from small to large until one needs more than the budget
(it is ended then), and of those within the budget the one with the smallest force error on its own held-out part is
its result. All of them are in the report. The figures that begin with ``near`` are of the test structures within
2 eV/atom of the lowest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.io import write
from ase.units import GPa
from peers import RUNGS
from public_data import SETS, without_wild

from acnn import __version__
from acnn.config import TrainConfig
from acnn.train.labels import energies_above_reference, read_labels

if TYPE_CHECKING:
    from ase import Atoms

MODELS = ("acnn", "mace-16", "mace-32", "pypolymlp")
NEAR = 2.0  # eV/atom above the lowest: what a search would look at
OVER = 1.02  # times the budget: more than this is marked
THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")


class Report:
    """The results so far, on disk after every change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"sets": {}}

    def save(self) -> None:
        """Write, replacing the file at once."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n")
        part.replace(self.path)


def export(frames: list[Atoms], path: Path) -> None:
    """Write structures with their labels under names that no reader takes for a calculator's."""
    copies = []
    for atoms in frames:
        copy, known = atoms.copy(), atoms.calc.results
        copy.info = {"REF_energy": known["energy"]}
        copy.arrays["REF_forces"] = known["forces"]
        if "stress" in known:
            xx, yy, zz, yz, xz, xy = known["stress"]
            copy.info["REF_stress"] = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        copies.append(copy)
    write(path, copies, format="extxyz")


def heights(frames: list[Atoms]) -> np.ndarray:
    """Give energies above the lowest of the set, after a fit of one energy per element, eV/atom."""
    excess = energies_above_reference(read_labels(frames, TrainConfig(max_energy=1e9)).labels)
    return excess - excess.min()


def score(frames: list[Atoms], path: Path) -> dict[str, float | None]:
    """Compare predictions with the labels of the test set."""
    found = np.load(path)
    sizes = np.array([len(atoms) for atoms in frames])
    known = [atoms.calc.results for atoms in frames]
    energy = (found["energies"] - np.array([k["energy"] for k in known])) / sizes
    force = found["forces"] - np.concatenate([k["forces"] for k in known])
    assert np.isfinite(energy).all()
    assert np.isfinite(force).all()
    near = heights(frames) < NEAR
    cut = np.repeat(near, sizes)
    stressed = [number for number, k in enumerate(known) if "stress" in k]
    stress = None
    if stressed:
        stress = (found["stresses"][stressed] - np.array([known[n]["stress"] for n in stressed])) / GPa
    return {
        "energy_mae_mev_per_atom": 1e3 * float(np.abs(energy).mean()),
        "energy_rmse_mev_per_atom": 1e3 * float(np.sqrt(np.square(energy).mean())),
        "force_mae_ev_per_a": float(np.abs(force).mean()),
        "force_rmse_ev_per_a": float(np.sqrt(np.square(force).mean())),
        "near_structures": int(near.sum()),
        "near_energy_mae_mev_per_atom": 1e3 * float(np.abs(energy[near]).mean()),
        "near_force_mae_ev_per_a": float(np.abs(force[cut]).mean()),
        "stress_mae_gpa": None if stress is None else float(np.abs(stress).mean()),
    }


class Bench:
    """One data set: its files, and trainings on them."""

    def __init__(self, name: str, path: Path, args: argparse.Namespace, report: Report) -> None:
        self.args, self.report = args, report
        self.work = args.work / name
        self.work.mkdir(parents=True, exist_ok=True)
        train, self.test, dropped = without_wild(*SETS[name](path))
        if args.smoke:
            train, self.test = train[:: max(1, len(train) // args.smoke)], self.test[:: len(self.test) // 20]
        export(train, self.work / "train.extxyz")
        export(self.test, self.work / "test.extxyz")
        self.entry = report.content["sets"].setdefault(name, {"budgets": {}, "pypolymlp": {}})
        self.entry |= {
            "n_train": len(train),
            "n_test": len(self.test),
            "train_atoms": sum(len(atoms) for atoms in train),
            "set_aside": dropped,
        }

    def train(self, model: str, minutes: float, rung: int = 0) -> dict[str, Any]:
        """Train and score one model; errors are part of the answer."""
        out = self.work / f"{model}-{minutes:g}min" / str(rung)
        shutil.rmtree(out, ignore_errors=True)
        python = sys.executable if model == "acnn" else self.args.peer_python
        command = [python, Path(__file__).with_name("peers.py"), model, "--cpu-seconds", 60 * minutes, "--out", out]
        command += ["--train", self.work / "train.extxyz", "--test", self.work / "test.extxyz"]
        command += ["--seed", self.args.seed, "--rung", rung]
        threads = {f"{name}_NUM_THREADS": "1" for name in THREADS}
        done = subprocess.run(  # noqa: S603 - our own script
            [str(word) for word in command], env=os.environ | threads, capture_output=True, text=True, check=False
        )
        if done.returncode == -signal.SIGXCPU:
            return {"over_cpu_s": 60 * minutes}
        if done.returncode:
            return {"error": f"exit {done.returncode}: {(done.stderr or done.stdout)[-2000:]}"}
        record: dict[str, Any] = json.loads((out / "record.json").read_text())
        record["over_budget"] = record["cpu_s"] > OVER * 60 * minutes
        return record | score(self.test, out / "predictions.npz")

    def ladder(self, minutes: float) -> dict[str, Any]:
        """Fit pypolymlp's models from small to large; give the best within the budget."""
        rungs = self.entry["pypolymlp"]
        for number in range(len(RUNGS)):
            found = rungs.get(str(number), {})
            known = "error" in found or "cpu_s" in found or found.get("over_cpu_s", 0.0) >= 60 * minutes
            if not known:
                rungs[str(number)] = {"settings": RUNGS[number], **self.train("pypolymlp", minutes, number)}
                self.report.save()
                print("  rung", number, json.dumps(rungs[str(number)])[:400], flush=True)
            if rungs[str(number)].get("cpu_s", 1e30) > 60 * minutes:  # too long, or failed: so would the larger ones
                break
        inside = {n: r for n, r in rungs.items() if r.get("cpu_s", 1e30) <= 60 * minutes}
        if not inside:
            return {"error": "no model of the ladder within the budget", "rungs": rungs}
        best = min(inside, key=lambda n: float(inside[n]["held_out_force_mae_ev_per_a"]))
        return {"rung": int(best), **inside[best]}

    def run(self) -> None:
        """Train every model with every budget, the models in turn."""
        for minutes in self.args.minutes:
            results = self.entry["budgets"].setdefault(f"{minutes:g} min", {})
            for model in self.args.models:
                if "energy_mae_mev_per_atom" in results.get(model, {}):
                    continue
                print(f"{self.work.name} {minutes:g} min {model}", flush=True)
                load = os.getloadavg()[0]
                results[model] = self.ladder(minutes) if model == "pypolymlp" else self.train(model, minutes)
                results[model]["load_average_before"] = load
                self.report.save()
                print(" ", json.dumps(results[model])[:600], flush=True)


def verdict(content: dict[str, Any]) -> dict[str, Any]:
    """Divide ACNN's errors by the smallest of the others, for each set and budget."""
    ratios: dict[str, Any] = {}
    for name, entry in content["sets"].items():
        for minutes, results in entry["budgets"].items():
            for key in ("energy_mae_mev_per_atom", "force_mae_ev_per_a", "stress_mae_gpa"):
                others = [r[key] for model, r in results.items() if model != "acnn" and r.get(key)]
                ours = results.get("acnn", {}).get(key)
                if ours and others:
                    ratios.setdefault(f"{name}, {minutes}", {})[key] = ours / min(others)
    return ratios


def table(content: dict[str, Any]) -> None:
    """Print what was found."""
    for name, entry in content["sets"].items():
        for minutes, results in entry["budgets"].items():
            for model, r in results.items():
                if "error" in r:
                    print(f"{name:8} {minutes:7} {model:10} failed: {r['error'][-100:]!r}")
                    continue
                stress = "" if r["stress_mae_gpa"] is None else f"{r['stress_mae_gpa']:8.3f} GPa"
                print(
                    f"{name:8} {minutes:7} {model:10} {r['energy_mae_mev_per_atom']:9.3f} meV/atom "
                    f"{r['force_mae_ev_per_a']:8.4f} eV/Å {stress} {r['cpu_s']:7.0f} CPU s"
                )


def main() -> None:
    """Run what the report does not hold yet."""
    parser = argparse.ArgumentParser(description="models compared at equal CPU minutes on public data")
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=PATH", help=f"names: {', '.join(SETS)}")
    parser.add_argument("--minutes", nargs="+", type=float, default=[5.0, 30.0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", type=int, default=0, help="use about so many training structures, to try the script")
    parser.add_argument("--work", type=Path, default=None, help="folder for data and models; default: beside --out")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.work = (args.work or args.out.with_suffix(".work")).resolve()
    report = Report(args.out)
    info = Path("/proc/cpuinfo").read_text().splitlines()
    report.content |= {
        "benchmark": "accuracy",
        "acnn": __version__,
        "torch": torch.__version__,
        "machine": next((line.split(":")[1].strip() for line in info if "model name" in line), platform.processor()),
        "cores": os.cpu_count(),
        "threads": 1,
        "seed": args.seed,
        "smoke": args.smoke,
        "finished": time.strftime("%Y-%m-%d %H:%M"),
    }
    for pair in args.data:
        name, _, path = pair.partition("=")
        Bench(name, Path(path), args, report).run()
    report.content["acnn_over_best_other"] = verdict(report.content)
    report.content["finished"] = time.strftime("%Y-%m-%d %H:%M")
    report.save()
    table(report.content)


if __name__ == "__main__":
    main()
