"""How many structures fit into memory, and what is learnt when they do not."""

from __future__ import annotations

import logging
import math

import torch

logger = logging.getLogger(__name__)

CPU_ATOMS = 4096
"""Atoms in flight on a CPU: enough to hide the overhead of a step."""

CUDA_ATOMS = 500_000
"""Most atoms in flight on a GPU."""

ATOM_BYTES = 150_000
"""Memory that an atom in flight takes on a GPU, neighbours and history included; measured."""

SPARE = 0.8
"""Part of a GPU's free memory that is used."""


class Budget:
    """Atoms that may be in flight and be evaluated together.

    Parameters
    ----------
    limit
        Atoms in flight at most, at first; a structure that is larger may be there alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.together = math.inf
        self.in_flight = 0

    @property
    def tight(self) -> bool:
        """Whether memory was refused before."""
        return self.together < math.inf

    @property
    def room(self) -> int:
        """Atoms that may enter."""
        return self.limit - self.in_flight

    def halve(self, n_atoms: int) -> None:
        """Go on with half as much.

        Parameters
        ----------
        n_atoms
            Atoms for which the memory did not suffice, in flight or about to enter.
        """
        n_all = max(n_atoms, self.in_flight)
        self.together = n_atoms // 2
        self.limit = max(1, min(self.limit, n_all) // 2)
        logger.warning("out of memory with %d atoms in flight: continuing with %d", n_all, self.limit)


def affordable(device: torch.device, share: int = 1) -> int:
    """Choose the number of atoms in flight from the memory of the device.

    Parameters
    ----------
    device
        The device.
    share
        Processes that share its memory.

    Returns
    -------
    int
        Atoms.
    """
    if device.type == "cpu":
        return CPU_ATOMS
    torch.cuda.empty_cache()  # what PyTorch keeps from an earlier relaxation is free too
    free, total = torch.cuda.mem_get_info(device)
    return max(1, min(CUDA_ATOMS, int(SPARE * min(free, total / share)) // ATOM_BYTES))


def is_refusal(error: Exception) -> bool:
    """Tell whether memory was refused; PyTorch has an error of its own for a GPU's memory only.

    Parameters
    ----------
    error
        What was raised.

    Returns
    -------
    bool
        False for any other error.
    """
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
