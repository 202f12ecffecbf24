"""Relax thousands of different crystals at once."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter, deque
from collections.abc import Sized
from typing import TYPE_CHECKING, Any

import numpy as np

from acnn.errors import ConfigError
from acnn.relax.engine import Engine
from acnn.relax.guard import distance_table
from acnn.relax.journal import Journal
from acnn.relax.parallel import relax_parallel
from acnn.relax.pool import Job
from acnn.relax.result import Relaxed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ase import Atoms

    from acnn.config import RelaxConfig
    from acnn.relax.interface import PotentialLike

logger = logging.getLogger(__name__)

LOG_SECONDS = 30.0
"""Time between two lines of progress, s."""


def relax(
    frames: Iterable[Atoms],
    potential: PotentialLike,
    settings: RelaxConfig,
    *,
    pressure_gpa: float | Sequence[float] | np.ndarray,
    min_distance: Mapping[tuple[str, str], float] | np.ndarray | None = None,
    folder: Path | None = None,
) -> Iterator[Relaxed]:
    """Minimise the enthalpy of many crystals, positions and full cell together.

    Structures are read only as they are needed, so that memory does not grow with their number.

    Parameters
    ----------
    frames
        Periodic structures of any size and composition.
    potential
        Gives energies, forces and stresses of a batch.
    settings
        Convergence, steps, guards, and processes that share the work.
    pressure_gpa
        Target pressure, or one for each structure, GPa.
    min_distance
        Minimum distances by pair of symbols, Å, or an array by atomic number; where none is given, 0.8 times the
        sum of the covalent radii. A pair closer than `bonds_scale` times this is unsafe.
    folder
        Where finished structures are kept. Asked again with the same folder, input and settings, a relaxation
        that was killed relaxes only the structures that are missing.

    Yields
    ------
    Relaxed
        The end of each structure, in the order of the input.
    """
    table = distance_table(min_distance)
    jobs = read_jobs(frames, pressure_gpa)
    if folder is None:
        yield from in_order(_logged(_run(jobs, potential, settings, table)))
        return
    journal = Journal(folder, _request(potential, settings, table))
    if len(journal):
        logger.info("%s: %d structures are done already", folder, len(journal))
    yield from in_order(_logged(_resumed(journal, jobs, lambda todo: _run(todo, potential, settings, table))))


def in_order(results: Iterable[Relaxed]) -> Iterator[Relaxed]:
    """Sort results that come nearly in order.

    Parameters
    ----------
    results
        Results with numbers from 0, each once.

    Yields
    ------
    Relaxed
        The same by rising number.
    """
    waiting: dict[int, Relaxed] = {}
    expected = 0
    for result in results:
        waiting[result.index] = result
        while expected in waiting:
            yield waiting.pop(expected)
            expected += 1


def _run(jobs: Iterator[Job], potential: PotentialLike, settings: RelaxConfig, table: np.ndarray) -> Iterator[Relaxed]:
    """Relax in this process or in several."""
    if settings.workers == 1:
        return Engine(potential, settings, table).run(jobs)
    return relax_parallel(jobs, potential, settings, table)


def _resumed(
    journal: Journal, jobs: Iterator[Job], run: Callable[[Iterator[Job]], Iterator[Relaxed]]
) -> Iterator[Relaxed]:
    """Give the results on disk, relax the rest and keep it."""
    items = journal.remaining(jobs)
    stored: deque[Relaxed] = deque()
    first: list[Job] = []
    for item in items:  # what is done at the front, mostly all of it, waits for nothing
        if isinstance(item, Job):
            first.append(item)
            break
        yield item

    def todo() -> Iterator[Job]:
        yield from first
        for item in items:
            if isinstance(item, Relaxed):
                stored.append(item)
            else:
                yield item

    try:
        for result in run(todo()):
            journal.add(result)
            yield result
            while stored:
                yield stored.popleft()
        yield from stored
    finally:
        journal.flush()


def _request(potential: PotentialLike, settings: RelaxConfig, table: np.ndarray) -> dict[str, Any]:
    """Say what the results of a folder depend on; not what only changes the speed."""
    state = getattr(potential, "state_dict", None)
    digest = hashlib.sha256(table.tobytes())
    for name, tensor in sorted(state().items()) if state is not None else ():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return {
        "settings": settings.model_dump(mode="json", exclude={"batch_atoms", "device", "workers"}),
        "model_and_distances": digest.hexdigest()[:16],
        "dtype": str(potential.dtype),
    }


def _logged(results: Iterator[Relaxed]) -> Iterator[Relaxed]:
    """Log the progress every half minute, and at the end."""
    start = last = time.monotonic()
    counts: Counter[str] = Counter()

    def log(now: float) -> None:
        seconds = max(now - start, 1e-9)
        rate = counts.total() / seconds
        logger.info("%d structures in %.1f s, %.1f a second: %s", counts.total(), seconds, rate, dict(counts))

    for result in results:
        counts[result.status.value] += 1
        if time.monotonic() - last > LOG_SECONDS:
            last = time.monotonic()
            log(last)
        yield result
    log(time.monotonic())


def read_jobs(frames: Iterable[Atoms], pressure_gpa: float | Sequence[float] | np.ndarray) -> Iterator[Job]:
    """Give each structure its number and its pressure.

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
        If there are not as many pressures as structures, or one is no number.
    """
    pressures = np.asarray(pressure_gpa, dtype=float)
    if pressures.ndim > 1 or not np.isfinite(pressures).all():
        raise ConfigError(f"pressure_gpa: expected one finite number, or one for each structure, got {pressure_gpa}")
    if pressures.ndim and isinstance(frames, Sized) and len(frames) != len(pressures):
        raise ConfigError(f"pressure_gpa: expected one for each of {len(frames)} structures, got {len(pressures)}")
    warned = False
    n_read = 0
    for index, atoms in enumerate(frames):
        if pressures.ndim and index >= len(pressures):
            raise ConfigError(f"pressure_gpa: expected one for each structure, got {len(pressures)}")
        n_read += 1
        if atoms.constraints and not warned:
            logger.warning("structure %d: constraints are not kept, all atoms and the cell are relaxed", index)
            warned = True
        yield Job(index, atoms, float(pressures[index] if pressures.ndim else pressures))
    if pressures.ndim and n_read != len(pressures):
        raise ConfigError(f"pressure_gpa: expected one for each of {n_read} structures, got {len(pressures)}")
