"""Fitting: whitened invariants become the energies that the committee's members give to an atom."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

WHITENING_FLOOR = 1e-5  # of the largest eigenvalue: directions below it are noise and are not blown up...
DAMPED = 2 / 3  # ...but no more than this part: of random structures, a few extreme ones make the largest eigenvalue,
LOWEST_FLOOR = 1e-10  # and not below this part of it, where most directions do not vary at all


class Whitening(nn.Module):
    """Shift, rotate and scale each element's invariants, those of an untrained embedding to unit covariance.

    Parameters
    ----------
    n_features
        Number of invariants.
    n_elements
        Number of elements.
    """

    mean: torch.Tensor
    matrix: torch.Tensor

    def __init__(self, n_features: int, n_elements: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((n_elements, n_features), dtype=torch.float64))
        eye = torch.eye(n_features, dtype=torch.float64)
        self.register_buffer("matrix", eye.repeat(n_elements, 1, 1))


def whitening_of(features: torch.Tensor, fallback: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the whitening of some features.

    Parameters
    ----------
    features
        Shape (n, n_features), float64.
    fallback
        Features of all elements, same width: their covariance steadies that of an element with few atoms.

    Returns
    -------
    tuple
        Mean, shape (n_features,), and matrix, shape (n_features, n_features): white = (x - mean) @ matrix.
    """
    n_features = features.shape[1]
    covariance = _covariance(features) if len(features) > 1 else torch.zeros_like(_covariance(fallback))
    trust = len(features) / (len(features) + n_features)
    covariance = trust * covariance + (1.0 - trust) * _covariance(fallback)
    values, axes = torch.linalg.eigh(covariance)
    values = values.clamp(min=0.0)
    unseen = n_features / (n_features + len(fallback))  # few environments: most directions were never seen to vary
    floor = values.quantile(DAMPED).clamp(LOWEST_FLOOR * values[-1], WHITENING_FLOOR * values[-1])
    floor = floor + 0.1 * unseen**16 * fallback.square().sum(1).mean() + 1e-12
    return features.mean(0), axes * (values + floor).rsqrt()


def _covariance(features: torch.Tensor) -> torch.Tensor:
    centred = features - features.mean(0)
    return centred.T @ centred / max(1, len(features))


class Fitting(nn.Module):
    """A linear term and a small network for each central element; the members differ in all of it.

    Parameters
    ----------
    n_features
        Width of the whitened input.
    n_elements
        Number of elements; each has its own first layer, bias and linear term, the later layers are shared.
    hidden
        Widths of the hidden layers; empty: the linear term alone.
    members
        Number of committee members.
    generator
        Source of the initial weights.
    """

    def __init__(
        self, n_features: int, n_elements: int, hidden: Sequence[int], members: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.members = members
        self.n_elements = n_elements
        self.linear = nn.Parameter(torch.zeros((n_elements, n_features, members), dtype=torch.float64))
        self.offset = nn.Parameter(torch.zeros((n_elements, members), dtype=torch.float64))
        self.first: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        weights, biases = [], []
        if hidden:
            width = hidden[0]
            # one start for all elements: they part as the data tell them apart
            start = torch.randn((1, members, n_features, width), dtype=torch.float64, generator=generator)
            self.first = nn.Parameter((start * n_features**-0.5).repeat(n_elements, 1, 1, 1))
            start = torch.randn((n_elements, members * width), dtype=torch.float64, generator=generator)
            self.bias = nn.Parameter(0.5 * start)
            sizes = [*hidden, 1]
            for n_in, n_out in pairwise(sizes):
                draw = torch.randn((members, n_in, n_out), dtype=torch.float64, generator=generator)
                weights.append(nn.Parameter(draw * n_in**-0.5))
                if n_out > 1:
                    biases.append(nn.Parameter(torch.zeros((members, 1, n_out), dtype=torch.float64)))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)

    def forward(self, features: torch.Tensor, species: torch.Tensor, whitening: Whitening) -> torch.Tensor:
        """Compute the energies.

        Parameters
        ----------
        features
            Invariants, not whitened, then any coupled features; shape (n_atoms, n_features).
        species
            Element of each atom, shape (n_atoms,).
        whitening
            Of the leading columns; it is folded into the first layer.

        Returns
        -------
        torch.Tensor
            Shape (n_atoms, members), in units of the potential's energy scale.
        """
        first, offset = self.folded(whitening)
        if self.n_elements == 1:
            hidden = torch.addmm(offset[0], features, first[0])
        else:
            hidden = features.new_zeros((features.shape[0], first.shape[2]))
            for element in range(self.n_elements):
                chosen = torch.nonzero(species == element)[:, 0]
                if len(chosen):
                    part = torch.addmm(offset[element], features.index_select(0, chosen), first[element])
                    hidden = hidden.index_add(0, chosen, part)
        return self.finish(hidden)

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Add the linear term and what the later layers make of the first.

        Parameters
        ----------
        hidden
            Linear terms, then the first layer's sums, of all members; shape (n_atoms, members * (1 + width)).

        Returns
        -------
        torch.Tensor
            Shape (n_atoms, members).
        """
        if self.first is None:
            return hidden
        linear, rest = torch.split(hidden, [self.members, hidden.shape[1] - self.members], dim=1)
        return linear + self._network(rest)

    def folded(self, whitening: Whitening) -> tuple[torch.Tensor, torch.Tensor]:
        """Put whitening, linear term and first layer into one matrix and one offset per element.

        Parameters
        ----------
        whitening
            Of the leading features.

        Returns
        -------
        tuple
            Matrices, shape (n_elements, n_features, members * (1 + width)), and offsets, shape
            (n_elements, members * (1 + width)).
        """
        weights: torch.Tensor = self.linear
        if self.first is not None:
            weights = torch.cat([weights, self.first.transpose(1, 2).flatten(2)], dim=2)
        offset = self.offset if self.bias is None else torch.cat([self.offset, self.bias], dim=1)
        n_white = whitening.mean.shape[1]
        head = torch.bmm(whitening.matrix, weights[:, :n_white])
        offset = offset - torch.bmm(whitening.mean[:, None], head)[:, 0]
        folded = head if n_white == weights.shape[1] else torch.cat([head, weights[:, n_white:]], dim=1)
        return folded, offset

    def _network(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the later layers of all members side by side: (n_atoms, members)."""
        n_atoms = hidden.shape[0]
        x = hidden.view(n_atoms, self.members, -1).transpose(0, 1)
        for layer, weight in enumerate(self.weights):
            x = torch.nn.functional.silu(x)
            x = torch.baddbmm(self.biases[layer], x, weight) if layer < len(self.biases) else torch.bmm(x, weight)
        return x.squeeze(2).T
