"""How long a training is, how fast, and what counts when."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from acnn.errors import ConfigError
from acnn.train.loss import LAST_WILD_FORCE, WILD_FORCE, Weights

if TYPE_CHECKING:
    from acnn.config import TrainConfig


WARM_PART = 0.32
"""Steps of a warm start, in units of those from scratch: with what does not depend on steps a third of the time."""

WARM_STEPS = 1800
"""Steps up to which a warm start takes half of those: in fewer the errors of few labels, known by heart, grow."""

WARM_FROM = 0.05
"""Moment of the schedule at which a warm start begins."""

REFERENCE_STRUCTURES = 10.0
"""Structures in a minibatch for which the learning rates of the settings are meant."""

MOST_STRUCTURES = 50.0
"""Structures in a minibatch up to which the learning rate rises."""

REFERENCE_STEPS = 1000
"""Steps of a training from which the learning rate falls with its length."""

RISING_PART = 0.03
"""Part of a training during which the learning rate rises."""

RISING_STEPS = 30.0
"""Steps during which it rises at least."""

PATIENT_PART = 0.2
"""Part of a training without improvement after which the best weights settle early."""

FEWEST_WAITED = 50
"""Evaluations without improvement that are waited for at least."""

FIRST_ENERGY = 1 / 30
"""Weight of the energies at the start of a training from scratch, in units of the final one."""

PULAY_FROM = 0.3
"""Moment of the schedule from which on the labels' Pulay stress is learned.

By then the network has learned the stresses that energies and forces allow: of labels of one volume, which do not tell
the two apart, little is taken away."""

FINAL = 0.7
"""Moment of the schedule from which on energies have their final weight."""

TRUSTING = 0.5
"""Moment of the schedule from which on wild forces of new labels come to count."""

LOWEST_RATE = 0.005
"""Learning rate at the end of the schedule, in units of the highest."""


def check_settings(settings: TrainConfig) -> None:
    """Refuse settings that would learn nothing."""
    if settings.energy_weight == settings.force_weight == settings.virial_weight == 0:
        raise ConfigError("train: all weights are zero; at least one of energy, force, virial must count")


def default_steps(n_labels: int, n_atoms: int, settings: TrainConfig, *, warm: bool) -> int:
    """Choose the number of steps from the size of the data.

    Parameters
    ----------
    n_labels
        Labels that are learned.
    n_atoms
        Their atoms.
    settings
        Gives the size of a minibatch.
    warm
        Whether training starts from a previous potential.

    Returns
    -------
    int
        Optimiser steps.
    """
    batches = n_batches(n_labels, n_atoms, settings)
    steps = min(int(800 * batches**0.7), 80000)
    return max(round(WARM_PART * steps), min(steps // 2, WARM_STEPS)) if warm else steps


def default_patience(steps: int, settings: TrainConfig) -> int:
    """Choose how many evaluations without improvement are waited for.

    The labels of a simulation are known by heart long before the schedule ends, and what is learned then harms. Only
    the second half spends patience: at high rates the errors of a few wild structures stand still for long. A training
    of a few thousand steps ends before.

    Parameters
    ----------
    steps
        Optimiser steps of the whole training as planned.
    settings
        Give the steps between two evaluations.

    Returns
    -------
    int
        A part of the evaluations, but enough for the chance in a few labels held out.
    """
    return max(FEWEST_WAITED, round(PATIENT_PART * steps / settings.evaluate_every))


def top_learning_rate(n_labels: int, n_atoms: int, steps: int, settings: TrainConfig, *, warm: bool) -> float:
    """Choose the highest learning rate from the number of structures in a minibatch and the length of the training.

    The fewer structures a minibatch holds, the noisier are its gradients: the rate goes with the square root of their
    number, as is usual for optimisers that divide by the size of the gradient, up to the largest number measured. And
    whoever has more steps can take smaller ones, which carry less noise into what the labels do not tell: the rate
    falls with the fourth root of the length, as measured.

    Parameters
    ----------
    n_labels
        Labels that are learned.
    n_atoms
        Their atoms.
    steps
        Optimiser steps of the whole training as planned, whatever a limit of time may leave of them.
    settings
        Give the rates, and the size of a minibatch.
    warm
        Whether training starts from a previous potential.

    Returns
    -------
    float
        The rate at the top of the schedule.
    """
    rate = settings.warm_learning_rate if warm else settings.learning_rate
    together = n_labels / n_batches(n_labels, n_atoms, settings)
    structures = min(together, MOST_STRUCTURES) / REFERENCE_STRUCTURES
    return rate * math.sqrt(structures) * math.pow(min(1.0, REFERENCE_STEPS / steps), 0.25)


def moment(progress: float, *, warm: bool) -> float:
    """Say where in the schedule a training is.

    A warm start leaves out the very first part of it. It unlearns something by its high learning rate and the low
    weight of the energies, but where it begins later it stays near what the first few labels made of the weights.

    Parameters
    ----------
    progress
        Part of the training that is done, from 0 to 1.
    warm
        Whether training started from a previous potential.

    Returns
    -------
    float
        From 0 to 1.
    """
    return WARM_FROM + (1.0 - WARM_FROM) * progress if warm else progress


def rise(step: int, steps: int) -> float:
    """Let the learning rate rise at first.

    Parameters
    ----------
    step
        Steps since the optimiser knew nothing.
    steps
        Steps of the whole training as planned.

    Returns
    -------
    float
        A factor, up to one.
    """
    return min(1.0, (step + 1) / max(RISING_STEPS, RISING_PART * steps))


def rate_factor(when: float) -> float:
    """Let the learning rate fall along a half cosine.

    Parameters
    ----------
    when
        Moment of the schedule, from 0 to 1.

    Returns
    -------
    float
        The rate in units of the highest.
    """
    return LOWEST_RATE + (1.0 - LOWEST_RATE) * 0.5 * (1.0 + math.cos(math.pi * when))


def loss_weights(when: float, settings: TrainConfig) -> Weights:
    """Choose how the terms of the loss count at one moment.

    Forces come first: the weight of the energies grows geometrically. Wild forces of new labels count little until the
    potential could tell whether some labels are in other units, and then more and more: where dense crystals do not
    count there are holes.

    Parameters
    ----------
    when
        Moment of the schedule, from 0 to 1.
    settings
        Give the final weights.

    Returns
    -------
    Weights
        The weights.
    """
    energy = settings.energy_weight * FIRST_ENERGY ** max(0.0, 1.0 - when / FINAL)
    trust = max(0.0, (when - TRUSTING) / (1.0 - TRUSTING))
    wild = WILD_FORCE * (LAST_WILD_FORCE / WILD_FORCE) ** min(1.0, trust)
    told = settings.energy_weight + settings.force_weight > 0
    return Weights(energy, settings.force_weight, settings.virial_weight, wild, pulay=told and when >= PULAY_FROM)


def n_batches(n_labels: int, n_atoms: int, settings: TrainConfig) -> int:
    """Count the minibatches of an epoch.

    Parameters
    ----------
    n_labels
        Labels that are learned: no structure is cut.
    n_atoms
        Their atoms.
    settings
        Gives the size of a minibatch.

    Returns
    -------
    int
        At least one.
    """
    return max(1, min(n_labels, round(n_atoms / settings.batch_atoms)))
