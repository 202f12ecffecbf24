"""Energies and forces on a CPU with every gradient of the descriptor written out, in compiled loops.

The weights are read once (`Fused`); the fitting network stays with PyTorch, whose matrix products are as fast as any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from acnn.nn.native import Kernel, Place, Shape, Tables, load_kernel

if TYPE_CHECKING:
    from acnn.nn.graph import Graph
    from acnn.nn.potential import Potential
    from acnn.nn.repulsion import Repulsion

_READY: WeakKeyDictionary[Potential, tuple[tuple[int, ...], Fused]] = WeakKeyDictionary()


def fused(potential: Potential, closest: float) -> Fused | None:
    """Give the fast form of a potential with its weights as they are now.

    Parameters
    ----------
    potential
        The potential.
    closest
        Distances are not taken smaller, Å.

    Returns
    -------
    Fused | None
        None where PyTorch has to do the work.
    """
    kernel = kernel_for(potential, closest)
    if kernel is None:
        return None
    tensors = (*potential.parameters(), *potential.buffers())
    state = tuple(number for tensor in tensors for number in (tensor.data_ptr(), tensor._version))  # noqa: SLF001 - torch has no public name
    known = _READY.get(potential)
    if known is None or known[0] != state:
        known = (state, Fused(potential, kernel))
        _READY[potential] = known
    return known[1]


def kernel_for(potential: Potential, closest: float) -> Kernel | None:
    """Find the compiled kernel for a potential.

    Parameters
    ----------
    potential
        The potential.
    closest
        Distances are not taken smaller, Å.

    Returns
    -------
    Kernel | None
        None where PyTorch has to do the work: on a GPU, with attention or with two cutoffs, without a compiler.
    """
    config = potential.config
    simple = config.radial_cutoff == config.angular_cutoff and potential.attention is None and config.max_factors >= 2
    if not simple or potential.device.type != "cpu":
        return None
    shape = Shape(
        dtype=potential.dtype,
        n_radial=config.n_radial,
        n_species=potential.embedding.species.shape[1],
        l_max=config.l_max,
        channels=config.channels,
        mixed=config.mixed_channels,
        factors=config.max_factors,
        closest=closest,
    )
    return load_kernel(shape)


class Fused:
    """A potential's weights as the kernel wants them.

    Parameters
    ----------
    potential
        The potential; later changes of its weights are not seen.
    kernel
        Its kernel.
    """

    def __init__(self, potential: Potential, kernel: Kernel) -> None:
        self._kernel = kernel
        self._repulsion, self._fitting = potential.repulsion, potential.fitting
        self._scale, self._cutoff, self._n_features = potential.scale, potential.cutoff, potential.embedding.n_features
        self._n_members = potential.n_members
        embedding, fitting = potential.embedding, potential.fitting
        with torch.no_grad():
            species = embedding.species.detach()
            self._table = (species if len(species) > 1 else torch.ones_like(species)).contiguous()
            harmonics = [embedding.get_buffer(f"harmonic_{degree}") for degree in range(kernel.shape.l_max + 1)]
            empty = species.new_zeros(0)
            deep, terms, coefficients = empty, torch.zeros((0, 3), dtype=torch.int32), empty
            if kernel.shape.factors > 2:
                deep = torch.stack(list(embedding.deep)).contiguous()
                product, pair = torch.nonzero(embedding.coupling, as_tuple=True)
                factors = (embedding.first[pair], embedding.second[pair], product)
                terms = torch.stack(factors, dim=1).to(torch.int32).contiguous()
                coefficients = embedding.coupling[product, pair].contiguous()
            mixing = torch.stack(list(embedding.mixing)).contiguous()
            flat = torch.cat([table.flatten() for table in harmonics])
            self._tables = Tables(mixing, flat, deep, terms, coefficients)
            self._weights = [weight.detach() for weight in fitting.weights]
            first, offset = fitting.folded(potential.whitening)
            self._first, self._offset = first.contiguous(), offset.contiguous()

    def __call__(self, graph: Graph) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the members' energies, and forces and virials of their mean.

        Parameters
        ----------
        graph
            Neighbourhoods.

        Returns
        -------
        tuple[torch.Tensor, torch.Tensor, torch.Tensor]
            Energies of each atom, shape (n_atoms, n_members), eV; forces, shape (n_atoms, 3), eV/Å; derivative by
            strain, shape (n_systems, 3, 3), eV.
        """
        vectors, index = graph.vectors.detach().contiguous(), graph.index.contiguous()
        kernel, tables = self._kernel, self._tables
        near = _Near(self._repulsion, graph, vectors, kernel.shape.closest)
        place = Place(vectors, near.seen, index, graph.species, self._table, self._cutoff)
        raw = kernel.density(place)
        features = kernel.contract(raw, tables, self._n_features)
        members, by_features = self._fit(features, graph.species)
        by_vector, by_seen = kernel.density_back(place, kernel.contract_back(raw, tables, by_features))
        if by_seen is not None:
            by_vector = by_vector + near.pull_back(by_seen)
            members = members + near.energy[:, None]
        forces, virial = kernel.assemble(place, graph.system, graph.n_systems, by_vector)
        return members, forces, virial

    def _fit(self, features: torch.Tensor, species: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the members' energies and the derivative of their mean by the features."""
        rows = [torch.nonzero(species == element)[:, 0] for element in range(len(self._first))]
        members = features.new_empty((len(features), self._n_members))
        by_features = torch.empty_like(features)
        for element, chosen in enumerate(rows):
            if len(chosen):
                everything = len(chosen) == len(features)
                part = features if everything else features.index_select(0, chosen)
                energies, derivative = self._fit_element(part, element)
                members.index_copy_(0, chosen, energies)
                by_features.index_copy_(0, chosen, derivative)
        return members, by_features

    def _fit_element(self, features: torch.Tensor, element: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Do the same for atoms of one element."""
        fitting, n_atoms, n_members = self._fitting, len(features), self._n_members
        share = self._scale / n_members
        hidden = torch.addmm(self._offset[element], features, self._first[element])
        energies = hidden[:, :n_members]
        by_hidden = torch.empty_like(hidden)
        by_hidden[:, :n_members] = share
        if self._weights:
            x = hidden[:, n_members:].view(n_atoms, n_members, -1).transpose(0, 1)
            inputs = []
            for layer, weight in enumerate(self._weights):
                inputs.append(x)
                x = torch.nn.functional.silu(x)
                last = layer == len(fitting.biases)
                x = torch.bmm(x, weight) if last else torch.baddbmm(fitting.biases[layer].detach(), x, weight)
            energies = energies + x.squeeze(2).T
            back = share.expand(n_members, n_atoms, 1)
            for x, weight in zip(reversed(inputs), reversed(self._weights), strict=True):
                back = torch.ops.aten.silu_backward(torch.bmm(back, weight.mT), x)
            by_hidden[:, n_members:] = back.transpose(0, 1).reshape(n_atoms, -1)
        return energies * self._scale, by_hidden @ self._first[element].T


class _Near:
    """The repulsion, where any two atoms are close enough to feel it."""

    def __init__(self, repulsion: Repulsion, graph: Graph, vectors: torch.Tensor, closest: float) -> None:
        self._vectors = vectors
        self.seen: torch.Tensor | None = None
        square = vectors.square().sum(-1)
        reach = float(repulsion.onset.max())
        if float(square.min()) >= reach * reach:
            return
        self._distances = square.clamp(min=closest**2).sqrt()
        self._pairs = torch.nonzero(square < reach * reach, as_tuple=True)
        atoms = self._pairs[0]
        first, second = graph.species[atoms, None], graph.species[graph.index[self._pairs]][:, None]
        with torch.enable_grad():
            self._leaf = self._distances[self._pairs][:, None].requires_grad_()
            self._energy = repulsion(self._leaf, first, second)
            self._softened = repulsion.soften(self._leaf, repulsion.onset[first, second])
        self.seen = self._distances.index_put(self._pairs, self._softened.detach()[:, 0])
        self.energy = vectors.new_zeros(len(vectors)).index_add(0, atoms, self._energy.detach())

    def pull_back(self, by_seen: torch.Tensor) -> torch.Tensor:
        """Give the derivative by the vectors of repulsion and softened distances, shape (n_atoms, K, 3)."""
        with torch.enable_grad():
            total = self._energy.sum() + (self._softened[:, 0] * by_seen[self._pairs]).sum()
            (by_leaf,) = torch.autograd.grad(total, self._leaf)
        by_distance = by_seen.index_put(self._pairs, by_leaf[:, 0])
        return (by_distance / self._distances)[:, :, None] * self._vectors
