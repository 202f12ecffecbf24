"""Neighbourhoods of a whole data set, found once, and minibatches cut from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from acnn.batch import Batch
from acnn.neighbors import build_neighbors
from acnn.nn.graph import Graph, system_pieces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from acnn.nn.potential import Potential
    from acnn.train.label import Label

SEARCH_ATOMS = 2048  # atoms searched for neighbours together


@dataclass(slots=True)
class Targets:
    """What the labels of a minibatch say; NaN where a label does not say it.

    Parameters
    ----------
    energy
        Total energies above the references, shape (n_systems,), eV.
    forces
        Shape (n_atoms, 3), eV/Å.
    virial
        dE/d(strain) = stress x volume, shape (n_systems, 3, 3), eV.
    counts
        Atoms per structure, shape (n_systems,).
    number
        Which label each structure is, shape (n_systems,).
    """

    energy: torch.Tensor
    forces: torch.Tensor
    virial: torch.Tensor
    counts: torch.Tensor
    number: torch.Tensor

    def leave_out(self, name: str, numbers: Sequence[int]) -> None:
        """Take away, in place, what some labels say of "forces" or "stress".

        Parameters
        ----------
        name
            Which of the two.
        numbers
            Numbers of the labels.
        """
        chosen = torch.isin(self.number, torch.as_tensor(numbers, dtype=torch.int64))
        if name == "forces":
            self.forces[torch.repeat_interleave(chosen, self.counts)] = torch.nan
        else:
            self.virial[chosen] = torch.nan


class Dataset:
    """Labels as flat tensors, with a compressed list of all neighbours within the cutoff.

    Its ``set_aside`` names, by "forces" or "stress", the labels whose own are of another unit or sign: they neither
    teach nor judge.

    Parameters
    ----------
    labels
        The labels.
    potential
        Gives cutoff, elements, references, dtype and device.
    """

    def __init__(self, labels: Sequence[Label], potential: Potential) -> None:
        dtype, device = potential.dtype, potential.device
        self.cutoff = potential.cutoff
        counts = np.array([len(label.atoms) for label in labels])
        self.counts = torch.as_tensor(counts)
        self.starts = torch.as_tensor(np.concatenate([[0], np.cumsum(counts)]))
        numbers = torch.as_tensor(np.concatenate([label.atoms.numbers for label in labels]), dtype=torch.int64)
        self.species = potential.species_of(numbers.to(device))
        self.vectors, self.index, self.widths = self._search(labels)
        self.edges = torch.cat([torch.zeros(1, dtype=torch.int64), self.widths.cumsum(0)])
        reference = potential.reference[self.species].cpu().numpy()
        offsets = np.add.reduceat(reference, self.starts[:-1].numpy())
        energies = np.array([label.energy for label in labels]) - offsets
        self.energy = torch.as_tensor(energies, dtype=dtype, device=device)
        forces = [np.full((len(x.atoms), 3), np.nan) if x.forces is None else x.forces for x in labels]
        self.forces = torch.as_tensor(np.concatenate(forces), dtype=dtype, device=device)
        virials = [np.full((3, 3), np.nan) if x.stress is None else x.stress * x.atoms.cell.volume for x in labels]
        self.virial = torch.as_tensor(np.stack(virials), dtype=dtype, device=device)
        self.vectors = self.vectors.to(dtype=dtype, device=device)
        self.set_aside: Mapping[str, Sequence[int]] = {}

    def _search(self, labels: Sequence[Label]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Find the neighbours of all atoms: vectors and numbers row by row, and the lengths of the rows."""
        vectors, index, widths = [], [], []
        for begin, end in system_pieces(self.counts.tolist(), SEARCH_ATOMS):
            batch = Batch.from_atoms([label.atoms for label in labels[begin:end]], torch.float64)
            neighbors = build_neighbors(batch, self.cutoff)
            first = (self.starts[begin:end] - self.starts[begin])[batch.system]
            found = neighbors.vectors(batch)
            vectors.append(found[neighbors.mask])
            index.append((neighbors.index - first[:, None])[neighbors.mask])
            widths.append(neighbors.mask.sum(1))
        return torch.cat(vectors), torch.cat(index), torch.cat(widths)

    def __len__(self) -> int:
        """Count the labels."""
        return len(self.counts)

    def closest_pairs(self, n_elements: int) -> torch.Tensor:
        """Find the shortest distance of each pair of elements.

        Parameters
        ----------
        n_elements
            Number of elements of the potential.

        Returns
        -------
        torch.Tensor
            Symmetric, shape (n_elements, n_elements), Å; infinite for a pair that never meets.
        """
        distances = self.vectors.norm(dim=1)
        first = torch.repeat_interleave(self.species, self.widths)
        starts = torch.repeat_interleave(self.starts[:-1], self.counts)
        second = self.species[self.index + torch.repeat_interleave(starts, self.widths)]
        flat = torch.full((n_elements**2,), torch.inf, dtype=distances.dtype)
        flat = flat.scatter_reduce(0, first * n_elements + second, distances, "amin")
        table = flat.view(n_elements, n_elements)
        return torch.minimum(table, table.T)

    def batch(self, chosen: torch.Tensor, *, whole: bool = False) -> tuple[Graph, Targets]:
        """Gather some labels.

        Parameters
        ----------
        chosen
            Their numbers, shape (n_systems,).
        whole
            Also with what is set aside.

        Returns
        -------
        tuple
            Neighbourhoods and targets.
        """
        counts = self.counts[chosen]
        system = torch.repeat_interleave(counts)
        offset = counts.cumsum(0) - counts
        rank = torch.arange(len(system)) - offset[system]
        atoms = self.starts[chosen][system] + rank
        widths = self.widths[atoms]
        columns = torch.arange(max(1, int(widths.max())))
        mask = columns < widths[:, None]
        slot = torch.where(mask, self.edges[atoms][:, None] + columns, 0)
        far = torch.zeros(3, dtype=self.vectors.dtype)
        far[0] = 2.0 * self.cutoff
        if len(self.vectors):
            vectors = torch.where(mask[..., None], self.vectors[slot], far)
            index = torch.where(mask, self.index[slot] + offset[system][:, None], torch.arange(len(system))[:, None])
        else:
            vectors, index = far.expand(len(system), 1, 3).clone(), torch.arange(len(system))[:, None]
        graph = Graph(vectors, index, self.species[atoms], system, len(chosen))
        targets = Targets(self.energy[chosen], self.forces[atoms], self.virial[chosen], counts, chosen)
        for name, numbers in () if whole else self.set_aside.items():
            targets.leave_out(name, numbers)
        return graph, targets

    def epoch(self, numbers: torch.Tensor, max_atoms: int, generator: torch.Generator) -> list[torch.Tensor]:
        """Cut one random order of some labels into minibatches of similar numbers of atoms.

        Parameters
        ----------
        numbers
            The labels to use.
        max_atoms
            Atoms per minibatch, about.
        generator
            Decides the order.

        Returns
        -------
        list
            Numbers of the labels of each minibatch.
        """
        order = numbers[torch.randperm(len(numbers), generator=generator)]
        total = int(self.counts[order].sum())
        n_batches = max(1, round(total / max_atoms))
        limit = -(-total // n_batches)
        filled = (self.counts[order].cumsum(0) - 1) // limit
        return [order[filled == piece] for piece in range(n_batches) if bool((filled == piece).any())]
