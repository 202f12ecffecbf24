"""What the relaxer asks of a potential."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from acnn.batch import Batch
    from acnn.neighbors import Neighbors


class OutputLike(Protocol):
    """Energies and their derivatives of a batch; see `acnn.nn.potential.Output`."""

    @property
    def energy(self) -> torch.Tensor:
        """Energies, shape (n_systems,), eV."""

    @property
    def forces(self) -> torch.Tensor:
        """Forces, shape (n_atoms, 3), eV/Å."""

    @property
    def stress(self) -> torch.Tensor:
        """Stresses, tension positive, shape (n_systems, 3, 3), eV/Å^3."""

    @property
    def energy_spread(self) -> torch.Tensor:
        """Standard deviation of the committee, shape (n_systems,), eV/atom."""


class PotentialLike(Protocol):
    """Anything that gives energies, forces and stresses of a batch."""

    @property
    def cutoff(self) -> float:
        """Range within which neighbours are needed, Å."""

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of its input and output."""

    @property
    def device(self) -> torch.device:
        """Where its input and output live."""

    def compute(self, batch: Batch, neighbors: Neighbors | None = None) -> OutputLike:
        """Evaluate all structures of a batch.

        Parameters
        ----------
        batch
            The structures, in the potential's floating type and on its device.
        neighbors
            Neighbours out to at least the cutoff.

        Returns
        -------
        OutputLike
            Energies, forces and stresses.
        """
