"""Signs that the labels of one set do not have the same units or settings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)

GROUP = 0.02  # of the labels: fewer are outliers, not a group
FEWEST = 8  # labels of a group: of a search's first labels some are of an ill-fitted element
WIDEST = 6.0  # standard deviations of the wider group between two groups of one kind
LEAST = 1.0  # eV/atom between two groups that are worth a word
ALIKE = 0.9  # cosine of the angle between what a label says and what was learned: they differ in size only
OTHER_UNIT = 8.0  # times as large or small: eV/Å and hartree/bohr differ by 51, eV/Å^3 and GPa by 160
AGREED = 2.0  # times as large or small: a label within this factor of what was learned agrees with it
FAR = 3.0  # typical misfits of those that agree
SILENT = 1e-3  # of the larger ones: forces that vanish by symmetry say neither yes nor no
ROUNDING = 1e-4  # eV/Å, or eV: whatever is smaller, where all is silent, is chance
LARGE_PULAY = 0.05  # eV per atom: 0.5 GPa of a dense metal
SPREAD = 3.0  # between the factors of labels in one other unit, which the potential has not quite withstood


def two_groups(excess: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Find out whether energies fall into two groups that lie much farther apart than each is wide.

    Parameters
    ----------
    excess
        Energies per atom above the references, shape (n_labels,), eV/atom.

    Returns
    -------
    tuple
        Indices of the upper group, and the energy between the groups, eV/atom; None if there are none.
    """
    order, fewest = np.argsort(excess, kind="stable"), max(FEWEST, round(GROUP * len(excess)))
    if len(order) < 2 * fewest:
        return None
    ordered = excess[order]
    gaps = np.diff(ordered)[fewest - 1 : len(ordered) - fewest]
    cut = int(np.argmax(gaps)) + fewest
    gap = float(gaps.max())
    if gap < LEAST or gap < WIDEST * max(ordered[:cut].std(), ordered[cut:].std()):
        return None
    return np.sort(order[cut:]), gap


def other_scale(
    labelled: np.ndarray, learned: np.ndarray, product: np.ndarray, n_beyond: int = 0, *, most: float = 0.5
) -> tuple[np.ndarray, float] | None:
    """Find labels that agree with what was learned but for a common factor far from one, or for their sign.

    Parameters
    ----------
    labelled
        Squared length of each label's forces or virial, shape (n_labels,); NaN where it has none.
    learned
        The same as the potential has it, shape (n_labels,).
    product
        Their scalar product, shape (n_labels,).
    n_beyond
        Further labels that were set aside because theirs is too large. They count towards a group of large ones, but
        for no more than it holds itself: a search sets many aside that are only strained.
    most
        Part of the labels that such a group must stay below; at least as many as the rest must agree with what was
        learned. Of labels that the potential learns the majority is right; where it learned others, all may be wrong:
        infinity.

    Returns
    -------
    tuple
        Indices of such labels and the factor; None if there are too few for a group of its own, or so many that the
        rest are the others, or if the potential does not know the rest yet.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        factor, cosine = product / learned, product / np.sqrt(labelled * learned)
    known = np.isfinite(factor)
    silent = max(ROUNDING, SILENT * np.sqrt(np.quantile(labelled[known], 0.9))) ** 2 if known.any() else np.inf
    alike = known & (np.maximum(labelled, learned) > silent) & (np.abs(cosine) > ALIKE)
    size = np.abs(np.log(np.abs(factor, where=alike, out=np.ones_like(factor))))
    telling = known & (labelled > silent)
    agreed = telling & alike & (factor > 0) & (size < np.log(AGREED))
    if agreed.sum() >= 0.5 * telling.sum() > 0:
        misfit = labelled + learned - 2.0 * product
        far = misfit > FAR**2 * np.median(misfit[agreed])  # the sign of a force smaller than that is chance
    elif most < 1.0:
        return None
    else:
        far = known
    groups = [
        (alike & (size > np.log(OTHER_UNIT)) & (factor > 1), n_beyond),
        (alike & (size > np.log(OTHER_UNIT)) & (factor > 0) & (factor < 1), 0),
        (alike & far & (size < np.log(OTHER_UNIT)) & (factor < 0), 0),
    ]
    for group, n_more in groups:
        if group.any():
            typical = float(np.median(factor[group]))
            close = group & (np.abs(np.log(np.abs(factor / typical), where=group, out=size.copy())) < np.log(SPREAD))
            n_close = int(close.sum())
            enough = n_close + min(n_more, n_close) >= max(FEWEST, GROUP * len(factor))
            if enough and 0.5 * group.sum() < n_close < most * known.sum():
                return np.flatnonzero(close), typical
    return None


def warn_of_other_scale(name: str, numbers: Sequence[int] | np.ndarray, factor: float, frames: Sequence[int]) -> None:
    """Log which labels have forces or stresses of another unit or sign than the rest.

    Parameters
    ----------
    name
        What is compared, for the message.
    numbers
        Labels of the group, from `other_scale`.
    factor
        Theirs.
    frames
        Frame of each label in what was read.
    """
    logger.warning(
        "the %s of %d of %d labels (frames %s) are about %.3g times what the potential makes of them: "
        "do all have the same units and sign?",
        name,
        len(numbers),
        len(frames),
        first_frames(numbers, frames),
        factor,
    )


def warn_of_pulay_stress(virials: Mapping[str, float], error: float) -> None:
    """Log which elements add much to the virials of labels that no energy tells.

    Parameters
    ----------
    virials
        What each element was found to add, eV per atom.
    error
        Mean absolute error of the virials, eV/atom; smaller ones are not told from chance.
    """
    for symbol, virial in virials.items():
        if abs(virial) > max(LARGE_PULAY, error):
            basis = "a Pulay stress, which a higher cutoff of the plane waves would end"
            logger.warning(
                "the stresses of the labels hold a virial of %.2f eV per atom of %s that their energies do not tell; "
                "the potential's own stress leaves it out: %s",
                virial,
                symbol,
                basis if virial > 0 else "are energies and stresses of the same settings?",
            )


def first_frames(numbers: Sequence[int] | np.ndarray, frames: Sequence[int]) -> str:
    """Name the first five frames of a group of labels."""
    return ", ".join(str(frames[number]) for number in numbers[:5]) + (", ..." if len(numbers) > 5 else "")
