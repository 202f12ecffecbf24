"""Geometry of a batch as the network sees it: neighbour vectors, and pieces that fit into a cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Graph:
    """Neighbourhoods of some whole structures.

    Parameters
    ----------
    vectors
        Vectors to the neighbours, shape (n_atoms, K, 3), Å; padding lies beyond every cutoff.
    index
        Atom number of each neighbour within this graph, own number for padding, shape (n_atoms, K).
    species
        Position of each atom's element in the potential's list, shape (n_atoms,).
    system
        Structure of each atom, shape (n_atoms,).
    n_systems
        Number of structures.
    """

    vectors: torch.Tensor
    index: torch.Tensor
    species: torch.Tensor
    system: torch.Tensor
    n_systems: int

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return int(self.species.shape[0])


def pad_vectors(vectors: torch.Tensor, mask: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Put padding, and neighbours beyond the cutoff, where no function sees them.

    Parameters
    ----------
    vectors
        Shape (n_atoms, K, 3), Å.
    mask
        True for real neighbours, shape (n_atoms, K).
    cutoff
        The largest cutoff, Å.

    Returns
    -------
    torch.Tensor
        Vectors, shape (n_atoms, K, 3), Å; what is not seen is (2 cutoff, 0, 0).
    """
    far = torch.zeros(3, dtype=vectors.dtype, device=vectors.device)
    far[0] = 2.0 * cutoff
    return torch.where(mask[..., None], vectors, far)


def compact(vectors: torch.Tensor, index: torch.Tensor, cutoff: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Drop columns that no atom needs, when that saves at least a tenth of the work.

    Parameters
    ----------
    vectors
        Padded vectors, shape (n_atoms, K, 3), Å.
    index
        Neighbour numbers, shape (n_atoms, K).
    cutoff
        The largest cutoff, Å.

    Returns
    -------
    tuple
        Vectors and index with K' <= K columns, the real neighbours first.
    """
    near = vectors.square().sum(-1) < cutoff * cutoff
    width = max(1, int(near.sum(1).max()))
    if width > 0.9 * index.shape[1]:
        return vectors, index
    order = near.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    return vectors.gather(1, order[..., None].expand(-1, -1, 3)), index.gather(1, order)


def assemble(graph: Graph, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn derivatives by the neighbour vectors into forces and virials.

    Parameters
    ----------
    graph
        The neighbourhoods.
    gradient
        dE/d(vectors), shape (n_atoms, K, 3), eV/Å.

    Returns
    -------
    tuple
        Forces, shape (n_atoms, 3), eV/Å, and dE/d(strain), shape (n_systems, 3, 3), eV.
    """
    pushed = torch.zeros_like(gradient[:, 0]).index_add(0, graph.index.reshape(-1), gradient.reshape(-1, 3))
    forces = gradient.sum(1) - pushed
    local = torch.bmm(graph.vectors.detach().transpose(1, 2), gradient)
    virial = local.new_zeros((graph.n_systems, 3, 3)).index_add(0, graph.system, local)
    return forces, 0.5 * (virial + virial.transpose(1, 2))


def differentiate(graph: Graph, energies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn some energies, of members or of their mean, into forces and virials.

    Parameters
    ----------
    graph
        The neighbourhoods; its vectors require gradients.
    energies
        What was made of them, summed over the atoms; shape (n,), eV.

    Returns
    -------
    tuple
        Forces, shape (n, n_atoms, 3), eV/Å, and dE/d(strain), shape (n, n_systems, 3, 3), eV.
    """
    last = len(energies) - 1
    gradients = [torch.autograd.grad(energies[m], graph.vectors, retain_graph=m < last)[0] for m in range(last + 1)]
    forces, virials = zip(*(assemble(graph, gradient) for gradient in gradients), strict=True)
    return torch.stack(forces), torch.stack(virials)


def force_deviation(forces: torch.Tensor) -> torch.Tensor:
    """Give the length of the members' standard deviation, shape (n_atoms,), of forces (n_members, n_atoms, 3)."""
    return forces.var(0).sum(-1).sqrt()


def system_pieces(counts: list[int], max_atoms: int) -> list[tuple[int, int]]:
    """Cut a row of structures into runs of at most ``max_atoms`` atoms.

    Parameters
    ----------
    counts
        Atoms of each structure.
    max_atoms
        Most atoms of a run; a larger structure makes a run by itself.

    Returns
    -------
    list
        First and last-plus-one structure of each run.
    """
    pieces: list[tuple[int, int]] = []
    start, size = 0, 0
    for system, count in enumerate(counts):
        if size and size + count > max_atoms:
            pieces.append((start, system))
            start, size = system, 0
        size += count
    if size:
        pieces.append((start, len(counts)))
    return pieces
