"""Relax thousands of different crystals at once: finished ones leave, new ones enter."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from acnn.errors import ConfigError, DataError
from acnn.neighbors import build_neighbors
from acnn.relax.guard import SMALLEST_VOLUME, closest_ratio, distance_table
from acnn.relax.minimizer import Minimizer, Trial
from acnn.relax.pool import GPA, Job, Pool
from acnn.relax.result import FailureReason, Relaxed, RelaxStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ase import Atoms

    from acnn.config import RelaxConfig
    from acnn.relax.interface import PotentialLike
    from acnn.relax.pool import Geometry

logger = logging.getLogger(__name__)

CODES = tuple(FailureReason)
"""Reasons by number, from 1; 0 is none."""

CODE = {reason: number for number, reason in enumerate(CODES, start=1)}
"""Numbers of the reasons."""

RETRIES = 5
"""Shortened steps in a row that may end beyond a limit before the structure counts as unsafe."""

RETRIED = (FailureReason.TOO_CLOSE, FailureReason.VOLUME, FailureReason.NOT_FINITE)
"""Reasons that a shorter step may avoid."""

CPU_ATOMS = 2048
"""Atoms in flight on a CPU: enough to hide the overhead of a step."""

CUDA_ATOMS = 400_000
"""Atoms in flight on a GPU, to begin with."""


@dataclass(frozen=True)
class Found:
    """What the potential and the guards say of the trial points of some slots.

    Attributes
    ----------
    trial
        Enthalpies and gradients.
    codes
        Number of the limit that is broken, 0 if none, shape (n,).
    energy
        Energies, shape (n,), eV.
    spread
        Standard deviation of the committee, shape (n,), eV/atom.
    fmax
        Largest forces, shape (n,), eV/Å.
    residual
        Largest components of stress plus pressure, shape (n,), GPa.
    """

    trial: Trial
    codes: torch.Tensor
    energy: torch.Tensor
    spread: torch.Tensor
    fmax: torch.Tensor
    residual: torch.Tensor


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


class Engine:
    """Structures in flight and the potential that drives them.

    Parameters
    ----------
    potential
        Gives energies, forces and stresses of a batch.
    settings
        Convergence, steps and guards.
    table
        Minimum distances by atomic number, shape (119, 119), Å.
    """

    def __init__(self, potential: PotentialLike, settings: RelaxConfig, table: np.ndarray) -> None:
        device = torch.device(potential.device)
        default = CPU_ATOMS if device.type == "cpu" else CUDA_ATOMS
        self.potential = potential
        self.settings = settings
        self.limit = settings.batch_atoms or default
        self.table = torch.as_tensor(table, dtype=potential.dtype, device=device) * settings.bonds_scale
        self.pool = Pool(0, device)
        self.device = device
        self.n_calls = 0

    def run(self, jobs: Iterator[Job]) -> Iterator[Relaxed]:
        """Relax jobs until none is left.

        Parameters
        ----------
        jobs
            Structures to relax, read as slots become free.

        Yields
        ------
        Relaxed
            Results, in the order in which they finish.
        """
        first = _take(jobs, self.limit)
        if not first:
            return
        self._allocate(len(first))
        self._enter(first)
        while self.pool.used.any():
            yield from self._advance()
            vacant = self.pool.n_vacant
            if vacant * 8 >= self.pool.n_slots:
                self._enter(_take(jobs, self.limit, vacant))

    def _allocate(self, n_slots: int) -> None:
        """Make empty slots."""
        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
            return torch.zeros((n_slots, *shape), dtype=dtype, device=self.device)

        self.pool = Pool(n_slots, self.device)
        self.minimizer = Minimizer(n_slots, self.settings, self.device)
        self.n_steps = zeros(dtype=torch.int64)
        self.n_beyond = zeros(dtype=torch.int64)
        self.start_volume, self.start_enthalpy = zeros(), zeros()
        self.energy, self.spread, self.fmax, self.residual = zeros(), zeros(), zeros(), zeros()

    def _enter(self, jobs: list[Job]) -> None:
        """Put structures into vacant slots."""
        if not jobs:
            return
        width = max(len(job.atoms) for job in jobs)
        if width > self.pool.width:
            self.pool.widen(width)
            self.minimizer.widen(3 + width)
        rows = self.pool.enter(jobs)
        self.minimizer.start(rows, self.pool.point[rows])
        self.n_steps[rows] = 0
        self.n_beyond[rows] = 0
        self.start_volume[rows] = torch.linalg.det(self.pool.start_cell[rows]).abs()
        for values in (self.energy, self.spread, self.fmax, self.residual, self.start_enthalpy):
            values[rows] = torch.nan

    def _advance(self) -> list[Relaxed]:
        """Evaluate every trial point once, judge it, and propose the next."""
        rows = self.pool.active()
        found = self._evaluate(rows)
        beyond = found.codes > 0
        self.n_steps[rows] += 1
        self.n_beyond[rows] = torch.where(beyond, self.n_beyond[rows] + 1, 0)
        patient = self._retried(found.codes) & (self.n_beyond[rows] <= RETRIES) & self.minimizer.started[rows]
        accept = self.minimizer.judge(rows, found.trial)
        self._record(rows, found, accept)
        codes = self._verdict(rows, torch.where(patient, 0, found.codes))
        done = codes >= 0
        results = self._finish(rows[done], codes[done]) if bool(done.any()) else []
        self.minimizer.propose(rows[~done])
        return results

    def _verdict(self, rows: torch.Tensor, fatal: torch.Tensor) -> torch.Tensor:
        """Number the reason for which each structure ends; 0 if converged, -1 if it goes on."""
        settings = self.settings
        stalled = self.minimizer.stalled(rows)
        late = self.n_steps[rows] >= settings.max_steps
        quiet = (self.fmax[rows] < settings.fmax) & (self.residual[rows] < settings.stress_gpa)
        codes = torch.full_like(rows, -1)
        codes = torch.where(stalled, CODE[FailureReason.STALLED], codes)
        codes = torch.where(late, CODE[FailureReason.MAX_STEPS], codes)
        codes = torch.where(quiet & self.minimizer.started[rows], 0, codes)
        return torch.where(fatal > 0, fatal, codes)

    def _evaluate(self, rows: torch.Tensor) -> Found:
        """Ask the potential at the trial points, and hold them against the limits."""
        dtype = self.potential.dtype
        geometry = self.pool.geometry(rows, self.minimizer.trial[rows])
        batch, present = self.pool.batch(rows, geometry, dtype)
        neighbors = build_neighbors(batch, self.potential.cutoff)
        output = self.potential.compute(batch, neighbors)
        self.n_calls += 1
        forces = torch.zeros_like(geometry.positions)
        forces[present] = output.forces.detach().double()
        forces -= (forces.sum(1) / present.sum(1)[:, None])[:, None] * present[:, :, None]
        energy = output.energy.detach().double()
        pressure = self.pool.pressure[rows]
        stress = output.stress.detach().double()
        stress = 0.5 * (stress + stress.mT)
        residual = stress + pressure[:, None, None] * torch.eye(3, dtype=torch.float64, device=self.device)
        gradient = self.pool.gradient(rows, geometry, forces, residual)
        enthalpy = energy + pressure * geometry.volumes
        ratio = closest_ratio(batch, neighbors, self.table)
        codes = self._guard(rows, geometry, ratio, enthalpy, stress, gradient)
        return Found(
            trial=Trial(enthalpy, 4.0 * torch.finfo(dtype).eps * energy.abs(), gradient, codes == 0),
            codes=codes,
            energy=energy,
            spread=output.energy_spread.detach().double(),
            fmax=forces.norm(dim=2).amax(1),
            residual=residual.abs().amax((1, 2)) / GPA,
        )

    def _record(self, rows: torch.Tensor, found: Found, accept: torch.Tensor) -> None:
        """Keep what is known of the points that were accepted, and of starts that were not."""
        keep = accept | ~self.minimizer.started[rows]
        kept = rows[keep]
        first = rows[accept & self.start_enthalpy[rows].isnan()]
        self.start_enthalpy[first] = self.minimizer.enthalpy[first]
        self.energy[kept] = found.energy[keep]
        self.spread[kept] = found.spread[keep]
        self.fmax[kept] = found.fmax[keep]
        self.residual[kept] = found.residual[keep]

    def _finish(self, rows: torch.Tensor, codes: torch.Tensor) -> list[Relaxed]:
        """Hand out structures and vacate their slots."""
        geometry = self.pool.geometry(rows, self.minimizer.point[rows])
        cells, positions = geometry.cells.cpu().numpy(), geometry.positions.cpu().numpy()
        enthalpy = (self.energy[rows] + self.pool.pressure[rows] * geometry.volumes).tolist()
        values = torch.stack([self.fmax[rows], self.residual[rows], self.energy[rows], self.spread[rows]], dim=1).tolist()
        n_steps, started = self.n_steps[rows].tolist(), self.minimizer.started[rows].tolist()
        results = []
        for k, (slot, code) in enumerate(zip(rows.tolist(), codes.tolist(), strict=True)):
            reason = CODES[code - 1] if code else None
            atoms = self.pool.atoms(slot, cells[k], positions[k])
            status = _status(reason)
            fmax, residual, energy, spread = values[k]
            results.append(
                Relaxed(
                    index=self.pool.job(slot).index,
                    atoms=atoms,
                    status=status,
                    reason=reason.value if reason else "",
                    n_steps=n_steps[k],
                    fmax=fmax,
                    stress_residual_gpa=residual,
                    energy=energy,
                    enthalpy=enthalpy[k],
                    spread=spread,
                    last_safe=atoms.copy() if status is RelaxStatus.UNSAFE and started[k] else None,
                )
            )
            self.pool.leave(slot)
        return results

    def _guard(
        self,
        rows: torch.Tensor,
        geometry: Geometry,
        ratio: torch.Tensor,
        enthalpy: torch.Tensor,
        stress: torch.Tensor,
        gradient: torch.Tensor,
    ) -> torch.Tensor:
        """Number the first limit that each trial point breaks; 0 is none."""
        settings = self.settings
        counts = (self.pool.numbers[rows] > 0).sum(1)
        growth = geometry.volumes / self.start_volume[rows]
        start = torch.where(self.minimizer.started[rows], self.start_enthalpy[rows], enthalpy)
        broken = {
            FailureReason.ENERGY: (enthalpy - start) / counts < -settings.energy_drop,
            FailureReason.STRESS: stress.abs().amax((1, 2)) > settings.stress_limit_gpa * GPA,
            FailureReason.NOT_FINITE: ~(torch.isfinite(enthalpy) & torch.isfinite(gradient).all(2).all(1)),
            FailureReason.VOLUME: ~((growth > settings.volume_shrink) & (growth < settings.volume_growth))
            | (geometry.volumes < SMALLEST_VOLUME * counts),
            FailureReason.TOO_CLOSE: ~(ratio >= 1.0),
        }
        codes = torch.zeros_like(rows)
        for reason, where in broken.items():
            codes = torch.where(where, CODE[reason], codes)
        return codes

    @staticmethod
    def _retried(codes: torch.Tensor) -> torch.Tensor:
        """Tell which reasons a shorter step may avoid."""
        known = torch.tensor([CODE[reason] for reason in RETRIED], device=codes.device)
        return torch.isin(codes, known)


def _status(reason: FailureReason | None) -> RelaxStatus:
    """Say how a structure ended from the reason why it did not converge."""
    if reason is None:
        return RelaxStatus.CONVERGED
    if reason in (FailureReason.MAX_STEPS, FailureReason.STALLED):
        return RelaxStatus.UNCONVERGED
    return RelaxStatus.UNSAFE


def _take(jobs: Iterator[Job], n_atoms: int, n_jobs: int | None = None) -> list[Job]:
    """Read jobs until they have so many atoms together, or until there are enough."""
    taken: list[Job] = []
    total = 0
    while total < n_atoms and (n_jobs is None or len(taken) < n_jobs):
        job = next(jobs, None)
        if job is None:
            break
        taken.append(job)
        total += len(job.atoms)
    return taken
