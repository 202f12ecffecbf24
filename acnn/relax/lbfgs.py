"""Limited-memory BFGS for many structures at once, each with its own history, curvature and trust radius."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from acnn.compiled import load_library

if TYPE_CHECKING:
    from acnn.compiled import Library

SOURCES = ("relax/lbfgs.c", "loop.h")


class History:
    """Steps and gradient changes of every structure, the newest overwriting the oldest.

    Parameters
    ----------
    n_slots
        Structures held.
    length
        Pairs remembered for each.
    width
        Coordinates of each.
    device
        Where the tensors live; they are float64.
    """

    def __init__(self, n_slots: int, length: int, width: int, device: torch.device) -> None:
        self.length = length
        self.steps = torch.zeros((n_slots, length, width), dtype=torch.float64, device=device)
        self.changes = torch.zeros_like(self.steps)
        self.rho = torch.zeros((n_slots, length), dtype=torch.float64, device=device)
        self.head = torch.zeros(n_slots, dtype=torch.int64, device=device)
        self.gamma = torch.zeros(n_slots, dtype=torch.float64, device=device)

    def clear(self, rows: torch.Tensor) -> None:
        """Forget what is known of some structures.

        Parameters
        ----------
        rows
            Slots, shape (n,).
        """
        self.rho[rows] = 0.0
        self.steps[rows] = 0.0
        self.changes[rows] = 0.0
        self.head[rows] = 0
        self.gamma[rows] = 0.0

    def add(self, rows: torch.Tensor, step: torch.Tensor, change: torch.Tensor) -> None:
        """Remember a pair for some structures, if its curvature is positive.

        Parameters
        ----------
        rows
            Slots, shape (n,).
        step
            Difference of two points, shape (n, width), Å.
        change
            Difference of their gradients, shape (n, width), eV/Å.
        """
        product = (step * change).sum(1)
        square = (change * change).sum(1)
        length = (step * step).sum(1)
        good = product > 1e-3 * (square * length).sqrt()
        rows, step, change = rows[good], step[good], change[good]
        product, square, length = product[good], square[good], length[good]
        place = self.head[rows] % self.length
        self.steps[rows, place] = step
        self.changes[rows, place] = change
        self.rho[rows, place] = 1.0 / product
        self.gamma[rows] = (length / square).sqrt()  # between the two estimates of Barzilai and Borwein
        self.head[rows] += 1

    def direction(self, rows: torch.Tensor, gradient: torch.Tensor, first: float) -> torch.Tensor:
        """Apply the approximate inverse Hessian to the negative gradient.

        Parameters
        ----------
        rows
            Slots, shape (n,).
        gradient
            Gradients, shape (n, width), eV/Å.
        first
            Inverse curvature used before anything is known, Å^2/eV.

        Returns
        -------
        torch.Tensor
            Steps, shape (n, width), Å.
        """
        library = load_library(SOURCES, gradient.device)
        if library is not None:
            return self._direction_compiled(library, rows, gradient, first)
        depth = min(self.length, int(self.head[rows].max())) if rows.numel() else 0
        vector = -gradient
        weights = []
        for back in range(1, depth + 1):
            place = (self.head[rows] - back) % self.length
            step, change, rho = self.steps[rows, place], self.changes[rows, place], self.rho[rows, place]
            weight = rho * (step * vector).sum(1)
            vector = vector - weight[:, None] * change
            weights.append((step, change, rho, weight))
        gamma = self.gamma[rows]
        vector = vector * torch.where(gamma > 0, gamma, torch.full_like(gamma, first))[:, None]
        for step, change, rho, weight in reversed(weights):
            vector = vector + (weight - rho * (change * vector).sum(1))[:, None] * step
        return vector

    def _direction_compiled(
        self, library: Library, rows: torch.Tensor, gradient: torch.Tensor, first: float
    ) -> torch.Tensor:
        """Do the same structure by structure."""
        vector, rows = gradient.neg().contiguous(), rows.contiguous()
        history = (rows, self.steps, self.changes, self.rho, self.head, self.gamma)
        room = vector.new_empty((len(rows), self.length))
        library.run("direction", len(rows), self.length, self.steps.shape[2], *history, first, room, vector)
        return vector
