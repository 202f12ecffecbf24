"""Relax a file of structures into another, holding only what is in flight."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from acnn.errors import ConfigError, DataError
from acnn.read import read_stream
from acnn.relax.relaxer import relax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ase import Atoms

    from acnn.config import RelaxConfig
    from acnn.relax.interface import PotentialLike
    from acnn.relax.result import Relaxed


def _bare(frames: Iterator[Atoms]) -> Iterator[Atoms]:
    """Take from structures what a file says of their energies and forces."""
    for atoms in frames:
        atoms.calc = None
        yield atoms


def annotated(result: Relaxed, pressure_gpa: float) -> Atoms:
    """Put the outcome of a relaxation into the final structure.

    Parameters
    ----------
    result
        The outcome.
    pressure_gpa
        Target pressure, GPa.

    Returns
    -------
    Atoms
        A copy with the energy as its calculator's and the rest in `info`.
    """
    atoms: Atoms = result.atoms.copy()
    atoms.info |= {
        "relax_status": result.status.value,
        "relax_reason": result.reason or "none",  # extxyz cannot hold empty text
        "relax_steps": result.n_steps,
        "fmax": result.fmax,
        "stress_residual_gpa": result.stress_residual_gpa,
        "enthalpy": result.enthalpy,
        "energy_spread_per_atom": result.spread,
        "pressure_gpa": pressure_gpa,
    }
    atoms.calc = SinglePointCalculator(atoms, energy=result.energy)
    return atoms


def relax_file(
    source: Path,
    out: Path,
    potential: PotentialLike,
    settings: RelaxConfig,
    *,
    pressure_gpa: float,
    folder: Path | None = None,
    progress: Callable[[], object] | None = None,
) -> Counter[str]:
    """Relax all structures of a file, in constant memory.

    Parameters
    ----------
    source
        Structures, extxyz by preference.
    out
        Relaxed structures in the same order, extxyz; there only when all are done.
    potential
        Gives energies, forces and stresses.
    settings
        Convergence, steps, guards, and processes that share the work.
    pressure_gpa
        Target pressure, GPa.
    folder
        Where finished structures are kept, so that a killed run continues.
    progress
        Called after each structure.

    Returns
    -------
    Counter[str]
        Structures by status, and by reason where there is one.

    Raises
    ------
    ConfigError
        If the output cannot be written.
    DataError
        If there is no structure in the file.
    """
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"{out}: its folder does not exist")
    if out.is_dir():
        raise ConfigError(f"{out}: expected a file to write to, this is a folder")
    counts: Counter[str] = Counter()
    partial = out.with_name(out.name + ".partial")
    try:
        file = partial.open("w")
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error}") from error
    try:
        with file:
            frames = _bare(read_stream(source))
            for result in relax(frames, potential, settings, pressure_gpa=pressure_gpa, folder=folder):
                write(file, annotated(result, pressure_gpa), format="extxyz")
                counts[result.status.value + (f": {result.reason}" if result.reason else "")] += 1
                if progress is not None:
                    progress()
    except DataError as error:
        if not counts:
            raise
        again = "" if folder else "; with a folder for its work it would go on from there"
        raise DataError(f"{error}; the {counts.total()} before it are in {partial}{again}") from error
    finally:
        if not counts:
            partial.unlink()
    partial.replace(out)
    return counts
