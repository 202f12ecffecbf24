"""Memory and throughput of `acnn relax` on files of growing length.

Run: ``OMP_NUM_THREADS=1 python benchmarks/relax_stream.py --model FILE [--n 1000 100000] [--short] [--out FILE]``.
Without a model, one is trained as in ``relax.py``. Each file holds 12-atom Al-Cu crystals (random; after the first ten
thousand, those again with all atoms displaced) and is relaxed to the usual criterion by the command line in a process
of its own, whose largest resident memory is read from the kernel. ``--short`` takes crystals of two atoms and gives
each three calls of the potential: the length of the file is what is tested there, not its minima. The throughput is
that of the structures which one file has more than the one before, so without the time to start.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from relax import FMAX, get_model, machine, random_crystals

LIMIT_GIB = 4.0
DIFFERENT = 10_000  # crystals made at random


def write_many(path: Path, n: int, size: int) -> None:
    """Write random crystals, and displaced copies when they are used up; ASE would take longer than the relaxing."""
    rng = np.random.default_rng(2)
    base = random_crystals(1000, min(n, DIFFERENT), (size, size))
    with path.open("w") as file:
        for k in range(n):
            atoms = base[k % DIFFERENT]
            moved = atoms.positions + (rng.normal(0, 0.1, (size, 3)) if k >= DIFFERENT else 0.0)
            lattice = " ".join(map(str, atoms.cell.array.flatten().tolist()))
            file.write(f'{size}\nLattice="{lattice}" Properties=species:S:1:pos:R:3 number={k} pbc="T T T"\n')
            for symbol, (x, y, z) in zip(atoms.symbols, moved.tolist(), strict=True):
                file.write(f"{symbol} {x} {y} {z}\n")


def read_statuses(path: Path) -> Counter[str]:
    """Count the outcomes; assert that every structure is in its place."""
    statuses = Counter[str]()
    with path.open() as file:
        for place, line in enumerate(file):
            words = dict(re.findall(r"(number|relax_status)=(\w+)", next(file)))
            assert int(words["number"]) == place, f"structure {place} came back in another place"
            statuses[words["relax_status"]] += 1
            deque(islice(file, int(line)), maxlen=0)
    return statuses


def run(model: Path, source: Path, out: Path, settings: dict[str, Any], workers: int, device: str) -> dict[str, Any]:
    """Relax a file with the command line; give its time and the largest memory of its process."""
    config = source.with_suffix(".json")
    config.write_text(json.dumps({"relax": settings}))
    command = [sys.executable, "-m", "acnn.cli", "relax", str(source), "--model", str(model), "--out", str(out)]
    command += ["--config", str(config), "--workers", str(workers), "--device", device]
    start = time.perf_counter()
    log = source.with_suffix(".log")
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)  # noqa: S603 - our own command
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(log.read_text())
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "largest_resident_gib": usage.ru_maxrss / 2**20,
    }


def measure(
    model: Path, n: int, atoms: int, settings: dict[str, Any], args: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Write a file of crystals, relax it, check that every structure came back in its place."""
    source, out = folder / "start.extxyz", folder / "relaxed.extxyz"
    write_many(source, n, atoms)
    figures = run(model, source, out, settings, args.workers, args.device)
    statuses = read_statuses(out)
    assert statuses.total() == n, f"{statuses.total()} of {n} structures came back"
    figures |= {
        "structures": n,
        "atoms_each": atoms,
        "workers": args.workers,
        "device": args.device,
        "settings": settings,
    }
    figures["statuses"] = dict(statuses)
    return figures | {"structures_per_cpu_second": n / figures["cpu_seconds"]}


def main() -> None:
    """Relax files of each length and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--n", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--short", action="store_true", help="two atoms, three calls each")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; there with --n 1000000")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "runs": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.model or folder / "model.acnn"
        get_model(model, 60.0)
        size, settings = (2, {"fmax": FMAX, "max_steps": 3}) if args.short else (12, {"fmax": FMAX})
        for n in args.n:
            report["runs"].append(measure(model, n, size, settings, args, folder))
            print(json.dumps(report["runs"][-1]), flush=True)
    runs = [(run["structures"], run["cpu_seconds"]) for run in report["runs"]]
    rates = [(n - m) / (t - s) for (m, s), (n, t) in pairwise(runs)]
    report["structures_per_cpu_second_between"] = rates
    report["reached"] = {
        "under 4 GiB": all(run["largest_resident_gib"] < LIMIT_GIB for run in report["runs"]),
    }
    if rates:
        report["reached"]["throughput does not fall"] = rates[-1] >= 0.95 * rates[0]
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    assert all(report["reached"].values()), report["reached"]


if __name__ == "__main__":
    main()
