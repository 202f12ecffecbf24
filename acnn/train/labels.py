"""Labels: many of them, cleaned and counted."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols
from ase.units import GPa

from acnn.errors import DataError, ModelError
from acnn.train.distances import CLOSEST_PAIR, not_calculated, touching
from acnn.train.label import ZEROS, Label, fault, label_of, lacks
from acnn.train.units import first_frames, two_groups

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ase import Atoms

    from acnn.config import TrainConfig

logger = logging.getLogger(__name__)

REFERENCE_ROUNDS = 12


@dataclass(slots=True)
class LabelSet:
    """Labels fit for use, what they lack, and why the others were set aside.

    Parameters
    ----------
    labels
        The usable ones, in the order they came.
    dropped
        Count of those set aside, by reason.
    lacking
        Count of usable ones that do not say all that can be learned, by what they lack.
    beyond
        Count of those set aside because their "forces" or "stress" are above the limit.
    """

    labels: list[Label]
    dropped: Counter[str] = field(default_factory=Counter)
    lacking: Counter[str] = field(default_factory=Counter)
    beyond: Counter[str] = field(default_factory=Counter)


def read_labels(frames: Sequence[Atoms], settings: TrainConfig) -> LabelSet:
    """Take the labels from structures and set aside those that no potential should learn.

    Parameters
    ----------
    frames
        Each with a calculator that holds an energy, and forces and stress where they are known.
    settings
        The limits beyond which a label is set aside.

    Returns
    -------
    LabelSet
        Never silent: every frame is either among the labels or counted under a reason.

    Raises
    ------
    DataError
        If no usable label is left, or a frame has no energy at all; names the frame.
    """
    found = LabelSet([])
    sound: list[Label] = []
    for number, atoms in enumerate(frames):
        label = label_of(atoms, number)
        if reason := fault(label):
            found.dropped[reason] += 1
        else:
            sound.append(label)
    for label, close in zip(sound, touching(sound), strict=True):
        if close:
            found.dropped[f"atoms closer than {CLOSEST_PAIR:g} Å"] += 1
        elif too_large := _too_large(label, settings):
            what, reason = too_large
            found.beyond[what] += 1
            found.dropped[reason] += 1
        else:
            found.labels.append(label)
    _drop_wild_energies(found, settings.max_energy)
    for reason, count in sorted(found.dropped.items()):
        logger.warning("%d of %d labels set aside: %s", count, len(frames), reason)
    if not found.labels:
        raise DataError(f"no usable label among {len(frames)} frames; set aside: {dict(found.dropped) or 'none given'}")
    _count_lacking(found)
    if groups := two_groups(energies_above_reference(found.labels)):
        upper, gap = groups
        logger.warning(
            "%d labels (frames %s) lie %.3g eV/atom above the %d others, with none between: "
            "do all have the same units (eV) and settings?",
            len(upper),
            first_frames(upper, [label.frame for label in found.labels]),
            gap,
            len(found.labels) - len(upper),
        )
    return found


def check_elements(labels: Sequence[Label], elements: Sequence[str]) -> None:
    """Refuse labels of elements that a potential does not know.

    Parameters
    ----------
    labels
        The labels.
    elements
        Symbols that the potential knows.

    Raises
    ------
    ModelError
        Names the first such frame and its elements.
    """
    for label in labels:
        unknown = sorted({chemical_symbols[z] for z in label.atoms.numbers} - set(elements))
        if unknown:
            raise ModelError(
                f"frame {label.frame}: holds {', '.join(unknown)}, but the potential knows {', '.join(elements)}"
            )


def _too_large(label: Label, settings: TrainConfig) -> tuple[str, str] | None:
    """Say which of forces and stress is above its limit, and the limit."""
    if label.forces is not None and np.abs(label.forces).max() > settings.max_force:
        return "forces", f"force above {settings.max_force:g} eV/Å"
    if label.stress is not None and np.abs(label.stress).max() > settings.max_pressure_gpa * GPa:
        return "stress", f"stress above {settings.max_pressure_gpa:g} GPa"
    return None


def _count_lacking(found: LabelSet) -> None:
    """Take zeros that stand for nothing away; count and tell what labels do not say."""
    for label, zeros in zip(found.labels, not_calculated(found.labels), strict=True):
        for name in zeros:
            setattr(label, name, None)
        found.lacking.update(lacks(label, zeros))
    for what, count in sorted(found.lacking.items()):
        wrong = what in ZEROS.values() or (what.startswith("forces") and count == len(found.labels))
        level = logging.WARNING if wrong else logging.INFO
        logger.log(level, "%d of %d labels lack %s", count, len(found.labels), what)


def _drop_wild_energies(found: LabelSet, max_energy: float) -> None:
    """Set aside labels far from the robust fit of reference energies."""
    if not found.labels:
        return
    excess = energies_above_reference(found.labels)
    keep = np.abs(excess - np.median(excess)) <= max_energy
    if not keep.all():
        found.dropped[f"energy more than {max_energy:g} eV/atom off the references"] += int((~keep).sum())
        found.labels = [label for label, ok in zip(found.labels, keep, strict=True) if ok]


def composition_matrix(labels: Sequence[Label], numbers: Sequence[int]) -> np.ndarray:
    """Count atoms by element, shape (n_labels, n_elements)."""
    return np.array([[float((label.atoms.numbers == z).sum()) for z in numbers] for label in labels])


def fit_references(
    labels: Sequence[Label], numbers: Sequence[int], known: Mapping[int, float] | None = None
) -> np.ndarray:
    """Fit one energy per element by robust least squares.

    The fit of energies per atom is reweighted by the inverse of the misfit, so that a few wild labels do not decide,
    and is regularised towards the mean, so that a single composition still has an answer.

    Parameters
    ----------
    labels
        The labels.
    numbers
        Atomic numbers of the elements.
    known
        Reference energies of other elements, eV, by atomic number. Each label holds at least one of ``numbers``.

    Returns
    -------
    numpy.ndarray
        Shape (n_elements,), eV.
    """
    known = known or {}
    counts = composition_matrix(labels, numbers)
    others = composition_matrix(labels, list(known)) @ np.array(list(known.values())) if known else 0.0
    sizes = counts.sum(1)
    fractions = counts / sizes[:, None]
    target = (np.array([label.energy for label in labels]) - others) / sizes
    centre = float(np.median(target))
    weights = np.ones(len(target))
    solution = np.zeros(len(numbers))
    for _ in range(REFERENCE_ROUNDS):
        weighted = fractions * weights[:, None]
        normal = fractions.T @ weighted + 1e-6 * weights.sum() * np.eye(len(numbers))
        solution = np.linalg.solve(normal, weighted.T @ (target - centre))
        misfit = np.abs(target - centre - fractions @ solution)
        weights = 1.0 / np.maximum(misfit, max(1e-3, float(np.median(misfit))))
    return solution + centre


def energies_above_reference(labels: Sequence[Label]) -> np.ndarray:
    """Give energies per atom above the robust fit, shape (n_labels,), eV/atom."""
    numbers = sorted({int(z) for label in labels for z in label.atoms.numbers})
    references = fit_references(labels, numbers)
    counts = composition_matrix(labels, numbers)
    energies = np.array([label.energy for label in labels])
    excess: np.ndarray = (energies - counts @ references) / counts.sum(1)
    return excess


def text_of(digests: Collection[int]) -> str:
    """Write digests of labels, sixteen digits each.

    Parameters
    ----------
    digests
        As labels have them.

    Returns
    -------
    str
        For the metadata of a potential.
    """
    return "".join(f"{digest:016x}" for digest in sorted(digests))


def digests_of(text: str) -> set[int]:
    """Read the digests of labels.

    Parameters
    ----------
    text
        From `text_of`.

    Returns
    -------
    set
        The digests.
    """
    return {int(text[start : start + 16], 16) for start in range(0, len(text), 16)}
