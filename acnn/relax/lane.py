"""Structures of similar size in flight: every step of theirs is evaluated, judged and followed by the next."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from acnn.relax.cache import NeighborCache
from acnn.relax.guard import CODE, CODES, GPA, RETRIED, closest_ratio, first_broken
from acnn.relax.memory import is_refusal
from acnn.relax.minimizer import Minimizer, Trial
from acnn.relax.pool import Pool
from acnn.relax.result import FailureReason, Relaxed, RelaxStatus

if TYPE_CHECKING:
    from acnn.config import RelaxConfig
    from acnn.relax.interface import PotentialLike
    from acnn.relax.memory import Budget
    from acnn.relax.pool import Job

RETRIES = 5
"""Steps of a structure that may end beyond a limit, and be shortened, before it counts as unsafe."""

ATOM_ENERGY = 10.0
"""Typical energy that a network gives to an atom, eV."""


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


class Lane:
    """Slots of one width, and what is known of the structures in them.

    Parameters
    ----------
    potential
        Gives energies, forces and stresses of a batch.
    settings
        Convergence, steps and guards.
    table
        Minimum distances by atomic number, shape (119, 119), Å.
    budget
        What fits into memory; shared by all lanes.
    n_slots
        Structures held at once.
    width
        Atoms of the largest structure.
    """

    def __init__(
        self,
        potential: PotentialLike,
        settings: RelaxConfig,
        table: torch.Tensor,
        budget: Budget,
        *,
        n_slots: int,
        width: int,
    ) -> None:
        device = self.device = torch.device(potential.device)

        def zeros(dtype: torch.dtype = torch.float64) -> torch.Tensor:
            return torch.zeros(n_slots, dtype=dtype, device=device)

        self.potential, self.settings, self.table, self.budget = potential, settings, table, budget
        self.width = width
        self.pool = Pool(n_slots, width, device)
        self.minimizer = Minimizer(n_slots, 3 + width, settings, device)
        skin = 0.0 if budget.tight else settings.skin
        self.neighbors = NeighborCache(n_slots, potential.cutoff, skin, potential.dtype, device)
        self.retried = torch.tensor([CODE[reason] for reason in RETRIED], device=device)
        self.n_steps, self.n_beyond = zeros(torch.int64), zeros(torch.int64)
        self.start_volume, self.start_energy = zeros(), zeros()
        self.energy, self.spread, self.fmax, self.residual = zeros(), zeros(), zeros(), zeros()

    def enter(self, jobs: list[Job]) -> None:
        """Put structures into vacant slots; all or, where the memory does not suffice, none.

        Parameters
        ----------
        jobs
            At most as many as there are vacant slots, none larger than the width.
        """
        slots = self.pool.vacant(len(jobs))
        try:
            rows = self.pool.enter(slots, jobs)
            self.minimizer.start(rows, self.pool.point[rows])
            self.neighbors.forget(rows)
            self.n_steps[rows] = 0
            self.n_beyond[rows] = 0
            self.start_volume[rows] = torch.linalg.det(self.pool.start_cell[rows]).abs()
            for values in (self.energy, self.spread, self.fmax, self.residual, self.start_energy):
                values[rows] = torch.nan
        except (MemoryError, RuntimeError):
            self.pool.leave(slots)
            raise
        self.budget.in_flight += sum(len(job.atoms) for job in jobs)

    def advance(self) -> list[Relaxed]:
        """Evaluate every trial point once, judge it, and propose the next.

        Returns
        -------
        list[Relaxed]
            Structures whose relaxation has ended.
        """
        rows = self.pool.active()
        found = self._evaluate(rows)
        beyond = found.codes > 0
        self.n_steps[rows] += 1
        self.n_beyond[rows] = self.n_beyond[rows] + beyond
        patient = (
            torch.isin(found.codes, self.retried) & (self.n_beyond[rows] <= RETRIES) & self.minimizer.started[rows]
        )
        accept = self.minimizer.judge(rows, found.trial)
        self._record(rows, found, accept)
        codes = self._verdict(rows, torch.where(patient, 0, found.codes))
        done = codes >= 0
        results = self._finish(rows[done], codes[done]) if bool(done.any()) else []
        self.minimizer.propose(rows[~done])
        return results

    def evict(self) -> list[Job]:
        """Vacate all slots.

        Returns
        -------
        list[Job]
            The structures as they came.
        """
        slots = self.pool.active().tolist()
        jobs = [self.pool.job(slot) for slot in slots]
        self.pool.leave(slots)
        self.budget.in_flight -= sum(len(job.atoms) for job in jobs)
        return jobs

    def _verdict(self, rows: torch.Tensor, fatal: torch.Tensor) -> torch.Tensor:
        """Give the number of the reason for which each structure ends; 0 if converged, -1 if it goes on."""
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
        """Evaluate the trial points, in halves if the memory does not suffice or did not before."""
        n_atoms = int((self.pool.numbers[rows] > 0).sum())
        if n_atoms <= self.budget.together or len(rows) == 1:
            try:
                return self._evaluate_once(rows)
            except (MemoryError, RuntimeError) as error:
                if not is_refusal(error):
                    raise
                kept = self.neighbors.skin
                self.neighbors.release()
                if len(rows) == 1:
                    if not kept:
                        raise
                    return self._evaluate(rows)
                self.budget.halve(n_atoms)
        half = len(rows) // 2
        return _join(self._evaluate(rows[:half]), self._evaluate(rows[half:]))

    def _evaluate_once(self, rows: torch.Tensor) -> Found:
        """Ask the potential at the trial points, and hold them against the limits."""
        dtype = self.potential.dtype
        geometry = self.pool.geometry(rows, self.minimizer.trial[rows])
        batch, present = self.pool.batch(rows, geometry, dtype)
        neighbors = self.neighbors.update(rows, geometry, present, batch)
        output = self.potential.compute(batch, neighbors)
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
        counts = present.sum(1)
        start = torch.where(self.minimizer.started[rows], self.start_energy[rows], energy)
        codes = first_broken(
            self.settings,
            ratio=ratio,
            volume_per_atom=geometry.volumes / counts,
            growth=geometry.volumes / self.start_volume[rows],
            drop=(start - energy) / counts,
            stress=stress.abs().amax((1, 2)),
            finite=torch.isfinite(enthalpy) & torch.isfinite(gradient).all(2).all(1),
        )
        return Found(
            trial=Trial(enthalpy, _noise(output.energy, dtype, counts), gradient, codes == 0),
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
        self.energy[kept] = found.energy[keep]
        first = rows[accept & self.start_energy[rows].isnan()]
        self.start_energy[first] = self.energy[first]
        self.spread[kept] = found.spread[keep]
        self.fmax[kept] = found.fmax[keep]
        self.residual[kept] = found.residual[keep]

    def _finish(self, rows: torch.Tensor, codes: torch.Tensor) -> list[Relaxed]:
        """Hand out structures and vacate their slots."""
        geometry = self.pool.geometry(rows, self.minimizer.point[rows])
        slots = rows.tolist()
        enthalpy = (self.energy[rows] + self.pool.pressure[rows] * geometry.volumes).tolist()
        values = torch.stack(
            [self.fmax[rows], self.residual[rows], self.energy[rows], self.spread[rows]], dim=1
        ).tolist()
        n_steps, started = self.n_steps[rows].tolist(), self.minimizer.started[rows].tolist()
        results = []
        for k, (slot, code, atoms) in enumerate(
            zip(slots, codes.tolist(), self.pool.atoms(slots, geometry), strict=True)
        ):
            reason = CODES[code - 1] if code else None
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
        self.pool.leave(slots)
        self.budget.in_flight -= sum(len(result.atoms) for result in results)
        return results


def _status(reason: FailureReason | None) -> RelaxStatus:
    """Say how a structure ended from the reason why it did not converge."""
    if reason is None:
        return RelaxStatus.CONVERGED
    if reason in (FailureReason.MAX_STEPS, FailureReason.STALLED):
        return RelaxStatus.UNCONVERGED
    return RelaxStatus.UNSAFE


def _noise(energy: torch.Tensor, dtype: torch.dtype, counts: torch.Tensor) -> torch.Tensor:
    """Estimate the rounding of energies, eV: of the total, or of the atoms' where they were summed more exactly."""
    eps = torch.finfo(dtype).eps
    if energy.dtype is torch.float64 and dtype is not torch.float64:
        return 2.0 * eps * ATOM_ENERGY * counts
    return 4.0 * eps * energy.detach().double().abs()


def _join(first: Found, second: Found) -> Found:
    """Put two halves together."""

    def both(one: object, other: object, kind: type) -> dict[str, torch.Tensor]:
        names = [field.name for field in fields(kind) if field.name != "trial"]
        return {name: torch.cat([getattr(one, name), getattr(other, name)]) for name in names}

    trial = Trial(**both(first.trial, second.trial, Trial))
    return Found(trial=trial, **both(first, second, Found))
