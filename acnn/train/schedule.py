"""How long a training is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acnn.config import TrainConfig


WARM_PART = 0.29
"""Steps of a warm start, in units of those from scratch."""


def default_steps(n_atoms: int, settings: TrainConfig, *, warm: bool) -> int:
    """Choose the number of steps from the size of the data.

    Parameters
    ----------
    n_atoms
        Atoms of all training labels.
    settings
        Gives the size of a minibatch.
    warm
        Whether training starts from a previous potential.

    Returns
    -------
    int
        Optimiser steps.
    """
    batches = max(1, round(n_atoms / settings.batch_atoms))
    steps = min(int(800 * batches**0.6), 40000)
    return max(150, round(WARM_PART * steps)) if warm else steps
