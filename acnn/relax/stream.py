"""Relax a file of structures into another, holding only what is in flight."""

from __future__ import annotations

from collections import Counter
from io import StringIO
from itertools import chain, islice
from typing import TYPE_CHECKING

from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import iread, write
from ase.io.formats import UnknownFileTypeError

from acnn.errors import ConfigError, DataError
from acnn.relax.relaxer import relax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ase import Atoms

    from acnn.config import RelaxConfig
    from acnn.relax.interface import PotentialLike
    from acnn.relax.result import Relaxed


PORTION = 64
"""Structures of a file that are held as text."""


def read_stream(path: Path) -> Iterator[Atoms]:
    """Read structures one by one.

    Parameters
    ----------
    path
        Any format that ASE reads; extxyz is read as a stream.

    Yields
    ------
    Atoms
        A structure.

    Raises
    ------
    DataError
        If the file cannot be read or holds nothing; names it and the structure.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    n_read = 0
    try:
        stream = path.stat().st_size == 0 or path.suffix in (".xyz", ".extxyz")
        sources = _portions(path) if stream else (path,)
        for source in sources:
            for atoms in iread(source, index=":", format=None if source is path else "extxyz"):
                n_read += 1
                atoms.calc = None
                yield atoms
    except DataError:
        raise
    except (OSError, ValueError, KeyError, IndexError, StopIteration, AssertionError, UnknownFileTypeError) as error:
        raise DataError(f"{path}: structure {n_read} cannot be read: {error}") from error
    if n_read == 0:
        raise DataError(f"{path}: holds no structure")


def _portions(path: Path) -> Iterator[StringIO]:
    """Cut an extxyz file into pieces; ASE would note the place of every structure before it reads the first."""
    with path.open() as file:
        frames = _texts(path, file)
        while lines := list(chain.from_iterable(islice(frames, PORTION))):
            yield StringIO("".join(lines))


def _texts(path: Path, file: Iterator[str]) -> Iterator[list[str]]:
    """Give the lines of each structure of an extxyz file; lines between them may be blank."""
    number = 0
    for first in file:
        number += 1
        if not first.strip():
            continue
        if not first.strip().isdecimal():
            raise DataError(f"{path}: line {number}: expected the number of atoms of a structure, got {first.strip()}")
        lines = [first, *islice(file, int(first) + 1)]
        number += len(lines) - 1
        yield lines


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
            frames = read_stream(source)
            for result in relax(frames, potential, settings, pressure_gpa=pressure_gpa, folder=folder):
                write(file, annotated(result, pressure_gpa), format="extxyz")
                counts[result.status.value + (f": {result.reason}" if result.reason else "")] += 1
                if progress is not None:
                    progress()
    finally:
        if not counts:
            partial.unlink()
    partial.replace(out)
    return counts
