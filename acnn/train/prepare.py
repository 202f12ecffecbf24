"""What is set before the weights are trained: the first potential, references, scale, repulsion onsets, whitening."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols

from acnn.errors import ModelError
from acnn.nn.fitting import whitening_of
from acnn.nn.potential import Potential
from acnn.nn.repulsion import default_onset
from acnn.train.labels import check_elements, fit_references

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from acnn.config import ModelConfig
    from acnn.train.dataset import Dataset
    from acnn.train.label import Label

ONSET_MARGIN = 0.98  # of the shortest distance seen: the repulsion stays clear of the data
SHORTEST = 0.4  # of the guess: whatever the labels hold, atoms that collide are pushed apart from here
SMALLEST_SCALE, LARGEST_SCALE = 0.1, 10.0  # Å; of the energies, in units of the typical force
WHITENING_ATOMS = 20000  # environments from which the whitening is taken, at most
KEPT = 0.6  # of what trainings made of the weights of the fitting network, in a warm start...
PULLING_STEPS = 1900  # ...of at least so many steps: fewer would not make good for it
SHAKEN = 0.1  # Å, each component: environments are whitened with their atoms displaced at random


def start_potential(
    labels: Sequence[Label],
    model: ModelConfig,
    seed: int,
    previous: Potential | None,
    elements: Sequence[str] | None,
) -> Potential:
    """Make the potential that a training starts from.

    Parameters
    ----------
    labels
        The labels.
    model
        Its shape.
    seed
        Of the initial weights.
    previous
        Potential whose copy it is; None: it is new.
    elements
        Symbols that it must know beside those of the labels.

    Returns
    -------
    Potential
        The start.

    Raises
    ------
    ModelError
        If ``previous`` does not fit.
    """
    present = {int(z) for label in labels for z in label.atoms.numbers}
    wanted = {chemical_symbols[z] for z in present} | set(elements or ())
    if previous is None:
        return Potential(model, sorted(wanted, key=chemical_symbols.index), seed)
    if previous.config != model:
        raise ModelError("the previous potential has another shape than the model settings; start from scratch")
    check_elements(labels, previous.elements)
    if not wanted <= set(previous.elements):
        raise ModelError(f"the previous potential knows {', '.join(previous.elements)}, not all of {sorted(wanted)}")
    potential = Potential(model, previous.elements, seed)
    potential.load_state_dict(previous.state_dict())
    potential.metadata = dict(previous.metadata)
    return potential


def set_references(potential: Potential, labels: Sequence[Label], learned: Collection[str]) -> None:
    """Fit the reference energies of the elements that were not learned yet, and at first the scale of the energies."""
    numbers = [atomic_numbers[symbol] for symbol in potential.elements]
    known = {z: float(potential.reference[i]) for i, z in enumerate(numbers) if potential.elements[i] in learned}
    fresh = [z for z in numbers if z not in known]
    holding = [label for label in labels if np.isin(label.atoms.numbers, fresh).any()]
    if holding:
        places = [numbers.index(z) for z in fresh]
        potential.reference[places] = torch.as_tensor(fit_references(holding, fresh, known))
    if not learned:
        potential.scale.fill_(energy_scale(labels, dict(zip(numbers, potential.reference.tolist(), strict=True))))


def energy_scale(labels: Sequence[Label], references: Mapping[int, float]) -> float:
    """Give the size of the energies that the network has to learn, so that it gives numbers of about one.

    Parameters
    ----------
    labels
        The labels.
    references
        Energies of the elements by atomic number, eV.

    Returns
    -------
    float
        The standard deviation of the energies per atom above the references, eV; between a tenth of and ten times the
        typical force times 1 Å, beyond which a few wild labels, or many equal ones, do not decide.
    """
    excess = [(x.energy - sum(references[int(z)] for z in x.atoms.numbers)) / len(x.atoms) for x in labels]
    force = typical_force(labels)
    return float(np.clip(np.std(excess), SMALLEST_SCALE * force, LARGEST_SCALE * force))


def typical_force(labels: Sequence[Label]) -> float:
    """Give a robust size of the force components, eV/Å, that a few wild labels do not move.

    Parameters
    ----------
    labels
        The labels.

    Returns
    -------
    float
        The median over structures; where no forces differ from zero, the size of the virials per atom instead, eV.
    """
    sizes = [float(np.sqrt(np.mean(np.square(x.forces)))) for x in labels if x.forces is not None]
    sizes = [size for size in sizes if size > 1e-3]
    if not sizes:
        stresses = [(x.stress, x.atoms) for x in labels if x.stress is not None]
        sizes = [float(np.abs(stress).mean()) * atoms.cell.volume / len(atoms) for stress, atoms in stresses]
    return float(np.clip(np.median(sizes), 0.02, 20.0)) if sizes else 1.0


def set_onsets(potential: Potential, dataset: Dataset) -> None:
    """Let the repulsion start just below the shortest distance of each pair of elements."""
    numbers = [atomic_numbers[symbol] for symbol in potential.elements]
    guess = torch.as_tensor(default_onset(numbers, potential.config.cutoff), dtype=potential.dtype)
    seen = torch.maximum(ONSET_MARGIN * dataset.closest_pairs(len(numbers)).to(guess), SHORTEST * guess)
    # a pair that was only ever seen far apart keeps the guess, or the shorter of both where it was seen closer
    potential.repulsion.onset.copy_(torch.where(seen < 1.6 * guess, seen, guess))


def set_whitening(
    potential: Potential, dataset: Dataset, numbers: torch.Tensor, max_atoms: int, learned: Collection[str]
) -> None:
    """Take the whitening from the descriptors of some labels, with their atoms shaken.

    Forces are derivatives: combinations of invariants that hardly vary among the labels but change at once when an atom
    moves are not to be blown up. (In a cell of one atom nothing moves against anything.)

    A warm start is given the whitening that a training from scratch would have, by the descriptors as they were before
    any training, unless it brings labels of elements not learned yet: these see the trained descriptors only.

    Parameters
    ----------
    potential
        Its whitening is replaced.
    dataset
        The labels.
    numbers
        Those to use, in random order.
    max_atoms
        Atoms evaluated together.
    learned
        Elements whose energies must not change: the layers behind their whitening are turned, or, where attention sees
        it too, their whitening stays. The weights of the others keep their size.
    """
    kept = numbers[: max(1, int((dataset.counts[numbers].cumsum(0) <= WHITENING_ATOMS).sum()))]
    source = _untrained(potential) if _familiar(potential, dataset, learned) else potential
    features, species = _features(source, dataset, kept, max_atoms)
    old_mean, old_matrix = potential.whitening.mean.double(), potential.whitening.matrix.double()
    new_mean, new_matrix = old_mean.clone(), old_matrix.clone()
    for element, symbol in enumerate(potential.elements):
        own = features[species == element]
        if not len(own) or (symbol in learned and potential.attention is not None):
            continue
        new_mean[element], new_matrix[element] = whitening_of(own, features)
        if symbol not in learned:
            old_mean[element], old_matrix[element] = new_mean[element], new_matrix[element]  # nothing to turn
    if learned and potential.attention is None:
        _turn_layers(potential, (old_mean, old_matrix), (new_mean, new_matrix))
    potential.whitening.mean.copy_(new_mean)
    potential.whitening.matrix.copy_(new_matrix)


def pull_back(potential: Potential, dataset: Dataset, learned: Collection[str], steps: int) -> None:
    """Pull the weights of the fitting network part of the way back to what they were before any training.

    Weights that learned few labels first stay near what those made of them, and tell less of others than weights that
    learned all labels at once. Nothing is pulled where labels bring elements not learned yet, or the origin is unknown.
    (Shrink and perturb; Ash and Adams, arXiv 1910.08475; towards their own start here.)

    Parameters
    ----------
    potential
        Its whitening is that of the labels; its weights are changed.
    dataset
        The labels.
    learned
        Elements that it has learned; of a training from scratch none.
    steps
        Optimiser steps that are certain to follow.
    """
    if steps < PULLING_STEPS or not _familiar(potential, dataset, learned):
        return
    with torch.no_grad():
        untrained = _untrained(potential)
        for weight, start in zip(potential.fitting.parameters(), untrained.fitting.parameters(), strict=True):
            weight.lerp_(start, 1.0 - KEPT)


def _familiar(potential: Potential, dataset: Dataset, learned: Collection[str]) -> bool:
    """Say whether all elements of the labels were learned before."""
    return {potential.elements[k] for k in set(dataset.species.tolist())} <= set(learned)


def _untrained(potential: Potential) -> Potential:
    """Make the potential as it was before it was trained from scratch, but for the repulsion; if unknown, as it is.

    Trainings let the weights of embedding and first layer grow. With a whitening by trained descriptors the first layer
    would begin small again, and each step would change more.
    """
    first = (potential.metadata.get("trainings") or [{}])[0]
    if first.get("warm", True) or "seed" not in first:
        return potential
    untrained = Potential(potential.config, potential.elements, int(first["seed"]))
    untrained.repulsion = potential.repulsion
    return untrained


def _features(
    potential: Potential, dataset: Dataset, numbers: torch.Tensor, max_atoms: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Evaluate the descriptors of some labels, their atoms shaken, in double precision."""
    features, species = [], []
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for chosen in dataset.epoch(numbers, max_atoms, generator):
            graph, _ = dataset.batch(chosen)
            moves = SHAKEN * torch.randn((graph.n_atoms, 3), generator=generator, dtype=torch.float64).to(graph.vectors)
            shaken = replace(graph, vectors=graph.vectors + moves[graph.index] - moves[:, None])
            features.append(potential.invariants(shaken)[0].double())
            species.append(graph.species)
    return torch.cat(features), torch.cat(species)


def _turn_layers(
    potential: Potential, old: tuple[torch.Tensor, torch.Tensor], new: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Express the first layer in the new whitened coordinates."""
    fitting = potential.fitting
    n_white = old[0].shape[1]
    # all as (n_elements, members, n_features, outputs): views, so that what is written stays
    pairs = [(fitting.linear.transpose(1, 2)[..., None], fitting.offset[..., None])]
    if fitting.first is not None and fitting.bias is not None:
        pairs.append((fitting.first, fitting.bias.view(*fitting.first.shape[:2], -1)))
    with torch.no_grad():
        for weight, offset in pairs:
            plain = old[1][:, None] @ weight[:, :, :n_white].double()
            shift = (new[0] - old[0])[:, None, None] @ plain
            weight[:, :, :n_white] = torch.linalg.solve(new[1][:, None], plain).to(weight.dtype)
            offset.add_(shift[:, :, 0].to(offset.dtype))
