"""Attention: the feature vectors of an atom and its neighbours are coupled, smoothly in distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from acnn.nn.radial import RadialBasis, smooth_cutoff

if TYPE_CHECKING:
    from acnn.config import ModelConfig

N_RADIAL = 8


class AttentionBlock(nn.Module):
    """One multi-head block with residual connections.

    The weight of neighbour j for atom i and a head is f(r_ij) exp(q_i k_j + b(r_ij)) over one plus the sum of these
    over the neighbours, where f is the smooth cutoff: a neighbour that leaves takes its weight to zero with two
    derivatives, and an atom without neighbours receives nothing.

    Parameters
    ----------
    width
        Width of the feature vectors.
    heads
        Number of heads; divides the width.
    generator
        Source of the initial weights.
    """

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.query = _matrix(width, width, generator)
        self.key = _matrix(width, width, generator)
        self.value = _matrix(width, width, generator)
        self.bias = nn.Parameter(torch.zeros(heads, N_RADIAL, dtype=torch.float64))
        self.filter = _matrix(N_RADIAL, width, generator)
        self.out = _matrix(width, width, generator)
        self.expand = _matrix(width, 2 * width, generator)
        self.shrink = _matrix(2 * width, width, generator)

    def forward(self, x: torch.Tensor, index: torch.Tensor, radial: torch.Tensor, fade: torch.Tensor) -> torch.Tensor:
        """Exchange features between neighbours.

        Parameters
        ----------
        x
            Features, shape (n_atoms, width).
        index
            Neighbour numbers, shape (n_atoms, K).
        radial
            Radial functions, shape (n_atoms, N_RADIAL, K).
        fade
            Smooth cutoff, shape (n_atoms, K).

        Returns
        -------
        torch.Tensor
            New features, shape (n_atoms, width).
        """
        n_atoms, width = x.shape
        size = width // self.heads
        query = (x @ self.query).view(n_atoms, 1, self.heads, size)
        key = (x @ self.key)[index].view(n_atoms, -1, self.heads, size)
        values = (x @ self.value)[index] * (1.0 + radial.transpose(1, 2) @ self.filter)
        logits = (query * key).sum(-1).transpose(1, 2) * size**-0.5 + self.bias @ radial
        logits = 5.0 * torch.tanh(logits / 5.0)  # bounded, so that no pair can take all the weight
        raw = torch.exp(logits) * fade[:, None, :]
        weights = raw / (1.0 + raw.sum(-1, keepdim=True))
        message = weights[:, :, None, :] @ values.view(n_atoms, -1, self.heads, size).transpose(1, 2)
        x = x + message.reshape(n_atoms, width) @ self.out
        return x + torch.nn.functional.silu(x @ self.expand) @ self.shrink


class Attention(nn.Module):
    """A stack of attention blocks over the whitened invariants.

    Parameters
    ----------
    config
        Sizes and reach.
    n_features
        Number of invariants of the embedding.
    n_elements
        Number of elements of the potential.
    generator
        Source of the initial weights.
    """

    def __init__(self, config: ModelConfig, n_features: int, n_elements: int, generator: torch.Generator) -> None:
        super().__init__()
        width = config.attention_width
        self.radial = RadialBasis(N_RADIAL, config.attention_cutoff)
        self.project = _matrix(n_features, width, generator)
        self.element = nn.Parameter(0.5 * torch.randn((n_elements, width), dtype=torch.float64, generator=generator))
        self.blocks = nn.ModuleList(
            [AttentionBlock(width, config.attention_heads, generator) for _ in range(config.attention_blocks)]
        )

    def forward(
        self, features: torch.Tensor, species: torch.Tensor, index: torch.Tensor, distances: torch.Tensor
    ) -> torch.Tensor:
        """Couple the environments of neighbours.

        Parameters
        ----------
        features
            Whitened invariants, shape (n_atoms, n_features).
        species
            Element of each atom, shape (n_atoms,).
        index
            Neighbour numbers, shape (n_atoms, K).
        distances
            Shape (n_atoms, K), Å.

        Returns
        -------
        torch.Tensor
            Coupled features, shape (n_atoms, width), to be fitted beside the invariants.
        """
        x = features @ self.project + self.element[species]
        radial = self.radial(distances)
        fade = smooth_cutoff((distances / self.radial.cutoff).clamp(max=1.0))
        for block in self.blocks:
            x = block(x, index, radial, fade)
        return x


def _matrix(n_in: int, n_out: int, generator: torch.Generator) -> nn.Parameter:
    """Draw a dense layer's weights, shape (n_in, n_out)."""
    return nn.Parameter(torch.randn((n_in, n_out), dtype=torch.float64, generator=generator) * n_in**-0.5)
