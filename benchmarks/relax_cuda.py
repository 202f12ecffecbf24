"""A million random 12-atom crystals relaxed on a GPU, and how far the potential is from what the GPU can do.

Run: ``python benchmarks/relax_cuda.py [--model FILE] [--n 1000000] [--workers 1 4] [--out FILE]``. Without a model, one
is trained as in ``relax.py``. All crystals are different: random cells and positions with no two atoms closer than 2 Å.
The first ones are relaxed on the CPU too, by the same relaxer and potential, and the ends compared where both converge;
what every relaxation promises is checked in double precision on the CPU. The time is that from the first structure read
to the last result, the start of the processes included; making the crystals is not. Utilisation is sampled each second.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import relax_checks as checks
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from relax import CLOSEST, PRESSURE_GPA, get_model, machine

from acnn import checkpoint
from acnn.batch import Batch
from acnn.config import RelaxConfig
from acnn.neighbors import build_neighbors
from acnn.relax import Relaxed, RelaxStatus, relax

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acnn.nn.potential import Potential

SIZE = 12
CHECKED = 400
LIMIT_SECONDS = 600.0
BLOCK = 50_000  # crystals made together
TRIALS = 300  # places tried for an atom


class Crystals:
    """Random Al-Cu crystals, as arrays until they are asked for."""

    def __init__(self, seed: int, n: int, device: str) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device = device
        parts = []
        while sum(len(part[0]) for part in parts) < n:
            parts.append(self._make(min(n, BLOCK)))
        self.cells, self.scaled, self.numbers = (np.concatenate(arrays)[:n] for arrays in zip(*parts, strict=True))

    def __len__(self) -> int:
        """Give their number."""
        return len(self.cells)

    def frames(self, n: int | None = None) -> Iterator[Atoms]:
        """Make them one by one."""
        for cell, scaled, numbers in zip(self.cells[:n], self.scaled[:n], self.numbers[:n], strict=True):
            yield Atoms(numbers, positions=scaled @ cell, cell=cell, pbc=True)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, dtype=torch.float64, device=self.device, generator=self.generator)

    def _make(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Put atom after atom where there is room; drop the crystals where there is none."""
        noise = torch.randn((n, 3, 3), dtype=torch.float64, device=self.device, generator=self.generator)
        cells = torch.eye(3, dtype=torch.float64, device=self.device) + 0.15 * noise
        volume = (15.0 + 4.0 * self._random(n)) * SIZE
        cells *= (volume / torch.linalg.det(cells).abs())[:, None, None] ** (1 / 3)
        scaled, done = self._random(n, SIZE, 3), torch.ones(n, dtype=torch.bool, device=self.device)
        for atom in range(1, SIZE):
            open_rows = torch.nonzero(done)[:, 0]
            for _ in range(TRIALS):
                if not len(open_rows):
                    break
                trial = self._random(len(open_rows), 3)
                delta = scaled[open_rows, :atom] - trial[:, None]
                near = ((delta - delta.round()) @ cells[open_rows]).norm(dim=2).amin(1) < CLOSEST
                scaled[open_rows[~near], atom] = trial[~near]
                open_rows = open_rows[near]
            done[open_rows] = False
        cells, scaled = cells[done], scaled[done]
        numbers = torch.where(self._random(len(cells), SIZE) < 0.5, 13, 29)
        system = torch.arange(len(cells), device=self.device).repeat_interleave(SIZE)
        batch = Batch(numbers.flatten(), (scaled @ cells).flatten(0, 1), cells, system)
        touching = build_neighbors(batch, CLOSEST).mask.any(1).view(-1, SIZE).any(1)
        kept = (tensor[~touching].cpu().numpy() for tensor in (cells, scaled, numbers))
        return next(kept), next(kept), next(kept)


class Utilisation:
    """How busy the GPU is while something runs, by nvidia-smi."""

    def __enter__(self) -> Self:
        """Begin to sample."""
        self._file = tempfile.TemporaryFile("w+")
        query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used,power.draw", "--format=csv,noheader,nounits"]
        self._process = subprocess.Popen([*query, "-l", "1"], stdout=self._file)  # noqa: S603 - a fixed command
        return self

    def __exit__(self, *_: object) -> None:
        """Gather the samples."""
        self._process.terminate()
        self._process.wait()
        self._file.seek(0)
        rows = [[float(x) for x in line.split(",")] for line in self._file if line.count(",") == 2]
        self._file.close()
        samples = np.array(rows) if rows else np.zeros((1, 3))
        self.figures = {
            "mean_utilisation_percent": float(samples[:, 0].mean()),
            "median_utilisation_percent": float(np.median(samples[:, 0])),
            "largest_gpu_memory_gib": float(samples[:, 1].max() / 1024),
            "mean_power_w": float(samples[:, 2].mean()),
            "samples": len(rows),
        }


def median_seconds(call: Any, repeats: int = 7) -> float:  # noqa: ANN401 - any function
    """Time a function on the GPU."""
    times = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[2:]))


def operations(potential: Potential, neighbors: float) -> dict[str, float]:
    """Count the multiplications and additions of an atom, and the bytes that must pass its memory."""
    config, embedding = potential.config, potential.embedding
    n_species = embedding.species.shape[1]
    n_mono, n_harm = sum((k + 1) * (k + 2) // 2 for k in range(config.l_max + 1)), (config.l_max + 1) ** 2
    n_basis, channels, mixed = config.n_radial * n_species, config.channels, config.mixed_channels
    density = 2 * neighbors * n_mono * n_basis
    density_back = 2 * neighbors * n_mono * config.n_radial * (n_species + 2)
    mixing = (
        2 * channels * (n_mono * n_basis + sum((2 * k + 1) * (k + 1) * (k + 2) // 2 for k in range(config.l_max + 1)))
    )
    pairs = n_harm * channels * (channels + 1)
    coupling = mixed * (3 * int(torch.count_nonzero(embedding.coupling)) + 2 * 16 * channels + 4 * 16)
    features = embedding.n_features
    widths = [*config.hidden, 1]
    layers = 2 * config.members * sum(a * b for a, b in pairwise(widths))
    network = 2 * features * config.members * (1 + (config.hidden[0] if config.hidden else 0)) + layers
    kept = n_harm * channels + (2 * 16 * mixed if config.max_factors > 2 else 0)
    return {
        "flop_density": density + density_back,
        "flop_invariants": 3 * (mixing + pairs + coupling),
        "flop_network": 2 * network,
        "bytes": 2 * neighbors * (8 + 12 + 1) + 4 * 4 * features + 2 * 4 * kept,
    }


def measure_calls(potential: Potential, crystals: Crystals) -> dict[str, Any]:
    """Time one call with neighbours found, and what the GPU can do at most: copy, and multiply matrices."""
    batch = Batch.from_atoms(list(crystals.frames(40_000)), potential.dtype, "cuda")
    neighbors = build_neighbors(batch, potential.cutoff)
    potential.compute(batch, neighbors)
    seconds = median_seconds(lambda: potential.compute(batch, neighbors)) / batch.n_atoms
    search = median_seconds(lambda: build_neighbors(batch, potential.cutoff)) / batch.n_atoms
    per_atom = float(neighbors.mask.sum() / batch.n_atoms)
    needed = operations(potential, per_atom)
    one = torch.randn(1 << 28, device="cuda")
    other = torch.empty_like(one)
    bandwidth = 8 * len(one) / median_seconds(lambda: other.copy_(one))
    matrix = torch.randn((8192, 8192), device="cuda")
    torch.backends.cuda.matmul.allow_tf32 = False
    arithmetic = 2 * 8192**3 / median_seconds(lambda: matrix @ matrix)
    flop = sum(value for name, value in needed.items() if name.startswith("flop"))
    return {
        "atoms": batch.n_atoms,
        "neighbors_per_atom": per_atom,
        "compute_us_per_atom": 1e6 * seconds,
        "search_us_per_atom": 1e6 * search,
        "needed_per_atom": needed,
        "measured_copy_tb_per_s": bandwidth / 1e12,
        "measured_float32_tflop_per_s": arithmetic / 1e12,
        "reached_tflop_per_s": flop / seconds / 1e12,
        "part_of_arithmetic_limit": flop / arithmetic / seconds,
        "part_of_memory_limit": needed["bytes"] / bandwidth / seconds,
    }


def on_cpu(potential: Potential, crystals: Crystals) -> list[Relaxed]:
    """Relax the first crystals on the CPU."""
    return list(relax(crystals.frames(CHECKED), potential, RelaxConfig(), pressure_gpa=PRESSURE_GPA))


def run(potential: Potential, crystals: Crystals, workers: int) -> tuple[dict[str, Any], list[Relaxed]]:
    """Relax all on the GPU; give figures and the first results."""
    first: list[Relaxed] = []
    statuses, calls = Counter[str](), 0
    with Utilisation() as used:
        start = time.perf_counter()
        results = relax(crystals.frames(), potential, RelaxConfig(workers=workers), pressure_gpa=PRESSURE_GPA)
        for place, result in enumerate(results):
            assert result.index == place
            statuses[result.status.value + (f": {result.reason}" if result.reason else "")] += 1
            calls += result.n_steps
            if place < CHECKED:
                first.append(result)
        seconds = time.perf_counter() - start
    assert statuses.total() == len(crystals)
    figures = {
        "structures": len(crystals),
        "atoms_each": SIZE,
        "workers": workers,
        "seconds": seconds,
        "structures_per_second": len(crystals) / seconds,
        "statuses": dict(statuses),
        "calls_per_structure": calls / len(crystals),
        "us_per_atom_and_call": 1e6 * seconds / calls / SIZE,
        "largest_resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    return figures | used.figures, first


def compare(potential: Potential, crystals: Crystals, first: list[Relaxed], cpu: list[Relaxed]) -> dict[str, Any]:
    """Check the promises, and that CPU and GPU find the same energy in the same basin where both converge."""
    checks.promises(potential, list(crystals.frames(CHECKED)), first, PRESSURE_GPA)
    both = [(g, c) for g, c in zip(first, cpu, strict=True) if g.status is c.status is RelaxStatus.CONVERGED]
    ends = []
    for _, result in both:
        atoms = result.atoms.copy()
        atoms.calc = SinglePointCalculator(atoms, energy=result.energy)
        ends.append(atoms)
    same = checks.same_minima([ours for ours, _ in both], ends)
    same["converged_on_the_cpu"] = sum(result.status is RelaxStatus.CONVERGED for result in cpu)
    same["converged_on_the_gpu"] = sum(result.status is RelaxStatus.CONVERGED for result in first)
    most = max(same["converged_on_the_cpu"], same["converged_on_the_gpu"])
    assert len(both) >= 0.99 * most > 0, same
    assert same["same_energy"] >= 0.99 * same["same_basin"], same
    return same


def main() -> None:
    """Measure, check and write JSON after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = args.model or Path(name) / "model.acnn"
        get_model(model, 60.0)
        reference, potential = checkpoint.load(model), checkpoint.load(model).to("cuda")
    start = time.perf_counter()
    crystals = Crystals(1, args.n, "cuda")
    report: dict[str, Any] = {"machine": machine() | {"gpu": torch.cuda.get_device_name()}, "runs": []}
    report["seconds_to_make_the_crystals"] = time.perf_counter() - start
    torch.set_num_threads(1)
    cpu = on_cpu(reference, crystals)
    report["calls"] = measure_calls(potential, crystals)
    print(json.dumps(report), flush=True)
    torch.cuda.empty_cache()
    for workers in args.workers:
        figures, first = run(potential, crystals, workers)
        figures["same_as_cpu"] = compare(reference, crystals, first, cpu)
        report["runs"].append(figures)
        print(json.dumps(figures), flush=True)
        if args.out is not None:
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    quickest = max(figures["structures_per_second"] for figures in report["runs"])
    report["reached"] = {"a million in ten minutes": quickest >= 1e6 / LIMIT_SECONDS}
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    assert all(report["reached"].values()), report["reached"]


if __name__ == "__main__":
    main()
