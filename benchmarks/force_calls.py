"""Time one call of energy, forces and stress on the same small crystals: ACNN, MACE and NEP, one thread each.

    OMP_NUM_THREADS=1 python benchmarks/force_calls.py [--quick] --peer-python PYTHON [--out FILE]

``PYTHON`` is an interpreter with mace-torch and calorine. All get random Al-Cu crystals of 8 to 16 atoms with about 30
neighbours within 5 Å, and search the neighbours in the timed part (``compute`` is without that). CPU seconds are
counted, since others may share the cores; the parts are repeated in turn. MACE has 32 channels and two layers, with
messages of degree 0 (the cheapest) and 1, random weights, single precision, and the best of three batch sizes. No NEP
ships with its package: ``nep.txt`` is written here with random numbers in the shape that GPUMD takes by default
(n_max 4 4, basis_size 8 8, l_max 4 2 0, 30 neurons) and cutoffs of 5 and 4 Å. It takes one structure at a time, through
ASE, and is timed in three ways: on structures that are new to its calculator (``nep_new``: it sets itself up again for
each), on structures that keep a calculator each while their atoms move, as in a relaxation (``nep_moved``), and on one
cell of about a thousand atoms (``nep_large_cell``: its arithmetic alone).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.io import read, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from ase import Atoms

CUTOFF = 5.0
NEP = {"n_radial": 5, "basis": 9, "n_angular": 5, "degrees": 5, "neurons": 30}
NEP_HEADER = """nep4 2 Al Cu
cutoff 5 4 300 200
n_max 4 4
basis_size 8 8
l_max 4 2 0
ANN 30 0
"""
REQUIRED = {"mace": 20.0, "nep_new": 10.0, "nep_moved": 10.0}


def median_us(call: Callable[[], object], atoms: int, repeats: int) -> float:
    """Give the median CPU time of a call, microseconds per atom, after a warm-up."""
    call()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        found.append(1e6 * (time.process_time() - start) / atoms)
    return float(np.median(found))


def time_mace(frames: list[Atoms], degree: int, repeats: int) -> dict[str, float]:
    """Time MACE on batches of structures."""
    import torch  # noqa: PLC0415 - in the interpreter of the peers only
    from mace import data, modules  # noqa: PLC0415
    from mace.tools import AtomicNumberTable, torch_geometric  # noqa: PLC0415

    o3 = import_module("e3nn.o3")  # after MACE, which prepares its loading

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)  # noqa: TID251 - MACE takes it from there
    torch.manual_seed(0)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    numbers = AtomicNumberTable([13, 29])
    model = modules.ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=2,
        hidden_irreps=o3.Irreps(" + ".join(f"32x{k}{'eo'[k % 2]}" for k in range(degree + 1))),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(2),
        avg_num_neighbors=35.0,
        atomic_numbers=numbers.zs,
        correlation=3,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    n_atoms = sum(len(atoms) for atoms in frames)

    def prepare(size: int) -> list[Any]:
        found = [data.AtomicData.from_config(c, z_table=numbers, cutoff=CUTOFF) for c in configs()]
        return list(torch_geometric.dataloader.DataLoader(found, batch_size=size, shuffle=False))

    def configs() -> list[Any]:
        return [data.config_from_atoms(atoms) for atoms in frames]

    best: dict[str, float] = {}
    for size in (8, 32, len(frames)):
        batches = [batch.to_dict() for batch in prepare(size)]

        def compute(batches: list[Any] = batches) -> None:
            for batch in batches:
                model(dict(batch), training=False, compute_force=True, compute_stress=True)

        def together(size: int = size) -> None:
            compute([batch.to_dict() for batch in prepare(size)])

        figures = {
            "compute_us_per_atom": median_us(compute, n_atoms, repeats),
            "together_us_per_atom": median_us(together, n_atoms, repeats),
            "batch": size,
        }
        if not best or figures["compute_us_per_atom"] < best["compute_us_per_atom"]:
            best = figures
    edges = sum(batch["edge_index"].shape[1] for batch in batches)
    return best | {"neighbors_per_atom": edges / n_atoms}


def write_nep(path: Path) -> None:
    """Write a NEP with random parameters."""
    size = NEP["n_radial"] + NEP["n_angular"] * NEP["degrees"]  # four degrees of three bodies, one of four
    n_network = 2 * (size + 2) * NEP["neurons"] + 1
    n_radial = 4 * (NEP["n_radial"] + NEP["n_angular"]) * NEP["basis"]
    values = 0.1 * np.random.default_rng(0).normal(size=n_network + n_radial)
    path.write_text(NEP_HEADER + "\n".join(f"{value:.7e}" for value in [*values, *np.full(size, 0.1)]) + "\n")


def time_nep(frames: list[Atoms], repeats: int) -> dict[str, float]:
    """Time NEP through ASE, structure by structure, and on one large cell."""
    from calorine.calculators import CPUNEP  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nep.txt"
        write_nep(path)
        large = frames[0].repeat((5, 5, 5) if len(frames[0]) < 10 else (4, 4, 4))
        every = [*frames, large]
        for atoms in every:
            atoms.calc = CPUNEP(str(path))
        rng = np.random.default_rng(1)

        def call(some: list[Atoms]) -> None:
            for atoms in some:
                atoms.positions += 1e-4 * rng.normal(size=(len(atoms), 3))
                atoms.calc.calculate(atoms, properties=["energy", "forces", "stress"])
                assert np.isfinite(atoms.calc.results["stress"]).all()

        one = CPUNEP(str(path))

        def new() -> None:
            for atoms in few:
                one.calculate(atoms, properties=["energy", "forces", "stress"])

        few = frames[:40]
        n_atoms = sum(len(atoms) for atoms in few)
        return {
            "new_us_per_atom": median_us(new, n_atoms, repeats),
            "moved_us_per_atom": median_us(lambda: call(few), n_atoms, repeats),
            "large_cell_us_per_atom": median_us(lambda: call([large]), len(large), 3),
        }


def peer(args: argparse.Namespace) -> None:
    """Time the peers, in their interpreter."""
    frames = read(args.frames, ":")
    figures: dict[str, Any] = {}
    for name, timing in (
        ("mace", lambda: time_mace(frames, 0, args.repeats)),
        ("mace_degree_1", lambda: time_mace(frames, 1, args.repeats)),
        ("nep", lambda: time_nep(frames, args.repeats)),
    ):
        figures[name] = timing()
    print(json.dumps(figures))


def ours(model: Path, repeats: int) -> dict[str, Any]:
    """Time ACNN as `relax.py` does, neighbour search included; a committee of four, as by default."""
    import torch  # noqa: PLC0415 - not needed where the peers are timed
    from relax import get_model, time_calls  # noqa: PLC0415

    torch.set_num_threads(1)
    potential = get_model(model, 20.0)
    return time_calls(potential, repeats)


def main() -> None:
    """Time all in turn and write JSON."""
    parser = argparse.ArgumentParser(description="time of one call of energy, forces and stress")
    parser.add_argument("--quick", action="store_true", help="fewer structures and repeats for the peers")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--frames", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--model", type=Path, help="an ACNN; loaded if it exists, else trained for 20 s and saved")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.frames is not None:
        peer(args)
        return
    from relax import machine, publish, random_crystals  # noqa: PLC0415 - needs torch and acnn

    frames = random_crystals(1, 170, (8, 16))
    report: dict[str, Any] = {"benchmark": "force_calls", "machine": machine(), "acnn": [], "peers": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.extxyz"
        write(path, frames[:32] if args.quick else frames)
        model = args.model or Path(folder) / "model.acnn"
        repeats = 3 if args.quick else args.repeats
        for _ in range(2):
            report["acnn"].append(ours(model, 2 * repeats))
            command = [args.peer_python, __file__, "--frames", str(path), "--repeats", str(repeats)]
            env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)  # noqa: S603
            assert done.returncode == 0, done.stderr[-3000:]
            report["peers"].append(json.loads(done.stdout.splitlines()[-1]))
    together = min(run["together_cpu_us_per_atom"] for run in report["acnn"])
    times = {
        name: min(run[name]["compute_us_per_atom"] for run in report["peers"]) for name in ("mace", "mace_degree_1")
    }
    for kind in ("new", "moved", "large_cell"):
        times[f"nep_{kind}"] = min(run["nep"][f"{kind}_us_per_atom"] for run in report["peers"])
    report["acnn_us_per_atom"], report["peers_us_per_atom"] = together, times
    report["times_faster_than"] = {name: value / together for name, value in times.items()}
    report["required"] = REQUIRED
    report["reached"] = {name: report["times_faster_than"][name] >= least for name, least in REQUIRED.items()}
    publish(report, args.out)


if __name__ == "__main__":
    main()
