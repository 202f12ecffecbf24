"""The structures in flight: a fixed number of slots, padded to the same number of atoms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from acnn.batch import Batch
from acnn.relax.guard import GPA
from acnn.relax.strain import Deformation

if TYPE_CHECKING:
    from ase import Atoms


CELL_LENGTH = 0.65
"""Displacement that counts as much as a strain of one, in units of sqrt(n_atoms) times the spacing; measured best."""


@dataclass(frozen=True)
class Job:
    """One structure that waits for a slot.

    Attributes
    ----------
    index
        Place in the input.
    atoms
        The structure.
    pressure_gpa
        Its target pressure, GPa.
    """

    index: int
    atoms: Atoms
    pressure_gpa: float


@dataclass(frozen=True)
class Geometry:
    """Cells and padded positions of some slots.

    Attributes
    ----------
    cells
        Lattice vectors as rows, shape (n, 3, 3), Å.
    positions
        Positions, shape (n, width, 3), Å.
    volumes
        Volumes, shape (n,), Å^3.
    deformation
        Exponential of the log of the deformation gradient.
    """

    cells: torch.Tensor
    positions: torch.Tensor
    volumes: torch.Tensor
    deformation: Deformation


class Pool:
    """Slots of structures in flight, all in float64.

    A point has shape (3 + width, 3): the log of the deformation gradient times `length`, then positions in the
    undeformed frame, folded into the cell so that no digits are lost in the potential's floating type; `images` says
    how to unfold them.

    Parameters
    ----------
    n_slots
        Structures held at once.
    width
        Atoms of the largest structure.
    device
        Where the tensors live.
    """

    def __init__(self, n_slots: int, width: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
            return torch.zeros((n_slots, *shape), dtype=dtype, device=device)

        self.n_slots = n_slots
        self.device = device
        self.width = width
        self.jobs: list[Job | None] = [None] * n_slots
        self.vacancies = np.ones(n_slots, dtype=bool)
        self.used = zeros(dtype=torch.bool)
        self.numbers = zeros(self.width, dtype=torch.int64)
        self.start_cell = zeros(3, 3)
        self.length = zeros()
        self.pressure = zeros()
        self.point = zeros(3 + self.width, 3)
        self.images = np.zeros((n_slots, self.width, 3))

    @property
    def n_used(self) -> int:
        """Slots with a structure."""
        return self.n_slots - self.n_vacant

    @property
    def n_vacant(self) -> int:
        """Slots without a structure."""
        return int(np.count_nonzero(self.vacancies))

    def active(self) -> torch.Tensor:
        """Give the slots in use, shape (n,)."""
        return torch.nonzero(self.used)[:, 0]

    def vacant(self, n_slots: int) -> list[int]:
        """Find vacant slots.

        Parameters
        ----------
        n_slots
            How many are wanted; no more than there are.

        Returns
        -------
        list[int]
            The first ones.
        """
        vacant: list[int] = np.flatnonzero(self.vacancies)[:n_slots].tolist()
        return vacant

    def enter(self, slots: list[int], jobs: list[Job]) -> torch.Tensor:
        """Put structures into vacant slots.

        Parameters
        ----------
        slots
            The slots.
        jobs
            A structure for each, none larger than `width`.

        Returns
        -------
        torch.Tensor
            The slots, shape (n,).
        """
        self.vacancies[slots] = False
        numbers = np.zeros((len(jobs), self.width), dtype=np.int64)
        positions = np.zeros((len(jobs), 3 + self.width, 3))
        for row, (slot, job) in enumerate(zip(slots, jobs, strict=True)):
            self.jobs[slot] = job
            numbers[row, : len(job.atoms)] = job.atoms.numbers
            positions[row, 3 : 3 + len(job.atoms)] = job.atoms.positions
        cells = np.array([job.atoms.cell.array for job in jobs])
        images = np.floor(positions[:, 3:] @ np.linalg.inv(cells))
        positions[:, 3:] -= images @ cells
        self.images[slots] = images
        counts = np.array([len(job.atoms) for job in jobs])
        volumes = np.abs(np.linalg.det(cells))
        lengths = CELL_LENGTH * np.sqrt(counts) * np.cbrt(volumes / counts)
        rows = torch.as_tensor(slots, device=self.device)
        self.used[rows] = True
        self.numbers[rows] = self._tensor(numbers)
        self.point[rows] = self._tensor(positions)
        self.start_cell[rows] = self._tensor(cells)
        self.length[rows] = self._tensor(lengths)
        self.pressure[rows] = self._tensor(np.array([job.pressure_gpa for job in jobs])) * GPA
        return rows

    def job(self, slot: int) -> Job:
        """Give the structure in a slot.

        Parameters
        ----------
        slot
            The slot.

        Returns
        -------
        Job
            Its structure.

        Raises
        ------
        LookupError
            If the slot is vacant.
        """
        job = self.jobs[slot]
        if job is None:
            raise LookupError(f"slot {slot} is vacant")
        return job

    def leave(self, slots: list[int]) -> None:
        """Vacate slots.

        Parameters
        ----------
        slots
            The slots.
        """
        for slot in slots:
            self.jobs[slot] = None
        self.vacancies[slots] = True
        self.used[slots] = False

    def geometry(self, rows: torch.Tensor, point: torch.Tensor) -> Geometry:
        """Deform cells and positions.

        Parameters
        ----------
        rows
            Slots, shape (n,).
        point
            Their points, shape (n, 3 + width, 3).

        Returns
        -------
        Geometry
            Cells and positions.
        """
        log = point[:, :3] / self.length[rows, None, None]
        deformation = Deformation(0.5 * (log + log.mT))
        cells = self.start_cell[rows] @ deformation.gradient
        return Geometry(cells, point[:, 3:] @ deformation.gradient, torch.linalg.det(cells).abs(), deformation)

    def batch(self, rows: torch.Tensor, geometry: Geometry, dtype: torch.dtype) -> tuple[Batch, torch.Tensor]:
        """Lay slots end to end.

        Parameters
        ----------
        rows
            Slots, shape (n,).
        geometry
            Their geometry.
        dtype
            Floating type of the potential.

        Returns
        -------
        tuple[Batch, torch.Tensor]
            The flat batch, and where the atoms are in the padded layout, shape (n, width).
        """
        present = self.numbers[rows] > 0
        counts = present.sum(1)
        system = torch.repeat_interleave(counts)
        batch = Batch(
            numbers=self.numbers[rows][present],
            positions=geometry.positions[present].to(dtype),
            cells=geometry.cells.to(dtype),
            system=system,
        )
        return batch, present

    def gradient(
        self, rows: torch.Tensor, geometry: Geometry, forces: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        """Turn forces and stresses into the gradient of the enthalpy at a point.

        Parameters
        ----------
        rows
            Slots, shape (n,).
        geometry
            Their geometry.
        forces
            Padded forces, shape (n, width, 3), eV/Å.
        residual
            Stress plus pressure, shape (n, 3, 3), eV/Å^3.

        Returns
        -------
        torch.Tensor
            Gradient, shape (n, 3 + width, 3), eV/Å.
        """
        virial = residual * geometry.volumes[:, None, None]
        cell = geometry.deformation.pull_back(virial) / self.length[rows, None, None]
        return torch.cat([cell, -forces @ geometry.deformation.gradient], dim=1)

    def atoms(self, slots: list[int], geometry: Geometry) -> list[Atoms]:
        """Give the structures of some slots at another geometry, with their metadata.

        Parameters
        ----------
        slots
            The slots.
        geometry
            Their geometry, positions folded.

        Returns
        -------
        list[Atoms]
            Copies without calculator.
        """
        cells = geometry.cells.cpu().numpy()
        positions = geometry.positions.cpu().numpy() + self.images[slots] @ cells
        moved = []
        for slot, cell, places in zip(slots, cells, positions, strict=True):
            atoms: Atoms = self.job(slot).atoms.copy()
            atoms.cell.array[:] = cell  # by the setters of ASE this would be a third of the time of a structure
            atoms.arrays["positions"][:] = places[: len(atoms)]
            moved.append(atoms)
        return moved

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        """Move an array to the pool's device."""
        return torch.as_tensor(values, device=self.device)
