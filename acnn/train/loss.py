"""The loss of a minibatch: robust in energies per atom, forces and virials per atom."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from acnn.nn.graph import Graph
    from acnn.nn.potential import Potential
    from acnn.train.dataset import Targets
    from acnn.train.label import Label

WILD_FORCE = 4.0  # typical forces beyond which a force counts less, at first...
LAST_WILD_FORCE = 40.0  # ...and at the end; of labels that a previous potential has learned, from the start
VIRIAL_ATOMS = 8.0  # atoms with forces beyond which the virial of a structure counts less: its forces tell the same
WILD_ENERGY = 1.0  # eV/atom above the lowest structures, beyond which an energy counts less...
KNOWN_WILD_ENERGY = 3.0  # ...of labels that a previous potential has learned


@dataclass(slots=True)
class Weights:
    """How the terms count at one moment of the schedule.

    Parameters
    ----------
    energy
        Of the energy per atom.
    force
        Of the force components.
    virial
        Of the virial per atom; where forces of more than eight atoms are known and count, it falls with their number.
    wild_force
        Typical forces beyond which a force, or a virial per atom, counts less, of labels that are new.
    pulay
        Whether the labels' Pulay stress is learned.
    """

    energy: float
    force: float
    virial: float
    wild_force: float = WILD_FORCE
    pulay: bool = False


@dataclass(slots=True)
class Misfits:
    """Residuals of a minibatch in units of the potential's energy scale (/ 1 Å); zero where a label does not say it.

    Parameters
    ----------
    energy
        Per atom, shape (n_systems, n_members).
    force
        Shape (n_atoms, 3).
    virial
        Per atom, shape (n_systems, 3, 3).
    """

    energy: torch.Tensor
    force: torch.Tensor
    virial: torch.Tensor


def residuals(
    potential: Potential,
    graph: Graph,
    targets: Targets,
    mixture: torch.Tensor | None,
    *,
    training: bool,
    pulay: bool = False,
) -> Misfits:
    """Evaluate the potential, with what virials hold of their own, and subtract the targets.

    Parameters
    ----------
    potential
        The potential.
    graph
        Neighbourhoods.
    targets
        The labels.
    mixture
        Weights of the members whose mixed force each structure tests, shape (n_systems, n_members), rows that sum to
        one; None: the committee's mean, also for the energy.
    training
        Keep the graph of operations for a later derivative.
    pulay
        Whether the gradient reaches the labels' Pulay stress, which is added either way.

    Returns
    -------
    Misfits
        Differentiable by the weights if ``training``.
    """
    members, forces, virial = potential.respond(graph, mixture, create_graph=training)
    total = members.new_zeros((graph.n_systems, members.shape[1])).index_add(0, graph.system, members)
    if mixture is None:
        total = total.mean(1, keepdim=True)
    unit, counts = potential.scale, targets.counts
    own = potential.pulay(graph.species, graph.system, graph.n_systems, unit)
    # never cut off from the loss: where it is not to be learned its gradient is zero, not missing
    virial = virial + own.detach() + pulay * (own - own.detach())
    return Misfits(
        (total - targets.energy[:, None]) / counts[:, None] / unit,
        _known((forces - targets.forces) / unit, targets.forces),
        _known((virial - targets.virial) / counts[:, None, None] / unit, targets.virial),
    )


def _known(misfit: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Put zero where the label does not say it; what the potential cannot tell stays NaN, for the loss to show."""
    return torch.where(torch.isfinite(target), misfit, 0.0)


def random_mixture(owned: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw how much each member counts in the forces of each structure.

    A uniform draw from all mixtures trains the committee's mean at the speed of a single network, at the cost of one
    gradient, and still holds every member to the labels: the expected loss is that of the mean plus the variance of
    the weights times the members' disagreement.

    Parameters
    ----------
    owned
        One where a member may learn from a structure, shape (n_systems, n_members).
    generator
        Source of randomness.

    Returns
    -------
    torch.Tensor
        Same shape; rows sum to one.
    """
    draw = torch.rand(owned.shape, generator=generator, dtype=torch.float64).clamp(min=1e-12)
    weights = -torch.log(draw).to(owned) * owned
    return weights / weights.sum(1, keepdim=True)


class RobustLoss:
    """Pseudo-Huber loss whose elbow follows the typical misfit as training proceeds.

    Parameters
    ----------
    trust_energy
        How much each label's energy counts, shape (n_labels,).
    force
        The typical force, eV/Å.
    known
        Whether a previous potential has learned each label, its structure and energy, shape (n_labels,): it was looked
        at, so its forces count from the start as all do at the end.

    Notes
    -----
    `typical` holds the running mean size of the three kinds of misfits; it belongs to the state of a restart.
    """

    def __init__(self, trust_energy: torch.Tensor, force: float, known: torch.Tensor) -> None:
        self.trust_energy = trust_energy
        self.force = force
        self.known = known
        self.typical = torch.full((3,), -1.0, dtype=torch.float64)

    def __call__(self, misfits: Misfits, targets: Targets, weights: Weights, owned: torch.Tensor) -> torch.Tensor:
        """Compute the loss of a minibatch.

        Parameters
        ----------
        misfits
            From `residuals`.
        targets
            The labels.
        weights
            At this moment.
        owned
            One where a member may learn a structure's energy, shape (n_systems, n_members).

        Returns
        -------
        torch.Tensor
            A number.
        """
        system = torch.repeat_interleave(targets.counts.long())
        energy_trust = self.trust_energy[targets.number]
        limit = torch.where(self.known[targets.number], LAST_WILD_FORCE, weights.wild_force).to(targets.forces)
        size = torch.nan_to_num(targets.forces).norm(dim=1) / self.force
        force_trust = 1.0 / (1.0 + (size / limit[system]).square())
        virial_size = torch.nan_to_num(targets.virial).flatten(1).norm(dim=1) / targets.counts / self.force
        virial_trust = 1.0 / (1.0 + (virial_size / limit).square())
        # what a label does not say counts for nothing, so that it does not make the rest count less
        force_trust = force_trust * torch.isfinite(targets.forces).all(1)
        virial_trust = virial_trust * torch.isfinite(targets.virial).flatten(1).all(1)
        virial_weight = weights.virial * self._virial_share(targets, weights, system)[:, None, None]
        terms = (
            (misfits.energy, energy_trust[:, None] * owned, weights.energy),
            (misfits.force, force_trust[:, None].expand_as(misfits.force), weights.force),
            (misfits.virial, virial_trust[:, None, None].expand_as(misfits.virial), virial_weight),
        )
        total = misfits.energy.new_zeros(())
        for kind, (misfit, trust, weight) in enumerate(terms):
            elbow = self._typical(kind, misfit.detach(), trust)
            relative = misfit / elbow
            robust = elbow * elbow * ((1.0 + relative.square()).sqrt() - 1.0)
            total = total + (weight * trust * robust).sum() / trust.sum().clamp(min=1e-6)
        return total

    def _virial_share(self, targets: Targets, weights: Weights, system: torch.Tensor) -> torch.Tensor:
        """Say how much each virial counts beside the forces of its structure, shape (n_systems,)."""
        told = torch.isfinite(targets.forces).all(1).to(targets.virial) * float(weights.force > 0)
        atoms = told.new_zeros(len(targets.virial)).index_add(0, system, told)
        return VIRIAL_ATOMS / atoms.clamp(min=VIRIAL_ATOMS)

    def _typical(self, kind: int, misfit: torch.Tensor, trust: torch.Tensor) -> float:
        """Follow the typical misfit."""
        now = float((trust * misfit.abs()).sum() / trust.sum().clamp(min=1e-6))
        before = float(self.typical[kind])
        if float(trust.sum()) > 0:
            self.typical[kind] = now if before < 0 else 0.95 * before + 0.05 * now
        return max(1e-4, float(self.typical[kind]))


def doubted(labels: Sequence[Label], loss: RobustLoss) -> Counter[str]:
    """Count the labels that weigh less than half, forces of new ones at first.

    Parameters
    ----------
    labels
        The labels.
    loss
        The loss that weighs them.

    Returns
    -------
    collections.Counter
        Labels by reason; of forces, those where one atom's weighs less than half.
    """
    found = Counter({"energy far above the lowest": int((loss.trust_energy < 0.5).sum())})
    for label, known in zip(labels, loss.known.tolist(), strict=True):
        far = (LAST_WILD_FORCE if known else WILD_FORCE) * loss.force
        whose = " in a label learned before" if known else ""
        if label.forces is not None and (np.linalg.norm(label.forces, axis=1) > far).any():
            found[f"a force above {far:.3g} eV/Å{whose}"] += 1
    return +found


def energy_trust(excess: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Say how much each label's energy counts: less, the higher it lies, the more so if it is new.

    Parameters
    ----------
    excess
        Energies per atom above the references, shape (n_labels,), eV/atom.
    known
        Whether a previous potential has learned each label, same shape.

    Returns
    -------
    torch.Tensor
        Between zero and one, same shape.
    """
    above = excess - torch.quantile(excess, 0.1)
    limit = torch.where(known, KNOWN_WILD_ENERGY, WILD_ENERGY).to(excess)
    return 1.0 / (1.0 + (above.clamp(min=0.0) / limit).square())
