"""The compiled embedding and its derivatives of first and second order, as PyTorch's gradients see them.

A training needs the derivatives of forces by the weights. Forces are linear in the derivatives of the energy by the
invariants (`_Pushed`), which PyTorch takes from the fitting network. Backwards the same holds of the changes of the
invariants while the neighbours move as the loss asks: no tensor has a row for each neighbour, and nothing is derived
twice by positions.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch.autograd.function import once_differentiable

from acnn.arguments import pointer
from acnn.compiled import load_library
from acnn.nn.fused import constants, embedding_weights, plain, shape_of
from acnn.nn.native import FUNCTIONS, HEADERS, Laid, model_type, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from acnn.compiled import Library
    from acnn.nn.graph import Graph
    from acnn.nn.native import Shape
    from acnn.nn.potential import Potential

SOURCES = ("nn/kernel/training.c", "nn/kernel/tangent.h", *(f"nn/kernel/{name}.h" for name in HEADERS), "loop.h")

LANES = 16  # at most, of any processor: for each element, rows of `sums` beyond the atoms
TRAINED = ("mixing", "deep", "table")


def derivatives(potential: Potential, graph: Graph, closest: float) -> Derivatives | None:
    """Prepare the compiled embedding for some neighbourhoods.

    Parameters
    ----------
    potential
        Gives the weights.
    graph
        The neighbourhoods.
    closest
        Distances are not taken smaller, Å.

    Returns
    -------
    Derivatives | None
        None where PyTorch has to do the work: with attention, with two cutoffs, on a GPU or without a compiler.
    """
    if not plain(potential) or potential.device.type != "cpu" or potential.dtype not in FUNCTIONS:
        return None
    shape = replace(shape_of(potential), members=1, hidden=())  # the fitting network is PyTorch's
    library = load_library(SOURCES, torch.device("cpu"), tuple(shape.defines(constants(closest))))
    return None if library is None else Derivatives(potential, graph, library, shape)


class Derivatives:
    """Invariants of some neighbourhoods with what is known of them; `describe` comes first.

    The weights are those at its making: they must not change before all gradients are taken.

    Parameters
    ----------
    potential
        Gives the weights.
    graph
        The neighbourhoods.
    library
        The compiled functions.
    shape
        What they were compiled for.
    """

    def __init__(self, potential: Potential, graph: Graph, library: Library, shape: Shape) -> None:
        self.graph = graph
        self._library, self._shape, self._dtype = library, shape, potential.dtype
        self._laid = Laid.of_graph(graph, potential.dtype)
        self.n_features = potential.embedding.n_features
        self.n_elements = len(potential.elements)
        found = embedding_weights(potential)
        self.trained = tuple(found[name] for name in TRAINED)
        self._weights = {name: tensor.detach().contiguous() for name, tensor in found.items()}
        sizes = [len(found[name]) for name in ("table", "turns", "terms")]
        addresses = {name: pointer(tensor) for name, tensor in self._weights.items()}
        model = model_type(potential.dtype)(*sizes, cutoff=potential.cutoff, **addresses)
        self._inputs = [packed(structure, torch.device("cpu")) for structure in (model, self._laid.structures)]
        order = torch.argsort(graph.species, stable=True)
        # one part for each thread; the same in all calls
        self._parts = [part for part in torch.tensor_split(order, torch.get_num_threads()) if len(part)]
        self._sums: list[torch.Tensor] = [self._room(len(part)) for part in self._parts]

    def describe(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the invariants.

        Returns
        -------
        tuple
            Invariants, shape (n_atoms, n_features), differentiable by the weights, and each atom's repulsion, shape
            (n_atoms,), eV.
        """
        features, repulsion = _Described.apply(self, *self.trained)  # type: ignore[no-untyped-call]  # torch leaves it so
        return features, repulsion

    def push(self, by_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn derivatives of the energy by the invariants into forces and virials, with those of the repulsion.

        Parameters
        ----------
        by_features
            Shape (n_atoms, n_features), eV.

        Returns
        -------
        tuple
            Forces, shape (n_atoms, 3), eV/Å, and dE/d(strain), shape (n_systems, 3, 3), eV; differentiable by the
            weights and by what is given.
        """
        forces, virial = _Pushed.apply(self, by_features, *self.trained)  # type: ignore[no-untyped-call]  # torch leaves it so
        return forces, virial

    def described(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Do as `describe`, without gradients."""
        features = self._new(self.graph.n_atoms, self.n_features)
        repulsion = self._new(self.graph.n_atoms)
        self._run("describe", lambda part: (self._sums[part], features, repulsion))
        return features, repulsion

    def pushed(self, by_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Do as `push`, without gradients."""
        by_features = by_features.contiguous()
        sizes = (self.graph.n_atoms, 3), (self.graph.n_systems, 3, 3)
        found = [[self._new(*size).zero_() for size in sizes] for _ in self._parts]
        self._run("push", lambda part: (self._sums[part], by_features, *found[part]))
        forces, virial = _total(found)
        return forces, 0.5 * (virial + virial.mT)

    def followed(self, by_forces: torch.Tensor, by_virial: torch.Tensor) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Compute the changes of the invariants that derivatives by forces and virials ask for, and of the sums."""
        changes = [self._room(len(part)) for part in self._parts]
        moved = self._new(self.graph.n_atoms, self.n_features)
        given = by_forces.contiguous(), (0.5 * (by_virial + by_virial.mT)).contiguous()
        self._run("follow", lambda part: (self._sums[part], *given, changes[part], moved))
        return moved, changes

    def learned(
        self,
        by_features: torch.Tensor,
        by_changes: torch.Tensor | None = None,
        changes: Sequence[torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Compute derivatives by the trained weights from those by the invariants and by their changes."""
        nothing = self._new(0)
        changes = changes or [nothing for _ in self._parts]
        given = by_features.contiguous(), (nothing if by_changes is None else by_changes).contiguous()
        found = [[torch.zeros_like(self._weights[name]) for name in TRAINED] for _ in self._parts]
        self._run("learn", lambda part: (self._sums[part], changes[part], *given, *found[part]))
        return _total(found)

    def _room(self, n_atoms: int) -> torch.Tensor:
        """Make room for the sums over the neighbours of some atoms, by element, monomial and function."""
        l_max = self._shape.l_max
        n_monomials = (l_max + 1) * (l_max + 2) * (l_max + 3) // 6
        rows = n_atoms + LANES * self.n_elements
        return self._new(rows, self.n_elements, n_monomials, self._shape.n_radial)

    def _new(self, *size: int) -> torch.Tensor:
        return torch.empty(size, dtype=self._dtype)

    def _run(self, name: str, arguments: Callable[[int], tuple[torch.Tensor, ...]]) -> None:
        """Call a function for each part of the atoms, side by side."""

        def call(part: int) -> bool:
            atoms = self._parts[part]
            failed = torch.zeros(1, dtype=torch.int32)
            self._library.run(name, len(atoms), *self._inputs, atoms, *arguments(part), failed)
            return bool(failed)

        parts = range(len(self._parts))
        if any(map(call, parts) if len(parts) == 1 else _threads(len(parts)).map(call, parts)):
            width = self.graph.index.shape[1]
            raise MemoryError(f"no memory for {self.graph.n_atoms} atoms with up to {width} neighbours")


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    """Keep some threads; a process that is forked off has none of them, so processes must be spawned."""
    return ThreadPoolExecutor(number)


def _total(parts: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Sum what the threads found."""
    return [sum(tensors[1:], start=tensors[0]) for tensors in zip(*parts, strict=True)]


class _Context(Protocol):
    """What PyTorch keeps between forward and backward."""

    embedding: Derivatives
    saved_tensors: tuple[torch.Tensor, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        """Keep tensors."""

    def mark_non_differentiable(self, *tensors: torch.Tensor) -> None:
        """Name outputs without gradients."""


class _Described(torch.autograd.Function):
    """Invariants as a function of the trained weights."""

    @staticmethod
    def forward(ctx: _Context, embedding: Derivatives, *_trained: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.embedding = embedding
        features, repulsion = embedding.described()
        ctx.mark_non_differentiable(repulsion)
        return features, repulsion

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *ctx.embedding.learned(gradients[0])


class _Pushed(torch.autograd.Function):
    """Forces and virials as a function of derivatives by the invariants and of the trained weights."""

    @staticmethod
    def forward(
        ctx: _Context, embedding: Derivatives, by_features: torch.Tensor, *_trained: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.embedding = embedding
        ctx.save_for_backward(by_features)
        return embedding.pushed(by_features)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (by_features,) = ctx.saved_tensors
        moved, changes = ctx.embedding.followed(*gradients)
        return None, moved, *ctx.embedding.learned(torch.zeros_like(by_features), by_features, changes)
