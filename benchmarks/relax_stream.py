"""Memory and throughput of `acnn relax` on files of growing length.

Run: ``OMP_NUM_THREADS=1 python benchmarks/relax_stream.py --model FILE [--n 1000 100000] [--million] [--out FILE]``.
Without a model, one is trained as in ``relax.py``. Each file holds 12-atom Al-Cu crystals (random; after the first ten
thousand, those again with all atoms displaced) and is relaxed to the usual criterion by the command line in a process
of its own, whose largest resident memory is read from the kernel. ``--million`` adds a file of a million crystals of
two atoms that are given three calls of the potential each: its length is what is tested there, not its minima.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.io import iread, write
from relax import FMAX, get_model, machine, random_crystals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ase import Atoms

MILLION = 1_000_000
LIMIT_GIB = 4.0
SIZE = 12  # atoms
DIFFERENT = 10_000  # crystals made at random


def many(n: int, atoms: int) -> Iterator[Atoms]:
    """Make random crystals, and displaced copies of them when they are used up."""
    rng = np.random.default_rng(2)
    base = random_crystals(1000, min(n, DIFFERENT), (atoms, atoms))
    for k in range(n):
        frame = base[k % DIFFERENT].copy()
        if k >= DIFFERENT:
            frame.positions += rng.normal(0, 0.1, (atoms, 3))
        yield frame


def run(model: Path, source: Path, out: Path, settings: dict[str, Any], workers: int) -> dict[str, Any]:
    """Relax a file with the command line; give its time and the largest memory of its process."""
    config = source.with_suffix(".json")
    config.write_text(json.dumps({"relax": settings}))
    command = [sys.executable, "-m", "acnn.cli", "relax", str(source), "--model", str(model), "--out", str(out)]
    command += ["--config", str(config), "--workers", str(workers)]
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


def measure(model: Path, n: int, atoms: int, settings: dict[str, Any], workers: int, folder: Path) -> dict[str, Any]:
    """Write a file of crystals, relax it, check that every structure came back in its place."""
    source, out = folder / "start.extxyz", folder / "relaxed.extxyz"
    frames = many(n, atoms)
    with source.open("w") as file:
        for number, frame in enumerate(frames):
            frame.info["number"] = number
            write(file, frame, format="extxyz")
    figures = run(model, source, out, settings, workers)
    count, statuses = 0, Counter[str]()
    for count, frame in enumerate(iread(out, index=":", format="extxyz"), 1):
        assert frame.info["number"] == count - 1, f"structure {count - 1} came back in another place"
        statuses[frame.info["relax_status"]] += 1
    assert count == n, f"{count} of {n} structures came back"
    figures |= {"structures": n, "atoms_each": atoms, "workers": workers, "settings": settings}
    figures["statuses"] = dict(statuses)
    return figures | {"structures_per_cpu_second": n / figures["cpu_seconds"]}


def main() -> None:
    """Relax files of each length and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--n", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "runs": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.model or folder / "model.acnn"
        get_model(model, 60.0)
        plan = [(n, SIZE, {"fmax": FMAX}) for n in args.n]
        plan += [(MILLION, 2, {"fmax": FMAX, "max_steps": 3})] if args.million else []
        for n, atoms, settings in plan:
            report["runs"].append(measure(model, n, atoms, settings, args.workers, folder))
            print(json.dumps(report["runs"][-1]), flush=True)
    rates = [run["structures_per_cpu_second"] for run in report["runs"] if run["atoms_each"] == SIZE]
    report["reached"] = {
        "under 4 GiB": all(run["largest_resident_gib"] < LIMIT_GIB for run in report["runs"]),
        "throughput does not fall": rates[-1] >= 0.95 * rates[0],
    }
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    assert all(report["reached"].values()), report["reached"]


if __name__ == "__main__":
    main()
