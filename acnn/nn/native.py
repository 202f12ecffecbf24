"""The compiled evaluation of a model: its weights as C reads them, and the call."""

from __future__ import annotations

import ctypes
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from acnn.arguments import pointer
from acnn.compiled import load_library
from acnn.nn.harmonics import coupling, harmonic_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acnn.batch import Batch
    from acnn.compiled import Library
    from acnn.neighbors import Neighbors
    from acnn.nn.graph import Graph

FUNCTIONS = {torch.float32: ("float", "sqrtf", "expf"), torch.float64: ("double", "sqrt", "exp")}

HEADERS = ("lanes", "shape", "dense", "invariants", "basis", "neighborhood")

STACK = 1 << 20
"""Most memory for what the layers of the network give, bytes: it lies on the stack, where it is fastest."""

NEGLIGIBLE = 1e-9
"""Coefficients of harmonics below this are rounding."""

EXACT = ("-fno-associative-math",)
"""So that the bits of an atom's energy do not depend on the group of lanes that it falls into."""

SOURCES = ("nn/kernel/kernel.c", "nn/kernel/network.h", *(f"nn/kernel/{name}.h" for name in HEADERS), "loop.h")


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled for.

    Attributes
    ----------
    dtype
        float32 or float64.
    n_radial
        Radial functions.
    n_species
        Element channels.
    l_max
        Highest degree.
    channels
        Channels of the two-factor invariants.
    mixed
        Channels of the three- and four-factor invariants.
    factors
        Largest number of factors, at least 2.
    members
        Committee members.
    hidden
        Widths of the hidden layers.
    """

    dtype: torch.dtype
    n_radial: int
    n_species: int
    l_max: int
    channels: int
    mixed: int
    factors: int
    members: int
    hidden: tuple[int, ...]

    @property
    def stack(self) -> int:
        """Memory for what the layers of the network give, bytes, with the widest vectors of any processor."""
        widest = max(self.hidden, default=1)
        first = self.members * (1 + (self.hidden[0] if self.hidden else 0))
        return 2 * 64 * (first + (2 + len(self.hidden)) * widest)

    def defines(self, constants: Mapping[str, float | tuple[float, ...]]) -> list[str]:
        """Give the compiler's options.

        Parameters
        ----------
        constants
            Further numbers by name.

        Returns
        -------
        list[str]
            Definitions.
        """
        values = dict(zip(("REAL", "SQRT", "EXP"), FUNCTIONS[self.dtype], strict=True)) | asdict(self) | dict(constants)
        values |= {"n_hidden": len(self.hidden), "sizes": self.hidden, "widest": max(self.hidden, default=1)}
        values["width"] = self.hidden[0] if self.hidden else 0
        del values["dtype"], values["hidden"]
        text = {name: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for name, v in values.items()}
        return [f"-D{name.upper()}={value}" for name, value in text.items()]


@dataclass(frozen=True)
class Weights:
    """The weights of a model as the kernel reads them; contiguous.

    Attributes
    ----------
    table
        Element channels, shape (n_elements, n_species).
    mixing
        Shape (l_max + 1, n_basis, channels).
    turns
        Harmonic and monomial of each non-zero coefficient between them, sorted by the latter, shape (n, 2), int32.
    turn_values
        The coefficients, shape (n,).
    deep
        Shape (min(l_max, 3) + 1, channels, mixed).
    terms
        Factor, factor and product of each non-zero coupling, sorted by the latter, shape (n, 3), int32.
    term_values
        Their coefficients, shape (n,).
    offset
        Of linear terms and first layers, shape (n_elements, members, 1 + width).
    first
        Linear term and first layer of each member, shape (n_elements, members, n_features, 1 + width).
    layers
        Weights, then biases of the later layers, layer after layer, flat.
    onset
        Of the repulsion, shape (n_elements, n_elements), Å.
    charge
        Products of the nuclear charges, shape (n_elements, n_elements), eV Å.
    length
        Screening lengths, shape (n_elements, n_elements), Å.
    """

    table: torch.Tensor
    mixing: torch.Tensor
    turns: torch.Tensor
    turn_values: torch.Tensor
    deep: torch.Tensor
    terms: torch.Tensor
    term_values: torch.Tensor
    offset: torch.Tensor
    first: torch.Tensor
    layers: torch.Tensor
    onset: torch.Tensor
    charge: torch.Tensor
    length: torch.Tensor


class Kernel:
    """The compiled function for one shape of model.

    Parameters
    ----------
    library
        The loaded library.
    shape
        What it was compiled for.
    """

    def __init__(self, library: Library, shape: Shape) -> None:
        self._library = library
        self.shape = shape
        self._model = model_type(shape.dtype)

    def evaluate(
        self, weights: Weights, laid: Laid, species: torch.Tensor, numbers: tuple[float, float], *, apart: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute energies, forces and virials.

        Parameters
        ----------
        weights
            Weights of the kernel's shape.
        laid
            Structures with their neighbours; those beyond the cutoff are not seen.
        species
            Elements, shape (n_atoms,).
        numbers
            The cutoff, Å, and the energy scale, eV.
        apart
            Forces and virials of each member instead of those of their mean.

        Returns
        -------
        tuple[torch.Tensor, torch.Tensor, torch.Tensor]
            Energies of each atom, shape (n_atoms, members), eV; forces, shape (n, n_atoms, 3), eV/Å; symmetric
            derivative by strain, shape (n, n_systems, 3, 3), eV; n is the number of members, or 1 for the mean.

        Raises
        ------
        MemoryError
            If the memory does not suffice.
        """
        n_atoms, n_pulls = len(species), self.shape.members if apart else 1
        sizes = (len(weights.table), len(weights.turns), len(weights.terms))
        model = self._model(*sizes, *(pointer(getattr(weights, field.name)) for field in fields(Weights)), *numbers)
        order = torch.argsort(species, stable=True)
        energies = weights.table.new_empty((n_atoms, self.shape.members))
        forces = weights.table.new_zeros((n_pulls, n_atoms, 3))
        virial = weights.table.new_zeros((n_pulls, laid.n_systems, 3, 3))
        failed = torch.zeros(1, dtype=torch.int32)
        inputs = packed(model, species.device), packed(laid.structures, species.device)
        counts = laid.n_systems, n_pulls
        self._library.run("evaluate", n_atoms, *inputs, order, *counts, energies, forces, virial, failed)
        if failed:
            raise MemoryError(f"no memory for {n_atoms} atoms with up to {laid.structures.width} neighbours")
        return energies, forces, 0.5 * (virial + virial.mT)


@cache
def model_type(dtype: torch.dtype) -> type[ctypes.Structure]:
    """Give the structure of C that holds sizes, weights, cutoff and scale.

    Parameters
    ----------
    dtype
        float32 or float64.

    Returns
    -------
    type
        Its fields are the numbers of elements, turns and terms, the fields of `Weights`, the cutoff and the scale.
    """
    real = ctypes.c_float if dtype is torch.float32 else ctypes.c_double
    sizes = [(name, ctypes.c_int64) for name in ("n_elements", "n_turns", "n_terms")]
    pointers = [(field.name, ctypes.c_void_p) for field in fields(Weights)]
    numbers = [("cutoff", real), ("scale", real)]
    return type("Model", (ctypes.Structure,), {"_fields_": [*sizes, *pointers, *numbers]})


@cache
def turns(l_max: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """List what turns monomials into harmonics.

    Parameters
    ----------
    l_max
        Highest degree.
    dtype
        Of the coefficients.

    Returns
    -------
    tuple
        Harmonic and monomial, sorted by the latter, shape (n, 2), int32; and coefficients, shape (n,).
    """
    table: torch.Tensor = torch.block_diag(*harmonic_table(l_max))  # type: ignore[no-untyped-call]  # torch leaves it so
    monomial, harmonic = torch.nonzero(table.T.abs() > NEGLIGIBLE, as_tuple=True)
    return torch.stack([harmonic, monomial], dim=1).to(torch.int32), table[harmonic, monomial].to(dtype)


@cache
def terms(l_max: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """List the terms of the product of two harmonics.

    Parameters
    ----------
    l_max
        Highest degree of factors and product.
    dtype
        Of the coefficients.

    Returns
    -------
    tuple
        Factor, factor and product, sorted by the latter, shape (n, 3), int32; and coefficients, shape (n,).
    """
    first, second, matrix = coupling(l_max)
    product, pair = torch.nonzero(matrix.T, as_tuple=True)
    return torch.stack([first[pair], second[pair], product], dim=1).to(torch.int32), matrix.T[product, pair].to(dtype)


class Structures(ctypes.Structure):
    """Structures and their neighbours as the kernels read them."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("width", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("positions", "cells", "system", "species", "index", "shift", "mask")),
        ("vectors", ctypes.c_void_p),
    ]


class Laid:
    """Structures laid out for the kernels, with what must live as long as they are used.

    Parameters
    ----------
    n_systems
        Number of structures.
    **tensors
        By the names of `Structures`; what is missing is null.
    """

    def __init__(self, n_systems: int, **tensors: torch.Tensor) -> None:
        self.n_systems = n_systems
        self._kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
        width = tensors["index"].shape[1]
        self.structures = Structures(width=width, **{name: pointer(tensor) for name, tensor in self._kept.items()})

    @classmethod
    def of_batch(cls, batch: Batch, neighbors: Neighbors, species: torch.Tensor) -> Laid:
        """Lay out a batch.

        Parameters
        ----------
        batch
            Structures.
        neighbors
            Their neighbours.
        species
            Elements, shape (n_atoms,).

        Returns
        -------
        Laid
            By positions.
        """
        return cls(
            batch.n_systems,
            positions=batch.positions.double(),
            cells=batch.cells.double(),
            system=batch.system,
            species=species,
            index=neighbors.index,
            shift=neighbors.shift.float(),
            mask=neighbors.mask,
        )

    @classmethod
    def of_graph(cls, graph: Graph, dtype: torch.dtype) -> Laid:
        """Lay out neighbourhoods, for kernels of the CPU.

        Parameters
        ----------
        graph
            The neighbourhoods.
        dtype
            What the kernel was compiled for.

        Returns
        -------
        Laid
            By vectors.
        """
        vectors, index = graph.vectors.detach().to(dtype), graph.index
        return cls(graph.n_systems, system=graph.system, species=graph.species, index=index, vectors=vectors)


def packed(structure: ctypes.Structure, device: torch.device) -> torch.Tensor:
    """Put a structure of C where a kernel reads it.

    Parameters
    ----------
    structure
        The structure; what its addresses point to must live as long as it is used.
    device
        Where the kernel runs.

    Returns
    -------
    torch.Tensor
        Its bytes.
    """
    return torch.frombuffer(bytearray(structure), dtype=torch.uint8).to(device)


def load_kernel(shape: Shape, constants: Mapping[str, float | tuple[float, ...]]) -> Kernel | None:
    """Compile and load the kernel for one shape of model, once.

    Parameters
    ----------
    shape
        What it is compiled for.
    constants
        Further constants by name.

    Returns
    -------
    Kernel | None
        None where there is no compiler, or it is switched off, or layers are too wide for it.
    """
    if shape.dtype not in FUNCTIONS or shape.stack > STACK:
        return None
    library = load_library(SOURCES, torch.device("cpu"), (*shape.defines(constants), *EXACT))
    return None if library is None else Kernel(library, shape)
