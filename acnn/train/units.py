"""Signs that the labels of one set do not have the same units or settings."""

from __future__ import annotations

import numpy as np

GROUP = 0.02  # of the labels: fewer are outliers, not a group
FEWEST = 8  # labels of a group: of a search's first labels some are of an ill-fitted element
WIDEST = 6.0  # standard deviations of the wider group between two groups of one kind
LEAST = 1.0  # eV/atom between two groups that are worth a word


def two_groups(excess: np.ndarray) -> tuple[int, int, float] | None:
    """Find out whether energies fall into two groups that lie much farther apart than each is wide.

    Parameters
    ----------
    excess
        Energies per atom above the references, shape (n_labels,), eV/atom.

    Returns
    -------
    tuple
        Labels in the lower and in the upper group, and the energy between the groups, eV/atom; None if there are none.
    """
    ordered, fewest = np.sort(excess), max(FEWEST, round(GROUP * len(excess)))
    if len(ordered) < 2 * fewest:
        return None
    gaps = np.diff(ordered)[fewest - 1 : len(ordered) - fewest]
    cut = int(np.argmax(gaps)) + fewest
    lower, upper, gap = ordered[:cut], ordered[cut:], float(gaps.max())
    if gap < LEAST or gap < WIDEST * max(lower.std(), upper.std()):
        return None
    return len(lower), len(upper), gap
