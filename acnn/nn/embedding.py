"""Embedding: the vectorised geometry and the elements become invariants of an atom's environment.

The neighbour density of atom i, A_{i,nlm} = sum_j R_nl(r_ij, Z_j) Y_lm(r_ij), is built by one batched matrix product of
radial functions with Cartesian monomials *before* its channels are mixed, and is then contracted to rotation invariants
of one, two, three and four factors, as in the atomic cluster expansion (Drautz, Phys. Rev. B 99, 014104, 2019).
Neighbour elements enter through a learned embedding of few channels, so the cost does not grow with the square of
their number.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from acnn.nn.harmonics import coupling, harmonic_table, monomial_counts, monomials
from acnn.nn.radial import RadialBasis

if TYPE_CHECKING:
    from acnn.config import ModelConfig

MIXED_L_MAX = 3
CACHE_COLUMNS = 2048  # columns coupled together, so that the pairs stay in a cache


class Embedding(nn.Module):
    """Invariants of the environment of each atom.

    Parameters
    ----------
    config
        Cutoffs and sizes.
    n_elements
        Number of elements of the potential.
    generator
        Source of the initial weights.
    """

    def __init__(self, config: ModelConfig, n_elements: int, generator: torch.Generator) -> None:
        super().__init__()
        self.l_max = config.l_max
        self.max_factors = config.max_factors
        self.split = config.radial_cutoff != config.angular_cutoff
        self.radial = RadialBasis(config.n_radial, config.radial_cutoff)
        self.angular = RadialBasis(config.n_radial, config.angular_cutoff)
        n_species = min(n_elements, config.element_channels)
        self.species = nn.Parameter(_initial_species(n_elements, n_species, generator), requires_grad=n_elements > 1)
        n_basis, channels = config.n_radial * n_species, config.channels
        degrees = range(self.l_max + 1 if self.max_factors >= 2 else 0)  # one factor has no angles: nothing to learn
        self.mixing = nn.ParameterList([_initial_mixing(n_basis, channels, generator) for _ in degrees])
        self._mixed_l = min(MIXED_L_MAX, self.l_max) if self.max_factors >= 3 else -1
        self.deep = nn.ParameterList(
            [_normal((channels, config.mixed_channels), channels**-0.5, generator) for _ in range(self._mixed_l + 1)]
        )
        for degree, table in enumerate(harmonic_table(self.l_max)):
            self.register_buffer(f"harmonic_{degree}", table, persistent=False)
        upper = torch.triu_indices(channels, channels)
        flat = upper[0] * channels + upper[1]
        blocks = [degree * channels**2 + flat for degree in range(self.l_max + 1)]
        self.register_buffer("upper", torch.cat(blocks), persistent=False)
        if self._mixed_l >= 0:
            first, second, matrix = coupling(self._mixed_l)
            self.register_buffer("first", first, persistent=False)
            self.register_buffer("second", second, persistent=False)
            self.register_buffer("coupling", matrix.T.contiguous(), persistent=False)
        n_two = len(self.upper) if self.max_factors >= 2 else 0
        n_deep = config.mixed_channels * (self._mixed_l + 1) * max(0, self.max_factors - 2)
        self.n_features = n_basis + n_two + n_deep

    upper: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    coupling: torch.Tensor

    def forward(
        self, vectors: torch.Tensor, distances: torch.Tensor, seen: torch.Tensor, neighbor_species: torch.Tensor
    ) -> torch.Tensor:
        """Compute the invariants.

        Parameters
        ----------
        vectors
            To the neighbours, shape (n_atoms, K, 3), Å.
        distances
            Their lengths, shape (n_atoms, K), Å.
        seen
            Lengths as the radial functions see them, shape (n_atoms, K), Å.
        neighbor_species
            Element of each neighbour, shape (n_atoms, K).

        Returns
        -------
        torch.Tensor
            Shape (n_atoms, n_features), dimensionless.
        """
        angular = self._weighted(self.angular(seen), neighbor_species)
        radial = self._weighted(self.radial(seen), neighbor_species) if self.split else angular
        features = [radial.sum(-1)]
        if self.max_factors >= 2:
            density = self._density(vectors, distances, angular)
            features.append(self._two_factors(density))
            if self._mixed_l >= 0:
                features += self._more_factors(density)
        return torch.cat(features, dim=1)

    def _weighted(self, basis: torch.Tensor, neighbor_species: torch.Tensor) -> torch.Tensor:
        """Multiply radial functions by the neighbours' element channels: (n_atoms, n_basis, K)."""
        if self.species.shape[0] == 1:
            return basis
        weights = self.species[neighbor_species].transpose(1, 2)
        return (basis[:, :, None, :] * weights[:, None, :, :]).flatten(1, 2)

    def _density(self, vectors: torch.Tensor, distances: torch.Tensor, basis: torch.Tensor) -> list[torch.Tensor]:
        """Project the neighbours onto harmonics and channels: for each l, (2l + 1, n_atoms, channels)."""
        units = (vectors / distances[..., None]).permute(2, 0, 1)
        raw = torch.bmm(monomials(units, self.l_max), basis.transpose(1, 2)).transpose(0, 1).contiguous()
        density = []
        for degree, part in enumerate(torch.split(raw, monomial_counts(self.l_max))):
            mixed = part @ self.mixing[degree]
            turned = self.get_buffer(f"harmonic_{degree}") @ mixed.flatten(1)
            density.append(turned.view(-1, *mixed.shape[1:]))
        return density

    def _two_factors(self, density: list[torch.Tensor]) -> torch.Tensor:
        """Contract pairs of channels of equal degree."""
        products = []
        for a in density:
            by_atom = a.transpose(0, 1)
            products.append(torch.bmm(by_atom.transpose(1, 2), by_atom).flatten(1))
        return torch.cat(products, dim=1).index_select(1, self.upper)

    def _more_factors(self, density: list[torch.Tensor]) -> list[torch.Tensor]:
        """Couple the mixed density with itself twice, and contract with itself or the square."""
        n_atoms = density[0].shape[1]
        mixed = torch.cat([a @ w for w, a in zip(self.deep, density, strict=False)]).flatten(1)
        square = torch.cat([self._square(part) for part in torch.split(mixed, CACHE_COLUMNS, dim=1)], dim=1)
        factors = [square * mixed, square * square] if self.max_factors >= 4 else [square * mixed]
        sizes = [2 * degree + 1 for degree in range(self._mixed_l + 1)]
        return [part.sum(0).view(n_atoms, -1) for product in factors for part in torch.split(product, sizes)]

    def _square(self, mixed: torch.Tensor) -> torch.Tensor:
        """Couple the density with itself to harmonics again, column by column."""
        pairs = mixed.index_select(0, self.first) * mixed.index_select(0, self.second)
        return self.coupling @ pairs


def _normal(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> nn.Parameter:
    """Draw weights of a given standard deviation."""
    return nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator) * scale)


def _initial_species(n_elements: int, n_channels: int, generator: torch.Generator) -> torch.Tensor:
    """Give each element its own channel while there are enough, and random mixtures beyond."""
    if n_elements <= n_channels:
        return torch.eye(n_elements, n_channels, dtype=torch.float64)
    table = torch.randn((n_elements, n_channels), dtype=torch.float64, generator=generator)
    return table / math.sqrt(n_channels)


def _initial_mixing(n_basis: int, channels: int, generator: torch.Generator) -> nn.Parameter:
    """Draw nearly orthogonal mixtures of the radial functions."""
    table = torch.randn((max(n_basis, channels), min(n_basis, channels)), dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(table)[0]
    return nn.Parameter((basis if n_basis >= channels else basis.T).contiguous())
