"""The command ``acnn``: train, evaluate and relax by itself, without a search around it."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acnn.errors import AcnnError, ConfigError, DataError, ModelError, StateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from acnn.relax.interface import PotentialLike

TORCHSIM = "torchsim:"  # how a model begins that a function makes


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line.

    Returns
    -------
    argparse.ArgumentParser
        With the commands train, evaluate and relax.
    """
    parser = argparse.ArgumentParser(prog="acnn", description="Train, evaluate and use an ACNN potential.")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands)
    _add_evaluate(commands)
    _add_relax(commands)
    return parser


def _add_train(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the class private
    command = commands.add_parser("train", help="fit a potential to labelled structures")
    command.add_argument("data", type=Path, help="extxyz with energies (eV), forces (eV/Å), stresses (eV/Å^3)")
    command.add_argument("--out", type=Path, required=True, help="file of the potential")
    command.add_argument("--config", type=Path, help="YAML or JSON with the sections model, train and relax")
    command.add_argument("--previous", type=Path, help="potential to start from; DATA must hold its labels too")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--max-time", type=float, help="most seconds of training")
    command.add_argument(
        "--threads", type=int, help="CPU threads (default 1); a killed training goes on only with as many as before"
    )
    command.add_argument("--work-dir", type=Path, help="folder that lets a killed training go on")
    command.add_argument("--metrics", type=Path, help="CSV of the errors as training went; default: beside OUT")
    command.set_defaults(run=_train)


def _add_evaluate(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the class private
    command = commands.add_parser("evaluate", help="measure a potential on labelled structures")
    command.add_argument("model", type=Path)
    command.add_argument("data", type=Path, help="extxyz with labels")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--threads", type=int, help="CPU threads")
    command.set_defaults(run=_evaluate)


def _add_relax(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the class private
    command = commands.add_parser("relax", help="relax positions and cells at a pressure")
    command.add_argument("data", type=Path, help="structures, extxyz")
    command.add_argument(
        "--model",
        required=True,
        help="file of the potential; or torchsim:MODULE:FUNCTION, called with device=, that gives a TorchSim model",
    )
    command.add_argument("--pressure", type=float, default=0.0, help="GPa; default 0")
    command.add_argument("--out", type=Path, required=True, help="relaxed structures with their status, extxyz")
    command.add_argument("--config", type=Path, help="YAML or JSON with the sections model, train and relax")
    command.add_argument("--fmax", type=float, help="converged below this force, eV/Å")
    command.add_argument("--workers", type=int, help="processes; default 1")
    command.add_argument("--device", help="cpu, cuda or auto, which is the default: a GPU where there is one")
    command.add_argument("--work-dir", type=Path, help="folder that lets a killed run go on")
    command.set_defaults(run=_relax)


def _train(args: argparse.Namespace) -> None:
    """Fit a potential and save it with its history."""
    from acnn import checkpoint
    from acnn.config import ModelConfig, TrainConfig
    from acnn.output import check_output, write_whole
    from acnn.read import read_frames
    from acnn.settings import read_config, section
    from acnn.train import history_csv, train

    read = {"DATA": args.data, "--config": args.config, "--previous": args.previous}
    check_output("--out", args.out, read)
    table = _table(args)
    check_output("--metrics", table, {**read, "--out": args.out})
    if not 0 <= args.seed < 2**63:
        raise ConfigError(f"--seed: must be from 0 to 2^63 - 1, got {args.seed}")
    sections = read_config(args.config)
    given = {"max_time": args.max_time, "threads": _checked_threads(args.threads)}
    settings = section("train", TrainConfig, sections, args.config, given)
    previous = checkpoint.load(args.previous) if args.previous else None
    model = section("model", ModelConfig, sections, args.config)
    if previous is not None and "model" not in sections:
        model = previous.config
    frames = read_frames(args.data)
    try:
        result = train(
            frames,
            model=model,
            settings=settings,
            seed=args.seed,
            previous=previous,
            work_dir=args.work_dir,
            label_fingerprint=previous.metadata.get("label_fingerprint", "") if previous else "",
        )
    except StateError:
        raise
    except (DataError, ModelError) as exc:
        raise type(exc)(f"{args.data}: {exc}") from exc
    checkpoint.save(result.potential, args.out)
    write_whole(table, history_csv(result.history).encode())
    force = result.errors.get("force_mae_ev_per_a")
    kind = "held-out" if result.n_held_out else "nothing is held out; of learned labels,"
    sys.stdout.write(
        f"{args.out}: {result.n_train} labels learned, {result.n_held_out} held out, "
        f"{sum(result.dropped.values())} set aside, {result.seconds:.0f} s\n"
        f"{kind} mean absolute errors: {1e3 * result.errors['energy_mae_ev_per_atom']:.2f} meV/atom, "
        f"{'-' if force is None else format(force, '.4f')} eV/Å\n"
    )
    for reason, count in sorted(result.dropped.items()):
        sys.stdout.write(f"set aside: {count} x {reason}\n")
    for what, count in sorted(result.lacking.items()):
        sys.stdout.write(f"lacking: {count} x {what}\n")
    for reason, count in sorted(result.doubted.items()):
        sys.stdout.write(f"counting less: {count} x {reason}\n")


def _table(args: argparse.Namespace) -> Path:
    """Name the table of the errors: beside the model, if no other file has that name."""
    if args.metrics is not None:
        return Path(args.metrics)
    out: Path = args.out
    table = out.with_suffix(".csv") if out.suffix in (".acnn", ".csv") else out.with_name(out.name + ".csv")
    if table.resolve() == args.out.resolve():
        raise ConfigError(f"--out: {args.out} is also the table of the errors; choose another ending, or --metrics")
    if table.is_file():
        with table.open("rb") as file:
            if file.read(5) not in (b"", b"step,"):
                raise ConfigError(f"--metrics: {table} exists and is no table of errors; say where the table is to go")
    return table


def _evaluate(args: argparse.Namespace) -> None:
    """Print the errors of a potential."""
    from acnn import checkpoint
    from acnn.evaluate import evaluate
    from acnn.read import read_frames

    _set_threads(_checked_threads(args.threads))
    potential = checkpoint.load(args.model)
    frames = read_frames(args.data)
    try:
        metrics = evaluate(potential, frames)
    except (DataError, ModelError) as exc:
        raise type(exc)(f"{args.data}: {exc}") from exc
    if args.json:
        sys.stdout.write(metrics.model_dump_json(indent=1) + "\n")
        return
    for name, field in type(metrics).model_fields.items():
        value = getattr(metrics, name)
        shown = "-" if value is None else f"{value:.5g}"
        sys.stdout.write(f"{shown:>12}  {field.description}\n")


def _relax(args: argparse.Namespace) -> None:
    """Relax a file and say how its structures ended."""
    from tqdm import tqdm

    from acnn.config import RelaxConfig
    from acnn.device import choose_device
    from acnn.output import check_output
    from acnn.relax.stream import relax_file
    from acnn.settings import read_config, section

    model = None if args.model.startswith(TORCHSIM) else Path(args.model)
    check_output("--out", args.out, {"DATA": args.data, "--model": model, "--config": args.config})
    given = {name: getattr(args, name) for name in ("fmax", "workers", "device")}
    settings = section("relax", RelaxConfig, read_config(args.config), args.config, given)
    _set_threads(1)
    potential = _load_potential(args.model, choose_device(settings.device))
    if not sys.stderr.isatty():  # a batch job: lines with the rate in place of a bar
        logging.getLogger("acnn.relax").setLevel(logging.INFO)
    with tqdm(disable=None, unit="crystal") as bar:
        counts = relax_file(
            args.data,
            args.out,
            potential,
            settings,
            pressure_gpa=args.pressure,
            folder=args.work_dir,
            progress=bar.update,
        )
    for outcome, count in sorted(counts.items()):
        sys.stdout.write(f"{count:8d}  {outcome}\n")


def _load_potential(model: str, device: torch.device) -> PotentialLike:
    """Load a potential from its file, or a TorchSim model by the function that makes it."""
    from acnn import checkpoint
    from acnn.relax import torchsim

    if model.startswith(TORCHSIM):
        return torchsim.load(model.removeprefix(TORCHSIM), device)
    return checkpoint.load(Path(model)).to(device)


def _checked_threads(threads: int | None) -> int | None:
    """Refuse a number of threads that no machine has."""
    from acnn.config import MOST_THREADS

    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ConfigError(f"--threads: must be from 1 to {MOST_THREADS}, got {threads}")
    return threads


def _set_threads(threads: int | None) -> None:
    """Limit the threads of torch."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments
        Without the program's name; None: those of the process.

    Returns
    -------
    int
        0, or 2 for wrong settings, 130 if interrupted, or 1 for another error.
    """
    args = build_parser().parse_args(arguments)
    logging.getLogger("acnn").handlers = [logging.StreamHandler()]  # of this call only
    try:
        args.run(args)
    except AcnnError as exc:
        if args.debug:
            sys.stderr.write(traceback.format_exc())
        sys.stderr.write(f"acnn {args.command}: {exc}\n")
        return 2 if isinstance(exc, ConfigError) else 1
    except OSError as exc:  # a disk that is full, a file that has gone
        if args.debug:
            sys.stderr.write(traceback.format_exc())
        sys.stderr.write(f"acnn {args.command}: {exc.filename or 'a file'}: {exc.strerror or exc}\n")
        return 1
    except KeyboardInterrupt:
        folder = getattr(args, "work_dir", None)
        goes_on = f"; the same command goes on from what {folder} holds" if folder else ""
        sys.stderr.write(f"acnn {args.command}: interrupted{goes_on}\n")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
