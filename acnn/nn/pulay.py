"""What the virials of labels hold that their energies do not tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

UNIT = 4.0  # of the potential's energy scale: an optimiser's step moves a virial so much more than a weight


class Pulay(nn.Module):
    """The Pulay stress of the labels: a virial that each atom of an element adds, the same in all directions.

    Energies are computed with one cutoff of the plane waves, so that a larger cell has more of them; the stress of the
    same calculation is the derivative with their number fixed. The difference per atom, as a virial with tension
    positive, is -(2/3) E_cut dE/dE_cut. Where the basis is not converged it belongs to the atoms more than to how they
    are arranged (Francis and Payne, J. Phys.: Condens. Matter 2, 4395, 1990). A potential without it would have to bend
    its energies to please the stresses.

    Forces and stresses of the potential never hold it: they stay derivatives of its energy. Whoever compares stresses
    with labels adds it.

    Parameters
    ----------
    n_elements
        Elements of the potential.
    """

    def __init__(self, n_elements: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(n_elements))

    def forward(self, species: torch.Tensor, system: torch.Tensor, n_systems: int, scale: torch.Tensor) -> torch.Tensor:
        """Sum over the atoms of each structure.

        Parameters
        ----------
        species
            Positions of the elements, shape (n_atoms,).
        system
            Structure of each atom, shape (n_atoms,).
        n_systems
            Number of structures.
        scale
            Energy scale of the potential, eV.

        Returns
        -------
        torch.Tensor
            Virials to add to dE/d(strain), shape (n_systems, 3, 3), eV.
        """
        each = self.share[species] * (UNIT * scale)
        total = each.new_zeros(n_systems).index_add(0, system, each)
        return torch.diag_embed(total[:, None].expand(-1, 3))

    def by_element(self, elements: Sequence[str], scale: torch.Tensor) -> dict[str, float]:
        """Name what each element adds to virials.

        Parameters
        ----------
        elements
            Chemical symbols of the potential, in its order.
        scale
            Energy scale of the potential, eV.

        Returns
        -------
        dict
            By symbol, eV per atom.
        """
        one = torch.arange(len(elements), device=self.share.device)  # an atom of each, alone
        return dict(zip(elements, self(one, one, len(one), scale)[:, 0, 0].tolist(), strict=True))
