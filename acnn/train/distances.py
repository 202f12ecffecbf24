"""What the distances between atoms say of a label: atoms at one place, and zeros that stand for nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from ase.data import covalent_radii

from acnn.batch import Batch
from acnn.lattice import has_vector_below, volume_and_face
from acnn.neighbors import build_neighbors
from acnn.nn.graph import system_pieces
from acnn.train.dataset import SEARCH_ATOMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ase import Atoms

    from acnn.train.label import Label

CLOSEST_PAIR = 0.3  # Å; atoms nearer than this are a broken file, not physics
FARTHEST_PAIR = 8.0  # Å; atoms farther from each other are taken to feel nothing
LEAST_FORCE = 0.005  # as `_felt` counts; a copper atom 0.03 Å off its place
LEAST_STRESS = 0.003  # as `_felt` counts, per Å^3; crystals have 0.01 (caesium) and more


def touching(labels: Sequence[Label]) -> list[bool]:
    """Say of each label whether two of its atoms are at the same place, or nearly so.

    Parameters
    ----------
    labels
        The labels.

    Returns
    -------
    list
        In their order.
    """
    found = np.zeros(len(labels), dtype=bool)
    for piece in _pieces([label.atoms for label in labels]):
        batch = Batch.from_atoms([labels[number].atoms for number in piece], torch.float64)
        near = build_neighbors(batch, CLOSEST_PAIR).mask.any(1)
        found[piece] = torch.bincount(batch.system[near], minlength=len(piece)).numpy() > 0
    return found.tolist()


def not_calculated(labels: Sequence[Label]) -> list[set[str]]:
    """Name of each label which of "forces" and "stress" are zeros that a file holds in place of what nobody calculated.

    Where atoms feel each other a stress is never zero to the last digit, and forces all are only where symmetry asks
    for it.

    Parameters
    ----------
    labels
        The labels; atoms of one are not at the same place.

    Returns
    -------
    list
        In their order; empty sets for what is known, or not said at all.
    """
    found: list[set[str]] = [set() for _ in labels]
    numbers = [number for number, label in enumerate(labels) if _zero(label)]
    frames = [labels[number].atoms for number in numbers]
    for piece in _pieces(frames):
        for place, forces, stress in zip(piece, *_felt([frames[k] for k in piece]), strict=True):
            felt = {"forces": forces > LEAST_FORCE, "stress": stress > LEAST_STRESS}
            found[numbers[place]] = {name for name in _zero(labels[numbers[place]]) if felt[name]}
    return found


def _zero(label: Label) -> set[str]:
    """Name which of forces and stress are there and zero."""
    known = {"forces": label.forces, "stress": label.stress}
    return {name for name, array in known.items() if array is not None and not array.any()}


def _felt(frames: Sequence[Atoms]) -> tuple[list[float], list[float]]:
    """Estimate whether the atoms of each structure feel forces, and a stress.

    A pair counts with (1 - distance / reach)^3, its reach being twice the sum of the covalent radii. Of forces: the
    longest sum of such vectors over an atom's neighbours, each element with a weight of its own, which vanishes where
    symmetry lets no force be. Of the stress: the sum over all pairs and directions, per volume.
    """
    batch = Batch.from_atoms(list(frames), torch.float64)
    radii = torch.as_tensor(covalent_radii)[batch.numbers]
    neighbors = build_neighbors(batch, min(FARTHEST_PAIR, 4.0 * float(radii.max())))
    vectors = neighbors.vectors(batch)
    distances = vectors.norm(dim=2).clamp(min=CLOSEST_PAIR)
    reach = 2.0 * (radii[:, None] + radii[neighbors.index])
    weights = (1.0 - distances / reach).clamp(min=0.0) ** 3 * neighbors.mask
    own = torch.as_tensor(np.concatenate([1.0 + np.unique(atoms.numbers, return_inverse=True)[1] for atoms in frames]))
    directed = (vectors * (weights * own[neighbors.index] / distances)[:, :, None]).sum(1).norm(dim=1)
    none = torch.zeros(len(frames), dtype=torch.float64)
    longest = none.scatter_reduce(0, batch.system, directed, "amax")
    total = none.index_add(0, batch.system, weights.sum(1))
    return longest.tolist(), (total / torch.linalg.det(batch.cells).abs()).tolist()


def _pieces(frames: Sequence[Atoms]) -> Iterator[list[int]]:
    """Give numbers of structures to search for neighbours together, in order but for those that are searched alone."""
    thin = [_thin(atoms) for atoms in frames]
    wide = [number for number, alone in enumerate(thin) if not alone]
    for begin, end in system_pieces([len(frames[number]) for number in wide], SEARCH_ATOMS):
        yield wide[begin:end]
    yield from ([number] for number, alone in enumerate(thin) if alone)


def _thin(atoms: Atoms) -> bool:
    """Say whether an atom may have so many images nearby that others would drown in a common list of neighbours."""
    return bool(atoms.pbc.any()) and has_vector_below(CLOSEST_PAIR, atoms, *volume_and_face(atoms.cell.tolist()))
