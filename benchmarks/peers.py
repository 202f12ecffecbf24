"""Train one model in a process of its own within a budget of CPU seconds, then predict a test set.

`accuracy.py` calls it, with the interpreter of the model; it needs nothing from the rest of the repository except for
the model ``acnn``. The files hold the labels ``REF_energy``, ``REF_forces`` and ``REF_stress`` (eV, Å, ASE's sign).

    PYTHON benchmarks/peers.py mace-16 --train TRAIN.extxyz --test TEST.extxyz --cpu-seconds 300 --out FOLDER

It writes ``predictions.npz`` (energies, forces of all atoms one below the other, stresses as xx yy zz yz xz xy) and
``record.json`` with the seconds that training really took, imports included, predictions and reports not.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.units import GPa

if TYPE_CHECKING:
    from ase import Atoms

BORN = time.monotonic()
HELD_OUT = 0.1  # of the training set, for the choices that a model makes itself
ATOMS_PER_BATCH = 64  # MACE: so that a budget of minutes holds enough steps
BATCHES_TIMED = 12
LEAST_EPOCHS = 4  # MACE: of which a quarter is stage two; fewer structures are used where the budget needs it
USED = 0.97  # of the budget, for schedules that are planned ahead
MOST_MEMORY = 14 << 30  # bytes: a fit that needs more is an error here, not a danger to the machine

# pypolymlp, from small to large: the first and third are the settings that ship with its silver-gold test (there with
# the elements Ag Au and Au), the others lie between them and above
RUNGS: list[dict[str, Any]] = [
    {"model_type": 3, "gtinv_order": 2, "gtinv_maxl": [4], "gaussian_params2": (0.0, 5.0, 7)},
    {"model_type": 3, "gtinv_order": 3, "gtinv_maxl": [4, 4], "gaussian_params2": (0.0, 5.0, 7)},
    {"model_type": 3, "gtinv_order": 3, "gtinv_maxl": [8, 4], "gaussian_params2": (0.0, 5.0, 10)},
    {"model_type": 4, "gtinv_order": 3, "gtinv_maxl": [4, 4], "gaussian_params2": (0.0, 5.0, 7)},
    {"model_type": 4, "gtinv_order": 3, "gtinv_maxl": [8, 4], "gaussian_params2": (0.0, 5.0, 10)},
    {"model_type": 4, "gtinv_order": 4, "gtinv_maxl": [8, 8, 2], "gaussian_params2": (0.0, 5.0, 10)},
]

Predicted = tuple[np.ndarray, list[np.ndarray], np.ndarray]


def cpu_seconds() -> float:
    """Give CPU seconds of this process and its children since it began."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def divide(frames: list[Atoms], seed: int) -> tuple[list[Atoms], list[Atoms]]:
    """Hold out a part at random."""
    order = np.random.default_rng(seed).permutation(len(frames))
    n_held = max(1, round(HELD_OUT * len(frames)))
    return [frames[k] for k in order[n_held:]], [frames[k] for k in order[:n_held]]


def fit_acnn(args: argparse.Namespace, train: list[Atoms], test: list[Atoms]) -> tuple[dict[str, Any], Predicted]:
    """Train ACNN by its defaults; preparing the data is timed first, so that the training ends within the budget.

    Its clock counts CPU seconds here: others share the cores, and its ``max_time`` is otherwise of the wall.
    """
    import torch  # noqa: PLC0415 - each model has its own interpreter

    from acnn.config import ModelConfig, TrainConfig  # noqa: PLC0415
    from acnn.evaluate import predict  # noqa: PLC0415
    from acnn.train import train as fit  # noqa: PLC0415

    torch.set_num_threads(1)
    for atoms in train:
        known = {"energy": atoms.info["REF_energy"], "forces": atoms.arrays["REF_forces"]}
        if "REF_stress" in atoms.info:
            known["stress"] = voigt(atoms.info["REF_stress"])
        atoms.calc = SinglePointCalculator(atoms, **known)
    start = cpu_seconds()
    fit(train, model=ModelConfig(), settings=TrainConfig(max_steps=1), seed=args.seed)
    trial = cpu_seconds() - start
    seconds = USED * args.cpu_seconds - start - trial
    wall = time.monotonic()
    with mock.patch("acnn.train.loop.time", SimpleNamespace(monotonic=cpu_seconds)):
        result = fit(train, model=ModelConfig(), settings=TrainConfig(max_time=max(1.0, seconds)), seed=args.seed)
    record = {
        "cpu_s": cpu_seconds() - trial,
        "wall_s": time.monotonic() - wall + start,
        "trial_cpu_s": trial,
        "steps": int(result.history[-1]["step"]),
        "frames_used": result.n_train + result.n_held_out,
        "stopped_early": result.seconds < 0.95 * seconds,
    }
    found = predict(result.potential, test)
    if "REF_stress" in test[0].info:
        plain = [np.abs(voigt(s) - voigt(x.info["REF_stress"])) for s, x in zip(found.stresses, test, strict=True)]
        record["stress_mae_without_pulay_gpa"] = float(np.mean(plain)) / GPa
    # with what the stresses of the training labels were found to hold beyond the derivative of their energies
    return record, (found.energies, found.forces, np.array([voigt(s) for s in found.labelled_stresses]))


def voigt(stress: np.ndarray) -> np.ndarray:
    """Give the six components of a 3x3 stress, ASE's order."""
    flat = np.asarray(stress, dtype=float).reshape(9)
    return flat[[0, 4, 8, 5, 2, 1]]


class _MaceRun:
    """One call of MACE's own training program, with the CPU time of its parts."""

    def __init__(self, args: argparse.Namespace, channels: int, folder: Path, batch: int, *, stress: bool) -> None:
        self.seed, self.channels, self.folder, self.batch, self.stress = args.seed, channels, folder, batch, stress
        self.prepared = self.trained = self.wall = 0.0
        self.marks: list[float] = []
        self.epochs = 0
        self.n_frames = 0

    def run(self, frames: list[Atoms], budget_end: float | None, per_frame: float) -> None:
        """Train; with a budget, choose the epochs when the data are prepared and the time that is left is known."""
        from mace import tools  # noqa: PLC0415
        from mace.cli import run_train  # noqa: PLC0415

        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.folder / "train.extxyz", frames)
        self.n_frames = len(frames)
        original, table = tools.train, run_train.create_error_table
        loop = sys.modules["mace.tools.train"]
        epoch = loop.train_one_epoch
        self.marks = []

        def marked(**kwargs: Any) -> None:  # noqa: ANN401 - MACE's own arguments
            self.marks.append(cpu_seconds())
            epoch(**kwargs)

        def timed(**kwargs: Any) -> None:  # noqa: ANN401 - MACE's own arguments
            self.prepared = cpu_seconds()
            if budget_end is not None:
                epochs = max(2, int((budget_end - self.prepared) / (per_frame * len(frames))))
                start = min(epochs - 1, max(1, epochs // 4 * 3))
                kwargs["max_num_epochs"] = epochs
                kwargs["swa"] = replace(kwargs["swa"], start=start)
                kwargs["checkpoint_handler"].io.swa_start = start
            self.epochs = kwargs["max_num_epochs"]
            original(**kwargs)
            self.trained, self.wall = cpu_seconds(), time.monotonic()

        tools.train, loop.train_one_epoch = timed, marked
        run_train.create_error_table = lambda *_, **__: ""  # only a report; it would cost as much as an epoch
        try:
            run_train.run(tools.build_default_arg_parser().parse_args(self.options()))
        finally:
            tools.train, loop.train_one_epoch, run_train.create_error_table = original, epoch, table

    def options(self) -> list[str]:
        """Give the options: the program's defaults except for the size and what its guide recommends."""
        options = {
            "name": "model",
            "work_dir": self.folder,
            "train_file": self.folder / "train.extxyz",
            "valid_fraction": HELD_OUT,
            "E0s": "average",
            "num_channels": self.channels,
            "max_L": 1,
            "r_max": 5.0,
            "num_interactions": 2,
            "default_dtype": "float32",
            "batch_size": self.batch,
            "valid_batch_size": 4 * self.batch,
            "max_num_epochs": 3,
            "ema_decay": 0.99,
            "seed": self.seed,
            "device": "cpu",
            "plot": False,
            "loss": "stress" if self.stress else "weighted",
            "compute_stress": self.stress,
        }
        return [f"--{key}={value}" for key, value in options.items()] + ["--swa", "--ema", "--amsgrad"]


def fit_mace(args: argparse.Namespace, train: list[Atoms], test: list[Atoms]) -> tuple[dict[str, Any], Predicted]:
    """Train MACE with its own program; three epochs of a few batches are timed first and not counted."""
    import torch  # noqa: PLC0415
    from mace.calculators import MACECalculator  # noqa: PLC0415

    torch.set_num_threads(1)
    channels = int(args.model.split("-")[1])
    stress = "REF_stress" in train[0].info
    size = float(np.mean([len(atoms) for atoms in train]))
    batch = int(np.clip(round(ATOMS_PER_BATCH / size), 2, 10))
    order = np.random.default_rng(args.seed).permutation(len(train))
    shuffled = [train[k] for k in order]
    start = cpu_seconds()
    trial = _MaceRun(args, channels, args.out / "trial", batch, stress=stress)
    trial.run(shuffled[: BATCHES_TIMED * batch], None, 0.0)
    per_frame = (trial.trained - trial.marks[1]) / (trial.epochs - 1) / trial.n_frames  # the first warms up
    spent, wall = cpu_seconds() - start, time.monotonic()
    room = 0.9 * args.cpu_seconds - start
    n_used = min(len(train), max(5 * batch, int(room / per_frame / LEAST_EPOCHS)))
    run = _MaceRun(args, channels, args.out / "run", batch, stress=stress)
    run.run(shuffled[:n_used], USED * args.cpu_seconds + spent, per_frame)
    record = {
        "cpu_s": run.trained - spent,
        "wall_s": run.wall - wall + start,
        "trial_cpu_s": spent,
        "epochs": run.epochs,
        "frames_used": n_used,
        "batch_size": batch,
        "cpu_s_per_frame_and_epoch": per_frame,
    }
    models = [args.out / "run" / f"model{tail}.model" for tail in ("_stagetwo", "")]
    model = next(path for path in models if path.exists())
    record["model"] = model.name
    calculator = MACECalculator(model_paths=str(model), device="cpu", default_dtype="float32")
    energies, forces, stresses = [], [], []
    for atoms in test:
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
        stresses.append(atoms.get_stress())
    return record, (np.array(energies), forces, np.array(stresses))


class _Polymlp:
    """Structures and labels in the layout of pypolymlp: atoms sorted by element, arrays of three rows."""

    def __init__(self, frames: list[Atoms], elements: list[str]) -> None:
        from pypolymlp.core.data_format import PolymlpStructure  # noqa: PLC0415
        from pypolymlp.utils.atomic_energies.atomic_energies import get_atomic_energies  # noqa: PLC0415

        self.frames = frames
        self.isolated = get_atomic_energies(elements=elements, functional="PBE")[0]
        self.orders, self.structures = [], []
        for atoms in frames:
            types = np.array([elements.index(symbol) for symbol in atoms.get_chemical_symbols()])
            order = np.argsort(types, kind="stable")
            self.orders.append(order)
            self.structures.append(
                PolymlpStructure(
                    axis=atoms.cell.array.T,
                    positions=atoms.get_scaled_positions()[order].T,
                    n_atoms=[int((types == kind).sum()) for kind in range(len(elements))],
                    elements=[elements[kind] for kind in types[order]],
                    types=[int(kind) for kind in types[order]],
                    volume=atoms.get_volume(),
                )
            )

    def labels(self, name: str, *, stress: bool) -> dict[str, Any]:
        """Give the arguments that name these data, stresses as eV with compression positive."""
        pairs = list(zip(self.frames, self.orders, strict=True))
        found = {
            f"{name}_structures": self.structures,
            f"{name}_energies": np.array([atoms.info["REF_energy"] for atoms in self.frames]),
            f"{name}_forces": [atoms.arrays["REF_forces"][order].T for atoms, order in pairs],
        }
        if stress:
            virials = [-atoms.get_volume() * np.reshape(atoms.info["REF_stress"], (3, 3)) for atoms in self.frames]
            found[f"{name}_stresses"] = np.array(virials)
        return found

    def predict(self, path: Path) -> Predicted:
        """Evaluate a saved potential; back to the order of the atoms, to ASE's stress and with the atoms' energies."""
        from pypolymlp.calculator.properties import Properties  # noqa: PLC0415

        energies, forces, virials = Properties(pot=str(path)).eval_multiple(self.structures)
        back = [np.asarray(force).T[np.argsort(order)] for force, order in zip(forces, self.orders, strict=True)]
        volumes = np.array([atoms.get_volume() for atoms in self.frames])
        xx, yy, zz, xy, yz, zx = -np.asarray(virials).T / volumes
        isolated = np.array([np.dot(s.n_atoms, self.isolated) for s in self.structures])
        return np.asarray(energies) + isolated, back, np.stack([xx, yy, zz, yz, zx, xy], axis=1)


def fit_pypolymlp(args: argparse.Namespace, train: list[Atoms], test: list[Atoms]) -> tuple[dict[str, Any], Predicted]:
    """Fit one rung of pypolymlp; the kernel ends a fit that needs more than the budget."""
    from pypolymlp.mlp_dev.pypolymlp import Pypolymlp  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(args.cpu_seconds) + 1, hard))
    elements = sorted({symbol for atoms in train for symbol in atoms.get_chemical_symbols()})
    stress = "REF_stress" in train[0].info
    kept, held = (_Polymlp(frames, elements) for frames in divide(train, args.seed))
    mlp = Pypolymlp()
    mlp.set_params(
        elements=elements,
        cutoff=6.0,
        max_p=2,
        feature_type="gtinv",
        gaussian_params1=(1.0, 1.0, 1),
        reg_alpha_params=(-4.0, 3.0, 15),
        atomic_energy=list(kept.isolated),
        include_force=True,
        include_stress=stress,
        **RUNGS[args.rung],
    )
    mlp.set_datasets_structures(**kept.labels("train", stress=stress), **held.labels("test", stress=stress))
    mlp.run(verbose=False)
    path = args.out / "polymlp.yaml"
    mlp.save_mlp(filename=str(path))
    record: dict[str, Any] = {"cpu_s": cpu_seconds(), "wall_s": time.monotonic() - BORN, "frames_used": len(train)}
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
    energies, forces, _ = held.predict(path)
    sizes = np.array([len(atoms) for atoms in held.frames])
    wrong = energies - np.array([atoms.info["REF_energy"] for atoms in held.frames])
    known = np.concatenate([atoms.arrays["REF_forces"] for atoms in held.frames])
    record |= {
        "n_features": int(mlp.n_features),
        "held_out_energy_mae_mev_per_atom": 1e3 * float(np.abs(wrong / sizes).mean()),
        "held_out_force_mae_ev_per_a": float(np.abs(np.concatenate(forces) - known).mean()),
    }
    return record, _Polymlp(test, elements).predict(path)


def main() -> None:
    """Train, predict, write."""
    parser = argparse.ArgumentParser(
        description="train one model within a budget of CPU seconds and predict a test set"
    )
    parser.add_argument("model", choices=["acnn", "mace-16", "mace-32", "pypolymlp"])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--cpu-seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rung", type=int, default=0, help="size of pypolymlp's model")
    parser.add_argument("--out", type=Path, required=True, help="folder, made anew")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train, test = (read(path, ":", format="extxyz") for path in (args.train, args.test))
    fit = {"acnn": fit_acnn, "pypolymlp": fit_pypolymlp}.get(args.model, fit_mace)
    record, (energies, forces, stresses) = fit(args, train, test)
    package = {"acnn": "hullseeker", "pypolymlp": "pypolymlp"}.get(args.model, "mace-torch")
    record["version"] = metadata.version(package)
    record["numpy"] = metadata.version("numpy")
    np.savez(args.out / "predictions.npz", energies=energies, forces=np.concatenate(forces), stresses=stresses)
    (args.out / "record.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
