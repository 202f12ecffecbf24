"""What a search learns about itself and turns back on its own settings: plain functions of a few numbers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from csp.config import AdvanceConfig, SelectConfig
from csp.errors import DataError

Floats = NDArray[np.float64]

MIN_NEAR_LABELS = 5  # so many labels nearest to the hull are looked at, however wide the window must be for that


def next_bonds_scale(scale: float, unsafe_fraction: float, settings: SelectConfig) -> float:
    """Adapt the scale of the unsafe distances: many unsafe relaxations lower it, few raise it.

    Parameters
    ----------
    scale
        The present scale.
    unsafe_fraction
        Share of unsafe relaxations, 0 to 1.
    settings
        ``unsafe_fractions``, ``bonds_scale_step`` and ``bonds_scale_bounds``.

    Returns
    -------
    float
        The next scale, within the bounds.

    Raises
    ------
    DataError
        If the share is not between 0 and 1.
    """
    if not 0 <= unsafe_fraction <= 1:
        raise DataError(f"advance: expected an unsafe fraction between 0 and 1, got {unsafe_fraction}")
    few, many = settings.unsafe_fractions
    step = settings.bonds_scale_step * (int(unsafe_fraction < few) - int(unsafe_fraction > many))
    least, greatest = settings.bonds_scale_bounds
    return round(min(max(scale + step, least), greatest), 6)


def next_n_structures(n: int, walk_forward_mev: float | None, settings: AdvanceConfig) -> int:
    """Let generations grow once the model predicts new labels well.

    Parameters
    ----------
    n
        Trial crystals of the finished generation.
    walk_forward_mev
        Error on new labels near the hull, meV/atom; None where it is not known.
    settings
        ``grow_below_mev``, ``growth`` and ``max_structures``.

    Returns
    -------
    int
        Never less than ``n``.
    """
    if walk_forward_mev is None or walk_forward_mev > settings.grow_below_mev:
        return n
    return max(n, min(round(n * settings.growth), settings.max_structures))


def labels_left(n_labels: int, spent: int, settings: AdvanceConfig) -> int:
    """Say how many labels the next generation may spend.

    Parameters
    ----------
    n_labels
        Labels that a generation asks for.
    spent
        Labels asked for so far, failed ones too.
    settings
        ``max_labels``.

    Returns
    -------
    int
        ``n_labels``, or what the budget has left.
    """
    return n_labels if settings.max_labels is None else max(0, min(n_labels, settings.max_labels - spent))


def walk_forward_near_hull(
    predicted_per_atom: Sequence[float] | Floats,
    labelled_per_atom: Sequence[float] | Floats,
    e_above_hull: Sequence[float] | Floats,
    window_ev: float,
) -> float:
    """Measure the error of a model on new labels near the hull, before it has seen them.

    Parameters
    ----------
    predicted_per_atom
        Energies by the model that chose the structures, shape (n,), eV/atom.
    labelled_per_atom
        Energies by first principles, shape (n,), eV/atom.
    e_above_hull
        Distances from the hull of the labels, by the lower of label and prediction, shape (n,), eV/atom.
    window_ev
        Labels within this distance count; if they are fewer than ``MIN_NEAR_LABELS``, the nearest so many do.

    Returns
    -------
    float
        Root mean square error, meV/atom.

    Raises
    ------
    DataError
        If there are no labels, lengths differ, or a number is not finite.
    """
    columns = [np.asarray(c, dtype=np.float64) for c in (predicted_per_atom, labelled_per_atom, e_above_hull)]
    if not len(columns[0]) or len({c.shape for c in columns}) > 1 or not all(np.isfinite(c).all() for c in columns):
        raise DataError("walk-forward error: expected finite predictions, labels and hull distances, one per new label")
    predicted, labelled, heights = columns
    order = np.argsort(heights, kind="stable")
    n_near = max(int((heights <= window_ev).sum()), min(MIN_NEAR_LABELS, len(order)))
    errors = (predicted - labelled)[order[:n_near]]
    return float(1000 * np.sqrt(np.mean(errors**2)))
