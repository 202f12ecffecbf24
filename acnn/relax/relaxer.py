"""Relax thousands of different crystals at once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from acnn.errors import ConfigError, DataError
from acnn.relax.engine import Engine
from acnn.relax.guard import distance_table
from acnn.relax.pool import Job

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ase import Atoms

    from acnn.config import RelaxConfig
    from acnn.relax.interface import PotentialLike
    from acnn.relax.result import Relaxed

logger = logging.getLogger(__name__)


def relax(
    frames: Iterable[Atoms],
    potential: PotentialLike,
    settings: RelaxConfig,
    *,
    pressure_gpa: float | Sequence[float] | np.ndarray,
    min_distance: Mapping[tuple[str, str], float] | np.ndarray | None = None,
) -> Iterator[Relaxed]:
    """Minimise the enthalpy of many crystals, positions and full cell together.

    Structures are read only as slots become free, so that memory does not grow with their number.

    Parameters
    ----------
    frames
        Periodic structures of any size and composition.
    potential
        Gives energies, forces and stresses of a batch.
    settings
        Convergence, steps and guards.
    pressure_gpa
        Target pressure, or one for each structure, GPa.
    min_distance
        Minimum distances by pair of symbols, Å, or an array by atomic number; where none is given, 0.8 times the
        sum of the covalent radii. A pair closer than `bonds_scale` times this is unsafe.

    Yields
    ------
    Relaxed
        The end of each structure, in the order of the input.
    """
    engine = Engine(potential, settings, distance_table(min_distance))
    waiting: dict[int, Relaxed] = {}
    expected = 0
    for result in engine.run(read_jobs(frames, pressure_gpa)):
        waiting[result.index] = result
        while expected in waiting:
            yield waiting.pop(expected)
            expected += 1


def read_jobs(frames: Iterable[Atoms], pressure_gpa: float | Sequence[float] | np.ndarray) -> Iterator[Job]:
    """Number the structures and give each its pressure.

    Parameters
    ----------
    frames
        Structures.
    pressure_gpa
        One pressure, or one for each structure, GPa.

    Yields
    ------
    Job
        Structure, number and pressure.

    Raises
    ------
    ConfigError
        If there are fewer pressures than structures.
    DataError
        If a structure is empty, not periodic or has a singular cell.
    """
    pressures = np.asarray(pressure_gpa, dtype=float)
    for index, atoms in enumerate(frames):
        if pressures.ndim and index >= len(pressures):
            raise ConfigError(f"pressure_gpa: expected one for each structure, got {len(pressures)}")
        cell = atoms.cell.array
        if len(atoms) == 0 or not atoms.pbc.all() or not abs(np.linalg.det(cell)) > 0 or (atoms.numbers < 1).any():
            raise DataError(f"structure {index}: expected atoms in a periodic cell with a volume, got {atoms}")
        yield Job(index, atoms, float(pressures[index] if pressures.ndim else pressures))
