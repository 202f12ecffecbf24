r"""Cell and positions as one point: the deformation gradient in the log, positions in the undeformed frame.

A structure with the undeformed cell :math:`C_0` (rows) is at :math:`C = C_0 e^U`, :math:`r = X e^U` with a symmetric
3x3 matrix U, so that no step rotates it. A point is an array of shape (n_systems, 3 + n_atoms, 3): the first three
rows are U times a length that makes cell and atoms equally stiff, the others X.
"""

from __future__ import annotations

import torch


class Deformation:
    """The exponential of symmetric matrices and the adjoint of its derivative.

    Parameters
    ----------
    log
        Symmetric matrices U, shape (n_systems, 3, 3).
    """

    def __init__(self, log: torch.Tensor) -> None:
        values, self._vectors = torch.linalg.eigh(log)
        exponent = values.exp()
        self.gradient = (self._vectors * exponent[:, None, :]) @ self._vectors.mT
        self._inverse = (self._vectors / exponent[:, None, :]) @ self._vectors.mT
        half = 0.5 * (values[:, :, None] - values[:, None, :])
        middle = (0.5 * (values[:, :, None] + values[:, None, :])).exp()
        ratio = torch.where(half.abs() < 1e-5, 1.0 + half**2 / 6.0, torch.sinh(half) / half)
        self._divided = middle * torch.where(half == 0, torch.ones_like(ratio), ratio)

    def pull_back(self, virial: torch.Tensor) -> torch.Tensor:
        """Turn the derivative by strain into the derivative by U.

        Parameters
        ----------
        virial
            Derivative of the energy by strain of the deformed cell, symmetric, shape (n_systems, 3, 3), eV.

        Returns
        -------
        torch.Tensor
            Derivative by U, symmetric, shape (n_systems, 3, 3), eV.
        """
        outer = self._inverse @ virial
        inner = self._vectors.mT @ outer @ self._vectors
        full = self._vectors @ (inner * self._divided) @ self._vectors.mT
        symmetric: torch.Tensor = 0.5 * (full + full.mT)
        return symmetric
