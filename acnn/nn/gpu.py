"""Energies and forces on a GPU: compiled invariants and their derivatives, with PyTorch's network between the two."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from acnn.arguments import pointer
from acnn.compiled import load_library
from acnn.cuda import WARP, CudaLibrary
from acnn.nn.native import packed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acnn.nn.native import Laid, Shape
    from acnn.nn.potential import Potential

SOURCES = ("nn/kernel/invariants.cu", "nn/kernel/shape.h", "nn/kernel/basis.h", "loop.h")

WARPS = 4
"""Warps of a block, at most: each has one atom in the shared memory."""

PIECE_ATOMS = 1 << 17
"""Atoms whose features are held at once."""


@dataclass(frozen=True)
class Weights:
    """The weights of the invariants as the kernel reads them; contiguous.

    Attributes
    ----------
    table
        Element channels, shape (n_elements, n_species).
    mixing
        Shape (l_max + 1, n_basis, channels).
    turns
        From monomials to harmonics, shape (n_monomials, n_harmonics).
    deep
        Shape (min(l_max, 3) + 1, channels, mixed).
    terms
        Both factors of each non-zero coupling, sorted by their product, shape (n, 2), int32.
    term_values
        Their coefficients, shape (n,).
    starts
        Of the terms of each product, shape (n_products + 1,), int32.
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
    deep: torch.Tensor
    terms: torch.Tensor
    term_values: torch.Tensor
    starts: torch.Tensor
    onset: torch.Tensor
    charge: torch.Tensor
    length: torch.Tensor

    @classmethod
    def of(cls, potential: Potential) -> Weights:
        """Read them off a potential.

        Parameters
        ----------
        potential
            The potential.

        Returns
        -------
        Weights
            Its weights, on its device.
        """
        embedding, repulsion = potential.embedding, potential.repulsion
        species = embedding.species.detach()
        none = species.new_zeros(0)
        deep, terms, term_values, starts = none, none, none, none
        if potential.config.max_factors > 2:
            deep = torch.stack(list(embedding.deep))
            product, pair = torch.nonzero(embedding.coupling, as_tuple=True)
            terms = torch.stack([embedding.first[pair], embedding.second[pair]], dim=1).to(torch.int32)
            term_values = embedding.coupling[product, pair]
            products = torch.arange(len(embedding.coupling) + 1, device=product.device)
            starts = torch.searchsorted(product, products).to(torch.int32)
        tables = [embedding.get_buffer(f"harmonic_{k}") for k in range(potential.config.l_max + 1)]
        made = cls(
            table=species if len(species) > 1 else torch.ones_like(species),
            mixing=torch.stack(list(embedding.mixing)),
            turns=torch.block_diag(*tables).T,  # type: ignore[no-untyped-call]  # torch leaves it so
            deep=deep,
            terms=terms,
            term_values=term_values,
            starts=starts,
            onset=repulsion.onset,
            charge=repulsion.charges,
            length=repulsion.lengths,
        )
        return cls(*(getattr(made, field.name).detach().contiguous() for field in fields(cls)))


class OnGpu:
    """A potential on a GPU; later changes of its weights are not seen.

    Parameters
    ----------
    potential
        The potential.
    library
        The compiled invariants of its shape.
    warps
        Atoms in one block.
    room
        Shared memory of a warp, bytes.
    """

    def __init__(self, potential: Potential, library: CudaLibrary, warps: int, room: int) -> None:
        self._library, self._warps, self._room = library, warps, room
        self._weights = Weights.of(potential)
        self._fitting = potential.fitting
        self._scale, self._dtype = potential.scale.detach(), potential.dtype
        with torch.no_grad():
            self._first, self._offset = (tensor.detach() for tensor in potential.fitting.folded(potential.whitening))
        model = _model(potential.dtype)
        addresses = (pointer(getattr(self._weights, field.name)) for field in fields(Weights))
        self._model = packed(model(len(self._weights.table), *addresses, potential.cutoff), potential.device)

    def __call__(
        self, laid: Laid, species: torch.Tensor, *, apart: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute what :class:`acnn.nn.fused.Fused` does, of structures laid out by positions and of the mean alone."""
        if apart:
            raise NotImplementedError("kernels of a GPU pull back the mean of the members alone")
        device = species.device
        inputs = self._model, packed(laid.structures, device)
        order = torch.argsort(species, stable=True)
        energies = torch.empty((len(species), self._fitting.members), dtype=self._dtype, device=device)
        forces = torch.zeros((len(species), 3), dtype=self._dtype, device=device)
        virial = torch.zeros((laid.n_systems, 3, 3), dtype=self._dtype, device=device)
        for piece in torch.split(order, PIECE_ATOMS):
            features = torch.empty((len(piece), self._first.shape[1]), dtype=self._dtype, device=device)
            states = torch.empty((len(piece), self._n_state), dtype=self._dtype, device=device)
            repulsion = torch.empty(len(piece), dtype=self._dtype, device=device)
            self._run("forward", len(piece), *inputs, piece, features, states, repulsion)
            members, gradient = self._network(features, species[piece])
            self._run("backward", len(piece), *inputs, piece, gradient, states, forces, virial)
            energies[piece] = members + repulsion[:, None]
        return energies, forces[None], 0.5 * (virial + virial.mT)[None]

    @property
    def _n_state(self) -> int:
        """Numbers kept of an atom between the two ways."""
        deep = self._weights.deep
        coupled = 2 * (len(self._weights.starts) - 1) * deep.shape[2] if len(deep) else 0
        return self._weights.turns.shape[1] * self._weights.mixing.shape[2] + coupled

    def _run(self, name: str, n_atoms: int, *arguments: torch.Tensor) -> None:
        """Call a function with a warp for each atom."""
        self._library.launch(name, n_atoms, self._warps, WARP * self._warps, self._warps * self._room, *arguments)

    def _network(self, features: torch.Tensor, species: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the members' energies, shape (n, members), and the gradient of their mean by the features."""
        features.requires_grad_()
        counts = torch.bincount(species, minlength=len(self._first)).tolist()
        with torch.enable_grad():
            parts = zip(torch.split(features, counts), self._first, self._offset, strict=True)
            sums = torch.cat([torch.addmm(offset, part, first) for part, first, offset in parts])
            members = self._fitting.finish(sums) * self._scale
            (gradient,) = torch.autograd.grad(members.sum() / self._fitting.members, features)
        return members.detach(), gradient.contiguous()


def on_gpu(potential: Potential, shape: Shape, constants: Mapping[str, float | tuple[float, ...]]) -> OnGpu | None:
    """Compile the invariants for a potential on a GPU.

    Parameters
    ----------
    potential
        The potential.
    shape
        Its shape.
    constants
        Further constants by name.

    Returns
    -------
    OnGpu | None
        None without a compiler, or where one atom does not fit into the shared memory.
    """
    library = load_library(SOURCES, potential.device, tuple(shape.defines(constants)))
    if not isinstance(library, CudaLibrary):
        return None
    size = torch.empty(1, dtype=torch.int64, device=potential.device)
    library.run("measure", 1, size)
    room = int(size)
    warps = min(WARPS, library.shared_memory // room)
    return OnGpu(potential, library, warps, room) if warps else None


def _model(dtype: torch.dtype) -> type[ctypes.Structure]:
    """Give the weights' structure in C."""
    real = ctypes.c_float if dtype is torch.float32 else ctypes.c_double
    members = [(field.name, ctypes.c_void_p) for field in fields(Weights)]
    return type(
        "Weights", (ctypes.Structure,), {"_fields_": [("n_elements", ctypes.c_int64), *members, ("cutoff", real)]}
    )
