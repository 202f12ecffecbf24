"""Radial functions that vanish smoothly at their cutoff."""

from __future__ import annotations

import math

import torch
from torch import nn


def smooth_cutoff(x: torch.Tensor) -> torch.Tensor:
    """Fall from one to zero with vanishing value, slope and curvature at the end.

    The function is (1 - x^2)^3 for x < 1 and zero beyond.

    Parameters
    ----------
    x
        Distance in units of the cutoff, not negative, any shape.

    Returns
    -------
    torch.Tensor
        Values in [0, 1], same shape.
    """
    rest = 1.0 - x * x
    rest = torch.relu(rest)
    return rest * rest * rest


class RadialBasis(nn.Module):
    """Chebyshev polynomials of cos(pi r / cutoff) times the smooth cutoff.

    T_k(cos t) = cos(k t), so the functions are cosines of equal resolution over the whole range.

    Parameters
    ----------
    n_functions
        Number of functions.
    cutoff
        Distance from which all functions are exactly zero, Å.
    """

    orders: torch.Tensor

    def __init__(self, n_functions: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.register_buffer(
            "orders", math.pi * torch.arange(n_functions, dtype=torch.float64)[:, None], persistent=False
        )

    def forward(self, r: torch.Tensor) -> torch.Tensor:
        """Evaluate all functions.

        Parameters
        ----------
        r
            Distances, shape (n_atoms, K), Å.

        Returns
        -------
        torch.Tensor
            Shape (n_atoms, n_functions, K).
        """
        x = (r / self.cutoff).clamp(max=1.0)
        return torch.cos(x[:, None, :] * self.orders) * smooth_cutoff(x)[:, None, :]
