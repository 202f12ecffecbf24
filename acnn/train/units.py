"""Signs that the labels of one set do not have the same units or settings."""

from __future__ import annotations

import numpy as np

GROUP = 0.02  # of the labels: fewer are outliers, not a group
FEWEST = 8  # labels of a group: of a search's first labels some are of an ill-fitted element
WIDEST = 6.0  # standard deviations of the wider group between two groups of one kind
LEAST = 1.0  # eV/atom between two groups that are worth a word
ALIKE = 0.9  # cosine of the angle between what a label says and what was learned: they differ in size only
OTHER_UNIT = 8.0  # times as large or small: eV/Å and hartree/bohr differ by 51, eV/Å^3 and GPa by 160
SPREAD = 3.0  # between the factors of labels in one other unit, which the potential has not quite withstood


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


def other_scale(labelled: np.ndarray, learned: np.ndarray, product: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Find labels that agree with what was learned but for a common factor far from one, or for their sign.

    Parameters
    ----------
    labelled
        Squared length of each label's forces or virial, shape (n_labels,).
    learned
        The same as the trained potential has it, shape (n_labels,).
    product
        Their scalar product, shape (n_labels,).

    Returns
    -------
    tuple
        Indices of such labels and the factor; None if there are too few for a group of its own.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        factor, cosine = product / learned, product / np.sqrt(labelled * learned)
    alike = np.isfinite(factor) & (np.abs(cosine) > ALIKE)
    size = np.abs(np.log(np.abs(factor, where=alike, out=np.ones_like(factor))))
    groups = [
        alike & (size > np.log(OTHER_UNIT)) & (factor > 1),
        alike & (size > np.log(OTHER_UNIT)) & (factor > 0) & (factor < 1),
        alike & (size < np.log(OTHER_UNIT)) & (factor < 0),
    ]
    for group in groups:
        if group.any():
            typical = float(np.median(factor[group]))
            close = group & (np.abs(np.log(np.abs(factor / typical), where=group, out=size.copy())) < np.log(SPREAD))
            if close.sum() >= max(FEWEST, GROUP * len(factor)) and close.sum() > 0.5 * group.sum():
                return np.flatnonzero(close), typical
    return None
