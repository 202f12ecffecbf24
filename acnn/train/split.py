"""Which labels are held out, and which each committee member learns from: whole blocks of related ones."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from acnn.train.metrics import FEWEST_TO_CALIBRATE

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from acnn.train.label import Label

BLOCK_PART = 0.02  # of all labels: a larger family is divided
BLOCK_SIZE = 4  # neighbouring labels of one family that are never divided
OWNED = 0.8  # part of the blocks that each committee member learns from
HELD_NEW = 0.2  # part of the labels that are new to a potential that may be held out


def family_blocks(labels: Sequence[Label]) -> list[str]:
    """Name the blocks of labels that belong together: families, the dominant ones cut into runs of their own order.

    The frames of a simulation share a family; undivided, most of a data set could be held out, or be hidden from a
    committee member. Neighbouring frames are the most alike, so runs of them stay together.

    Parameters
    ----------
    labels
        The labels.

    Returns
    -------
    list
        The name of each label's block; labels that come later do not change it, unless their family becomes dominant.
    """
    largest = max(BLOCK_SIZE, BLOCK_PART * len(labels))
    sizes = Counter(label.family for label in labels)
    seen: Counter[str] = Counter()
    names = []
    for label in labels:
        run = seen[label.family] // BLOCK_SIZE if sizes[label.family] > largest else 0
        seen[label.family] += 1
        names.append(f"{label.family}:{run}")
    return names


def split_families(
    labels: Sequence[Label], fraction: float, rng: np.random.Generator, learned: Collection[int] = ()
) -> tuple[list[int], list[int]]:
    """Divide labels into a training and a held-out part, whole blocks of a family at a time.

    Parameters
    ----------
    labels
        The labels.
    fraction
        Part to hold out; twice as much of few labels, as long as those do not suffice to calibrate the spreads.
    rng
        Decides which blocks.
    learned
        Digests of the labels that the potential has learned already: they would not tell its errors, so only others
        are held out, and at most a fifth of those.

    Returns
    -------
    tuple
        Numbers of the training and of the held-out labels; fewer than eight labels are all learned.
    """
    new = np.array([label.digest not in learned for label in labels])
    some = max(fraction * len(labels), min(FEWEST_TO_CALIBRATE, 2 * fraction * len(labels)))
    wanted = round(min(some, HELD_NEW * new.sum()))
    if wanted == 0 or len(labels) < 8:
        return list(range(len(labels))), []
    _, blocks = np.unique(family_blocks(labels), return_inverse=True)
    held = np.zeros(len(labels), dtype=bool)
    order = rng.permutation(blocks.max() + 1)
    straddling = np.bincount(blocks, ~new)[order] > 0  # relatives of what was learned come last: they tell less
    for block in order[np.argsort(straddling, kind="stable")]:
        chosen = (blocks == block) & new
        first = not held.any() and new.all()  # one block at least, but never most of what is new to a warm start
        if first or held.sum() + chosen.sum() <= wanted:
            held |= chosen
    return np.flatnonzero(~held).tolist(), np.flatnonzero(held).tolist()


def unlearned(labels: Sequence[Label], learned: Collection[int], elements: Collection[str] | None = None) -> list[int]:
    """Find the labels that are new to a potential.

    Parameters
    ----------
    labels
        The labels.
    learned
        Digests of the labels that the potential has learned; if none, nobody knows which are new.
    elements
        Only labels of these; None: of any.

    Returns
    -------
    list
        Their numbers.
    """
    new = [number for number, label in enumerate(labels) if learned and label.digest not in learned]
    return [n for n in new if elements is None or set(labels[n].atoms.get_chemical_symbols()) <= set(elements)]


def ownership(labels: Sequence[Label], n_members: int) -> np.ndarray:
    """Say which labels each committee member learns from: four fifths of the blocks.

    It follows from the blocks' names alone, so that a member that did not learn a label does not learn it in a later
    training either: else the members would forget to differ.

    Parameters
    ----------
    labels
        The labels.
    n_members
        Size of the committee.

    Returns
    -------
    numpy.ndarray
        Booleans, shape (n_labels, n_members); every label has an owner, and every member a label.
    """
    names = family_blocks(labels)
    draws = {name: np.random.default_rng(_number(name)).random(n_members) for name in set(names)}
    owners = np.array([draws[name] for name in names]) < OWNED
    owners[owners.sum(1) == 0] = True
    owners[:, owners.sum(0) == 0] = True
    return owners


def _number(name: str) -> int:
    """Turn a name into a number that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
