"""Relaxation speed, side by side on the same random crystals with the same ACNN.

Run: ``OMP_NUM_THREADS=1 python benchmarks/relax.py [--quick] [--workers | --minima] [--model FILE] [--out FILE]``.
Without model, one is trained on EMT labels of random Al-Cu crystals. Compared are `acnn.relax`, ASE (FIRE on a
FrechetCellFilter) and, where it is installed, TorchSim (FIRE with the Frechet cell filter). What the relaxer promises
is checked in the same run (`relax_checks.py`). One thread each; CPU seconds are compared, since others may share the
cores. All stop at one criterion, which their ends are held against; rates count the converged ones only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import Counter
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import relax_checks as checks
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.neighborlist import neighbor_list
from ase.optimize import FIRE
from ase.units import GPa
from relax_checks import FMAX, RESIDUAL_GPA

from acnn import checkpoint
from acnn.batch import Batch
from acnn.calculator import ACNNCalculator
from acnn.config import ModelConfig, RelaxConfig, TrainConfig
from acnn.neighbors import build_neighbors
from acnn.nn.potential import Potential
from acnn.relax import Relaxed, RelaxStatus, relax
from acnn.train import train

CLOSEST = 2.0  # Å, of the random crystals
PRESSURE_GPA = 50.0
MOST_STEPS = 1000  # of a peer
CONVERGED = 0.9  # share of structures that must converge on either side of a comparison


def random_crystals(
    seed: int, n: int, sizes: tuple[int, int], volume: tuple[float, float] = (15.0, 19.0)
) -> list[Atoms]:
    """Make random Al-Cu crystals with no two atoms closer than 2 Å."""
    rng = np.random.default_rng(seed)
    frames: list[Atoms] = []
    while len(frames) < n:
        count = int(rng.integers(sizes[0], sizes[1] + 1))
        cell = np.eye(3) + rng.normal(0, 0.15, (3, 3))
        cell *= np.cbrt(rng.uniform(*volume) * count / abs(np.linalg.det(cell)))
        scaled = [rng.random(3)]
        for _ in range(300):
            trial = rng.random(3)
            delta = np.array(scaled) - trial
            if np.linalg.norm((delta - np.round(delta)) @ cell, axis=1).min() > CLOSEST:
                scaled.append(trial)
            if len(scaled) == count:
                break
        kinds = [("Al", "Cu")[k] for k in rng.integers(0, 2, len(scaled))]
        atoms = Atoms(kinds, cell=cell, scaled_positions=scaled, pbc=True)
        if len(scaled) == count and not len(neighbor_list("i", atoms, CLOSEST)):
            frames.append(atoms)
    return frames


def labelled(frames: list[Atoms]) -> list[Atoms]:
    """Give each structure the energy, forces and stress of EMT."""
    done = []
    for atoms in frames:
        copy = atoms.copy()
        copy.calc = EMT()
        values = {"energy": copy.get_potential_energy(), "forces": copy.get_forces(), "stress": copy.get_stress()}
        copy.calc = SinglePointCalculator(copy, **values)
        done.append(copy)
    return done


def get_model(path: Path | None, seconds: float) -> Potential:
    """Load a potential, or train one."""
    if path is not None and path.exists():
        return checkpoint.load(path)
    frames = random_crystals(100, 250, (2, 12), (9.0, 22.0)) + random_crystals(101, 50, (1, 3), (9.0, 40.0))
    result = train(labelled(frames), model=ModelConfig(), settings=TrainConfig(max_time=seconds), seed=0)
    if path is not None:
        checkpoint.save(result.potential, path)
    return result.potential


def time_calls(potential: Potential, repeats: int) -> dict[str, float]:
    """Time energy, forces and stress with the neighbour search, microseconds per atom."""
    frames = random_crystals(1, 170, (8, 16))
    batch = Batch.from_atoms(frames, potential.dtype, "cpu")
    found: dict[str, list[float]] = {"neighbors": [], "compute": [], "together": [], "together_cpu": []}
    for _ in range(repeats + 2):
        cpu, start = time.thread_time(), time.perf_counter()
        neighbors = build_neighbors(batch, potential.cutoff)
        middle = time.perf_counter()
        potential.compute(batch, neighbors)
        end = time.perf_counter()
        for name, seconds in (
            ("neighbors", middle - start),
            ("compute", end - middle),
            ("together", end - start),
            ("together_cpu", time.thread_time() - cpu),
        ):
            found[name].append(1e6 * seconds / len(batch.numbers))
    figures = {f"{name}_us_per_atom": float(np.median(values[2:])) for name, values in found.items()}
    return figures | {
        "atoms": len(batch.numbers),
        "neighbors_per_atom": float(neighbors.mask.sum() / len(batch.numbers)),
        "best_together_us_per_atom": float(np.min(found["together"][2:])),
        "best_together_cpu_us_per_atom": float(np.min(found["together_cpu"][2:])),
    }


def time_cutoffs(repeats: int) -> dict[str, Any]:
    """Time calls for growing cutoffs: the cost must be a line in the number of neighbours."""
    rows = []
    for cutoff in (4.0, 5.0, 6.0, 7.0):
        model = ModelConfig(radial_cutoff=cutoff, angular_cutoff=cutoff)
        found = time_calls(Potential(model, ["Al", "Cu"], seed=0), repeats)
        rows.append((found["neighbors_per_atom"], found["best_together_cpu_us_per_atom"]))
    x, y = np.array(rows).T
    slope, start = np.polyfit(x, y, 1)
    return {
        "neighbors_per_atom": x.tolist(),
        "us_per_atom": y.tolist(),
        "us_per_neighbor": slope,
        "us_without_neighbors": start,
        "largest_deviation": float(np.abs(y / (start + slope * x) - 1).max()),
    }


def time_ours(potential: Potential, frames: list[Atoms], workers: int = 1) -> tuple[dict[str, Any], list[Relaxed]]:
    """Relax with the batched relaxer."""
    settings = RelaxConfig(fmax=FMAX, workers=workers)
    list(relax(frames[:4], potential, settings, pressure_gpa=0.0))
    cpu, start = time.process_time(), time.perf_counter()
    results = list(relax(frames, potential, settings, pressure_gpa=0.0))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    calls = np.array([r.n_steps for r in results])
    figures = {
        "structures": len(frames),
        "structures_per_second": len(frames) / seconds,
        "cpu_seconds": cpu if workers == 1 else None,
        "structures_per_cpu_second": len(frames) / cpu if workers == 1 else None,
        "median_calls": float(np.median(calls)),
        "mean_calls": float(calls.mean()),
        "p90_calls": float(np.percentile(calls, 90)),
        "outcomes": dict(Counter(r.status.value + (f": {r.reason}" if r.reason else "") for r in results)),
    }
    return figures, results


def time_ase(potential: Potential, frames: list[Atoms]) -> tuple[dict[str, Any], list[Atoms]]:
    """Relax one by one with ASE; also the final structures."""
    calls, ends = [], []
    cpu, start = time.process_time(), time.perf_counter()
    for atoms in frames:
        copy = atoms.copy()
        copy.calc = ACNNCalculator(potential)
        optimizer = FIRE(FrechetCellFilter(copy), logfile=None)
        for _ in optimizer.irun(fmax=0.0, steps=MOST_STEPS):
            fmax = np.linalg.norm(copy.get_forces(), axis=1).max()
            if fmax < FMAX and np.abs(copy.get_stress()).max() / GPa < RESIDUAL_GPA:
                break
        calls.append(optimizer.get_number_of_steps() + 1)
        ends.append(copy)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    figures = {
        "structures": len(frames),
        "structures_per_second": len(frames) / seconds,
        "cpu_seconds": cpu,
        "structures_per_cpu_second": len(frames) / cpu,
        "median_calls": float(np.median(calls)),
        "mean_calls": float(np.mean(calls)),
        "converged": checks.count_converged(potential, ends),
    }
    return figures, ends


def time_torchsim(potential: Potential, frames: list[Atoms]) -> dict[str, Any] | None:
    """Relax all together with TorchSim 0.3, if it is there."""
    try:
        ts = import_module("torch_sim")
        model = import_module("acnn.torchsim").ACNNModel(potential)
    except (ImportError, ValueError):
        return None
    cpu, start = time.process_time(), time.perf_counter()
    final = ts.optimize(
        system=[atoms.copy() for atoms in frames],
        model=model,
        optimizer=ts.frechet_cell_fire,
        convergence_fn=lambda state, _: checks.converged(state.forces, state.stress, state.system_idx),
        max_steps=MOST_STEPS,
        steps_between_swaps=1,
    )
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "structures": len(frames),
        "converged": checks.count_converged(potential, final.to_atoms()),
        "structures_per_second": len(frames) / seconds,
        "cpu_seconds": cpu,
        "structures_per_cpu_second": len(frames) / cpu,
        "mean_energy_per_atom": float(final.energy.sum() / final.positions.shape[0]),
    }


def times_faster(ours: dict[str, Any], results: list[Relaxed], theirs: dict[str, Any]) -> float:
    """Compare converged structures per CPU second on the first structures, those that the peer relaxed.

    Our seconds are all that our relaxation took, in proportion to the calls that these structures took part in.
    """
    n = theirs["structures"]
    calls = np.array([r.n_steps for r in results])
    seconds = ours["cpu_seconds"] * calls[:n].sum() / calls.sum()
    n_converged = sum(r.status is RelaxStatus.CONVERGED for r in results[:n])
    assert theirs["converged"] >= CONVERGED * n, f"{theirs['converged']} of {n} converged: no peer to be compared with"
    assert n_converged >= CONVERGED * n, f"{n_converged} of {n} of ours converged"
    return float((n_converged / seconds) / (theirs["converged"] / theirs["cpu_seconds"]))


def machine() -> dict[str, Any]:
    """Say what this ran on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    packages = ("torch", "ase", "numpy", "torch-sim-atomistic")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "avx512": "AVX512" in torch.backends.cpu.get_cpu_capability(),
    }


def scale(potential: Potential, report: dict[str, Any], *, quick: bool) -> None:
    """Relax the same crystals in this process and in two others, their start included."""
    frames = random_crystals(7, 500, (12, 12)) * (4 if quick else 40)
    report["one_process"], _ = time_ours(potential, frames)
    report["two_processes"], _ = time_ours(potential, frames, workers=2)
    rate = "structures_per_second"
    report["scaling"] = report["two_processes"][rate] / report["one_process"][rate]
    report["reached"] = {"scaling": report["scaling"] >= 1.8}


def minima(potential: Potential, report: dict[str, Any], *, quick: bool) -> None:
    """Relax random crystals of two to six atoms beside ASE: of larger ones few end in the same basin."""
    frames = random_crystals(11, 40 if quick else 400, (2, 6))
    report["ours"], results = time_ours(potential, frames)
    checks.promises(potential, frames, results, 0.0)
    report["ase"], ends = time_ase(potential, frames)
    found = report["random_starts"] = checks.same_minima(results, ends)
    report["reached"] = {
        "99 of 100 minima": found["same_energy"] >= 0.99 * found["same_basin"],
        "a hundred in the same basin": quick or found["same_basin"] >= 100,
    }


def compare(potential: Potential, report: dict[str, Any], *, quick: bool) -> None:
    """Time calls and relaxations beside the peers on the same crystals, and check what every relaxation promises."""
    n_ours, n_ase, n_near = (300, 16, 12) if quick else (2000, 100, 120)
    frames = random_crystals(7, n_ours, (12, 12))
    report["call"] = time_calls(potential, 9)
    report["cutoffs"] = time_cutoffs(9)
    report["ours"], results = time_ours(potential, frames)
    checks.promises(potential, frames, results, 0.0)
    report["ase"], ends = time_ase(potential, frames[:n_ase])
    report["random_starts"] = checks.same_minima(results[:n_ase], ends)
    near = checks.near_minima([r for r in results if not r.reason][:n_near])
    ours = list(relax(near, potential, RelaxConfig(fmax=FMAX), pressure_gpa=0.0))
    report["near_minima"] = checks.same_minima(ours, time_ase(potential, near)[1])
    report["under_pressure"] = checks.under_pressure(potential, frames[: n_ours // 10], PRESSURE_GPA)
    report["symmetric"] = checks.symmetric(potential)
    report["alone"] = checks.alone(potential, frames[:20])
    report["torchsim"] = time_torchsim(potential, frames[: 4 * n_ase])
    rate = "structures_per_cpu_second"
    calls = float(np.median([result.n_steps for result in results[:n_ase]]))
    report["times_faster_than_ase"] = times_faster(report["ours"], results, report["ase"])
    report["calls_over_fire"] = calls / report["ase"]["median_calls"]
    report["reached"] = {
        "40 us per atom": report["call"]["together_cpu_us_per_atom"] <= 40.0,
        "linear in neighbours": report["cutoffs"]["largest_deviation"] < 0.1,
        "15 a second": report["ours"][rate] >= 15.0,
        "20 times ASE": report["times_faster_than_ase"] >= 20.0,
        "half the calls of FIRE": report["calls_over_fire"] <= 0.5,
        "99 of 100 minima": report["near_minima"]["same_energy"] >= 0.99 * report["near_minima"]["same_basin"],
        "symmetry kept": not report["symmetric"]["changed"],
        "the same alone": report["alone"]["largest_gap_ev_per_atom"] < checks.SAME,
    }
    if report["torchsim"] is not None:
        report["times_faster_than_torchsim"] = times_faster(report["ours"], results, report["torchsim"])
        report["reached"]["5 times TorchSim"] = report["times_faster_than_torchsim"] >= 5.0


def publish(report: dict[str, Any], out: Path | None) -> None:
    """Print a report as JSON, and write it where that was asked for."""
    text = json.dumps(report, indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n")


def main() -> None:
    """Run everything, write JSON, and fail if anything was not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under ten minutes")
    parser.add_argument("--model", type=Path, help="loaded if it exists, else trained and saved")
    parser.add_argument(
        "--workers", action="store_true", help="measure one process against two instead; on two free cores"
    )
    parser.add_argument("--minima", action="store_true", help="compare the minima of small cells with ASE's instead")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    potential = get_model(args.model, 60.0 if args.quick else 300.0)
    report: dict[str, Any] = {"machine": machine(), "dtype": str(potential.dtype), "members": potential.n_members}
    task = scale if args.workers else minima if args.minima else compare
    task(potential, report, quick=args.quick)
    publish(report, args.out)
    missed = [name for name, reached in report["reached"].items() if not reached]
    assert not missed, missed


if __name__ == "__main__":
    main()
