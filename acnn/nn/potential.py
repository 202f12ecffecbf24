"""The potential: reference energies + short-range repulsion + embedding, attention and fitting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from ase.data import atomic_numbers
from torch import nn

from acnn.errors import ModelError
from acnn.neighbors import Neighbors, build_neighbors
from acnn.nn.attention import Attention
from acnn.nn.derivatives import derivatives
from acnn.nn.embedding import Embedding
from acnn.nn.fitting import Fitting, Whitening
from acnn.nn.fused import Fused, fused
from acnn.nn.graph import Graph, assemble, compact, differentiate, force_deviation, pad_vectors, system_pieces
from acnn.nn.native import Laid
from acnn.nn.pulay import Pulay
from acnn.nn.repulsion import Repulsion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from acnn.batch import Batch
    from acnn.config import ModelConfig

PIECE_ATOMS = {"cpu": 512, "cuda": 65536}
"""Atoms evaluated together: what a CPU caches, what fills a GPU."""

CLOSEST = 1e-3  # Å; distances are not taken smaller, so that coinciding atoms give large, finite numbers

FIXED = 1e-5  # eV/Å; members that agree better do so by symmetry, and their spread says nothing


@dataclass(slots=True)
class Output:
    """What a potential says about a batch.

    Parameters
    ----------
    energy
        Total energies, shape (n_systems,), float64, eV.
    forces
        Shape (n_atoms, 3), eV/Å.
    stress
        +(1/V) dE/d(strain), shape (n_systems, 3, 3), eV/Å^3, tension positive.
    atomic_energy
        Energies by atom, shape (n_atoms,), float64, eV.
    energy_spread
        Calibrated standard deviation of the committee's energy per atom, shape (n_systems,), eV/atom;
        zero for one member.
    force_spread
        Length of the calibrated standard deviation of the force, shape (n_atoms,), eV/Å; None unless it was asked for.
    """

    energy: torch.Tensor
    forces: torch.Tensor
    stress: torch.Tensor
    atomic_energy: torch.Tensor
    energy_spread: torch.Tensor
    force_spread: torch.Tensor | None = None


class Potential(nn.Module):
    """A committee of networks over one descriptor.

    Parameters
    ----------
    config
        Shape of the network.
    elements
        Chemical symbols that the potential knows.
    seed
        Of the initial weights.

    Notes
    -----
    Its buffers hold what is set from data, not trained: reference energies (eV), energy scale (eV), whitening,
    repulsion onsets (Å) and the factors that calibrate the spreads of energies and of forces.
    """

    reference: torch.Tensor
    scale: torch.Tensor
    calibration: torch.Tensor
    lookup: torch.Tensor

    def __init__(self, config: ModelConfig, elements: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        if not elements or len(set(elements)) != len(elements):
            raise ModelError(f"elements: expected at least one, each once, got {list(elements)}")
        self.config = config
        self.elements: tuple[str, ...] = tuple(elements)
        self.metadata: dict[str, Any] = {}
        numbers = [_number(symbol) for symbol in elements]
        generator = torch.Generator().manual_seed(seed)
        n = len(numbers)
        self.embedding = Embedding(config, n, generator)
        n_features = self.embedding.n_features
        self.whitening = Whitening(n_features, n)
        self.attention = Attention(config, n_features, n, generator) if config.attention_blocks else None
        coupled = config.attention_width if config.attention_blocks else 0
        self.fitting = Fitting(n_features + coupled, n, config.hidden, config.members, generator)
        self.repulsion = Repulsion(numbers, config.cutoff)
        self.pulay = Pulay(n)
        self.register_buffer("reference", torch.zeros(n, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("calibration", torch.ones(2, dtype=torch.float64))
        lookup = torch.full((119,), -1, dtype=torch.int64)
        lookup[numbers] = torch.arange(n)
        self.register_buffer("lookup", lookup, persistent=False)
        self.to(getattr(torch, config.dtype))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:  # noqa: ANN401, FBT001, FBT002 - the signature of torch
        """Convert as asked, but keep the reference energies in double precision."""
        exact = self.reference
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it so
        self.reference = exact.to(self.reference.device)
        return self

    @property
    def cutoff(self) -> float:
        """The largest cutoff, Å."""
        return self.config.cutoff

    @property
    def n_members(self) -> int:
        """Number of committee members."""
        return self.config.members

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the network."""
        return self.scale.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.scale.device

    def species_of(self, numbers: torch.Tensor) -> torch.Tensor:
        """Translate atomic numbers to positions in `elements`.

        Parameters
        ----------
        numbers
            Atomic numbers, any shape.

        Returns
        -------
        torch.Tensor
            Same shape, int64.

        Raises
        ------
        ModelError
            If an element is unknown to the potential.
        """
        species: torch.Tensor = self.lookup[numbers]
        if bool((species < 0).any()):
            unknown = sorted({int(z) for z in numbers[species < 0].tolist()})
            known = ", ".join(self.elements)
            raise ModelError(f"the potential knows {known}; the structures also hold atomic numbers {unknown}")
        return species

    def forward(self, graph: Graph) -> torch.Tensor:
        """Compute the members' energy of each atom, without the reference energies.

        Parameters
        ----------
        graph
            Neighbourhoods; the result is differentiable in its vectors.

        Returns
        -------
        torch.Tensor
            Shape (n_atoms, n_members), eV.
        """
        features, seen, extra = self.invariants(graph)
        if self.attention is not None:
            coupled = self.attention(self._whitened(features, graph.species), graph.species, graph.index, seen)
            features = torch.cat([features, coupled], dim=1)
        energies: torch.Tensor = self.fitting(features, graph.species, self.whitening) * self.scale
        return energies if extra is None else energies + extra[:, None]

    def invariants(self, graph: Graph) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Compute the invariants of each atom, and what the repulsion does.

        Parameters
        ----------
        graph
            Neighbourhoods.

        Returns
        -------
        tuple
            Invariants, (n_atoms, n_features); the distances that they see, Å, (n_atoms, K); the repulsion's energy, eV,
            (n_atoms,), None if no pair is as close.
        """
        first, neighbor_species = graph.species[:, None], graph.species[graph.index]
        distances = graph.vectors.square().sum(-1).clamp(min=CLOSEST**2).sqrt()
        seen, extra = distances, None
        if bool((distances.detach() < self.repulsion.onset.max()).any()):
            extra = self.repulsion(distances, first, neighbor_species)
            seen = self.repulsion.soften(distances, self.repulsion.onset[first, neighbor_species])
        return self.embedding(graph.vectors, distances, seen, neighbor_species), seen, extra

    def respond(
        self, graph: Graph, mixture: torch.Tensor | None = None, *, create_graph: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the members' energies, and forces and virials of a mixture of members.

        Parameters
        ----------
        graph
            Neighbourhoods.
        mixture
            Weights of the members in each structure, shape (n_systems, n_members), rows that sum to one, or the
            repulsion would not count once; None: the mean.
        create_graph
            Make forces and virials differentiable by the weights, as the energies are.

        Returns
        -------
        tuple
            Energies, shape (n_atoms, n_members), eV; forces, shape (n_atoms, 3), eV/Å; dE/d(strain), shape
            (n_systems, 3, 3), eV.
        """
        fast = None if create_graph or mixture is not None else fused(self, CLOSEST)
        if isinstance(fast, Fused):
            members, forces, virials = fast(Laid.of_graph(graph, self.dtype), graph.species)
            return members, forces[0], virials[0]
        compiled = derivatives(self, graph, CLOSEST)
        with torch.enable_grad():
            if compiled is None:
                source = graph.vectors.detach()
                source.requires_grad = True
                members = self(replace(graph, vectors=source))
            else:
                source, repulsion = compiled.describe()
                if not source.requires_grad:  # the embedding is held fixed
                    source.requires_grad = True
                members = self.fitting(source, graph.species, self.whitening) * self.scale + repulsion[:, None]
            chosen = members.mean(1) if mixture is None else (members * mixture[graph.system]).sum(1)
            gradient = torch.autograd.grad(chosen.sum(), source, create_graph=create_graph)[0]
            if compiled is None:
                return members, *assemble(graph, gradient)
            return members, *(compiled.push(gradient) if create_graph else compiled.pushed(gradient))

    def _whitened(self, features: torch.Tensor, species: torch.Tensor) -> torch.Tensor:
        """Whiten invariants; by element."""
        centred = features - self.whitening.mean[species]
        if len(self.elements) == 1:
            return centred @ self.whitening.matrix[0]
        white = torch.zeros_like(centred)
        for element in range(len(self.elements)):
            chosen = torch.nonzero(species == element)[:, 0]
            white = white.index_add(0, chosen, centred.index_select(0, chosen) @ self.whitening.matrix[element])
        return white

    @torch.inference_mode(mode=False)  # forces are gradients, also for a caller who has none
    def compute(self, batch: Batch, neighbors: Neighbors | None = None, *, spread: bool = False) -> Output:
        """Compute energies, forces and stresses of a batch of any size.

        Parameters
        ----------
        batch
            Structures on the potential's device; not changed.
        neighbors
            Neighbours within at least `cutoff`, farther ones are ignored; None: they are searched.
        spread
            Also compute the committee's spread of the forces, at the cost of a gradient for each member.

        Returns
        -------
        Output
            Detached tensors in the order of the batch.

        Raises
        ------
        ModelError
            If the batch holds an element that the potential does not know, or its weights are inference tensors.
        """
        if next(self.parameters()).is_inference():
            raise ModelError("the potential was made or copied in torch.inference_mode: do that outside of it")
        species = self.species_of(batch.numbers)
        if neighbors is None:
            neighbors = build_neighbors(batch, self.cutoff)
        fast = fused(self, CLOSEST)
        if isinstance(fast, Fused) or (fast is not None and not spread):  # on a GPU the mean alone is pulled back
            found = fast(Laid.of_batch(batch, neighbors, species), species, apart=spread)
            return self._output(species, batch.system, batch.cells, *found, spread=spread)
        counts: list[int] = torch.bincount(batch.system, minlength=batch.n_systems).tolist()
        starts = [0, *accumulate(counts)]
        parts = []
        for begin, end in system_pieces(counts, PIECE_ATOMS["cuda" if batch.positions.is_cuda else "cpu"]):
            graph = self._graph(batch, neighbors, species, slice(starts[begin], starts[end]), slice(begin, end))
            parts.append(self._evaluate(graph, batch.cells[begin:end], spread=spread))
        return _join(parts)

    def _graph(self, batch: Batch, neighbors: Neighbors, species: torch.Tensor, atoms: slice, systems: slice) -> Graph:
        """Cut out whole structures, given by their atoms and numbers."""
        with torch.no_grad():
            index, positions = neighbors.index[atoms], batch.positions
            system = batch.system[atoms]
            vectors = torch.bmm(neighbors.shift[atoms].to(positions.dtype), batch.cells[system])
            vectors = vectors + positions[index] - positions[atoms][:, None, :]
            vectors = pad_vectors(vectors, neighbors.mask[atoms], self.cutoff).to(self.dtype)
            vectors, index = compact(vectors, index - atoms.start, self.cutoff)
            return Graph(vectors, index, species[atoms], system - systems.start, systems.stop - systems.start)

    def _evaluate(self, graph: Graph, cells: torch.Tensor, *, spread: bool) -> Output:
        """Evaluate one piece."""
        graph.vectors.requires_grad_(True)  # noqa: FBT003 - the signature of torch
        with torch.enable_grad():
            members = self(graph)
            found = differentiate(graph, members.sum(0) if spread else members.sum()[None] / self.n_members)
        return self._output(graph.species, graph.system, cells, members.detach(), *found, spread=spread)

    def _output(
        self,
        species: torch.Tensor,
        system: torch.Tensor,
        cells: torch.Tensor,
        members: torch.Tensor,
        forces: torch.Tensor,
        virials: torch.Tensor,
        *,
        spread: bool,
    ) -> Output:
        """Sum the members' energies, add the references, and turn virials into stresses.

        Forces and virials are of each member where their spread is wanted; their mean counts.
        """
        exact = members.double()
        atomic = exact.mean(1) + self.reference[species]
        return Output(
            atomic.new_zeros(len(cells)).index_add(0, system, atomic),
            forces.mean(0).to(cells.dtype),
            virials.mean(0).to(cells.dtype) / torch.linalg.det(cells).abs()[:, None, None],
            atomic,
            self._energy_spread(system, len(cells), exact),
            self._force_spread(forces) if spread else None,
        )

    def _energy_spread(self, system: torch.Tensor, n_systems: int, members: torch.Tensor) -> torch.Tensor:
        """Compute the calibrated standard deviation over the members, eV/atom."""
        if self.n_members == 1:
            return members.new_zeros(n_systems)
        totals = members.new_zeros((n_systems, self.n_members)).index_add(0, system, members)
        counts = torch.bincount(system, minlength=n_systems)
        return totals.std(1) / counts * self.calibration[0]

    def _force_spread(self, forces: torch.Tensor) -> torch.Tensor:
        """Compute the calibrated length of the standard deviation over the members of each force, eV/Å."""
        if self.n_members == 1:
            return forces.new_zeros(forces.shape[1])
        return force_deviation(forces) * self.calibration[1]


def _join(parts: list[Output]) -> Output:
    """Put the pieces together."""
    spreads = [part.force_spread for part in parts if part.force_spread is not None]
    return Output(
        torch.cat([part.energy for part in parts]),
        torch.cat([part.forces for part in parts]),
        torch.cat([part.stress for part in parts]),
        torch.cat([part.atomic_energy for part in parts]),
        torch.cat([part.energy_spread for part in parts]),
        torch.cat(spreads) if spreads else None,
    )


def _number(symbol: str) -> int:
    """Look up an atomic number."""
    if symbol not in atomic_numbers or symbol == "X":
        raise ModelError(f"elements: {symbol!r} is not a chemical symbol")
    return int(atomic_numbers[symbol])
