"""Choose the structures that go to first principles, each with its reason."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from csp.candidates import Candidates
from csp.config import AdvanceConfig, SelectConfig
from csp.errors import ConfigError, DataError
from csp.fingerprint import distances, farthest_points
from csp.flags import Flag
from csp.hull import formula_of

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Reason(StrEnum):
    """Why a structure goes to first principles."""

    INITIAL = "initial"
    STABLE = "stable"
    UNCERTAIN = "uncertain"
    UNSAFE = "unsafe"
    DIVERSE = "diverse"
    FINAL = "final"


# What one reason cannot fill goes to the others in this order.
FLOW = (Reason.STABLE, Reason.UNCERTAIN, Reason.DIVERSE, Reason.UNSAFE)
CHUNK = 512  # fingerprints compared with all others at a time
GAP_DIGITS = 9  # distances that agree to so many digits are equal: arithmetic depends on the order of the input


@dataclass(frozen=True)
class Choice:
    """One structure to label.

    Parameters
    ----------
    index
        Which candidate.
    reason
        Why.
    """

    index: int
    reason: Reason


def quotas(settings: SelectConfig, n: int) -> dict[Reason, int]:
    """Divide labels over the reasons by their weights.

    Parameters
    ----------
    settings
        The weights.
    n
        Labels to divide.

    Returns
    -------
    dict[Reason, int]
        Whole numbers whose sum is exactly ``n``; the largest remainders are rounded up.
    """
    weights = {reason: float(getattr(settings, reason.value)) for reason in FLOW}
    shares = {reason: n * weight / sum(weights.values()) for reason, weight in weights.items()}
    whole = {reason: int(share) for reason, share in shares.items()}
    order = sorted(FLOW, key=lambda reason: whole[reason] - shares[reason])
    for reason in order[: n - sum(whole.values())]:
        whole[reason] += 1
    return whole


def choose(
    candidates: Candidates, settings: SelectConfig, rng: np.random.Generator, n: int | None = None
) -> list[Choice]:
    """Choose what to label next.

    Every reason has a quota. *Stable*: the lowest first by an optimistic height, the distance from the hull less
    ``optimism`` standard deviations of the committee, so that what the model cannot place is looked at rather than
    forgotten; at most ``per_composition`` of one reduced formula, and each one taken makes its next one wait.
    *Uncertain*: largest spread of the committee first, above a quantile of this generation's spreads. *Unsafe*: every
    flag in turn, structures far from all that was chosen. *Diverse*: within the window, far from all that was chosen
    or labelled. What one reason cannot fill goes to the others in the order of ``FLOW``.

    Parameters
    ----------
    candidates
        Distinct sound crystals and unsafe structures.
    settings
        Quotas, window, tolerances.
    rng
        Source of chance for the first of the diverse, where nothing is chosen yet.
    n
        Labels to spend; None for ``settings.n_labels``.

    Returns
    -------
    list[Choice]
        At most ``n``, and exactly ``n`` as long as there are so many. Nothing labelled, nothing twice, no two
        structures that are (nearly) the same. Does not depend on the order of the candidates.
    """
    wanted = settings.n_labels if n is None else n
    chooser = _Chooser(candidates, settings, rng)
    turns = quotas(settings, wanted)
    for reason in (Reason.STABLE, Reason.UNCERTAIN, Reason.UNSAFE, Reason.DIVERSE):
        chooser.fill(reason, turns[reason])
    for reason in FLOW:
        chooser.fill(reason, wanted - len(chooser.chosen))
    return chooser.chosen


class _Chooser:
    """The choice while it grows."""

    def __init__(self, candidates: Candidates, settings: SelectConfig, rng: np.random.Generator) -> None:
        self.all = candidates
        self.settings = settings
        self.chosen: list[Choice] = []
        self.rank = _canonical_rank(candidates)
        self.codes = np.unique(np.array(candidates.formulas, dtype=str), return_inverse=True)[1]
        self.inside = candidates.sound & (np.where(candidates.sound, candidates.e_above_hull, np.inf)
                                          <= settings.window_ev)  # fmt: skip
        self.free = ~np.asarray(candidates.labelled, dtype=bool)
        self.gaps = np.full(len(candidates), np.inf)  # fingerprint distance to all that is chosen or labelled
        self._see(np.flatnonzero(~self.free))
        self.start = float(rng.random())
        orders: dict[Reason, Callable[[], Iterator[int]]] = {
            Reason.STABLE: self._stable,
            Reason.UNCERTAIN: self._uncertain,
            Reason.UNSAFE: self._unsafe,
            Reason.DIVERSE: self._diverse,
        }
        self.orders = {reason: order() for reason, order in orders.items()}

    def fill(self, reason: Reason, n: int) -> None:
        """Choose ``n`` more for a reason, or as many as there are."""
        for _ in range(n):
            index = next(self.orders[reason], None)
            if index is None:
                return
            self.chosen.append(Choice(index, reason))
            self._exclude_like(index)
            self._see(np.array([index]))

    def _exclude_like(self, index: int) -> None:
        """Take a structure and all that are nearly the same out of the choice."""
        pool = self.all
        alike = distances(pool.fingerprints[index : index + 1], pool.fingerprints)[0] <= self.settings.same_distance
        alike &= np.abs(pool.volumes / pool.volumes[index] - 1) <= self.settings.label_volume
        alike &= self.codes == self.codes[index]
        alike[index] = True
        self.free &= ~alike

    def _see(self, indices: NDArray[np.int64]) -> None:
        """Note the distances of all candidates from some more."""
        prints = self.all.fingerprints
        for start in range(0, len(indices), CHUNK):
            seen = distances(prints, prints[indices[start : start + CHUNK]])
            self.gaps = np.minimum(self.gaps, seen.min(axis=1))

    def _ranked(self, indices: NDArray[np.int64], key: Floats) -> list[int]:
        return sorted((int(i) for i in indices), key=lambda i: (float(key[i]), int(self.rank[i])))

    def _stable(self) -> Iterator[int]:
        """Take the lowest optimistic heights; each pick of a formula makes its next one wait by a typical benefit."""
        inside = self.inside & self.free
        if not inside.any():
            return
        spread = np.where(self.inside, self.all.spread, 0.0)
        heights = np.where(self.inside, self.all.e_above_hull, np.inf) - self.settings.optimism * spread
        wait = max(1.0, self.settings.optimism) * float(np.median(spread[inside]))
        stacks: dict[str, list[int]] = defaultdict(list)
        for i in self._ranked(np.flatnonzero(inside), heights):
            stacks[self.all.formulas[i]].append(i)
        for formula in stacks:
            stacks[formula] = stacks[formula][::-1]
        taken: Counter[str] = Counter()
        while True:
            for stack in stacks.values():
                while stack and not self.free[stack[-1]]:
                    stack.pop()
            heads = [
                (float(heights[stack[-1]]) + wait * taken[formula], int(self.rank[stack[-1]]), formula)
                for formula, stack in stacks.items()
                if stack and taken[formula] < self.settings.per_composition
            ]
            if not heads:
                return
            formula = min(heads)[2]
            taken[formula] += 1
            yield stacks[formula].pop()

    def _uncertain(self) -> Iterator[int]:
        spread = self.all.spread
        if not self.inside.any():
            return
        threshold = np.quantile(spread[self.inside], self.settings.uncertain_quantile)
        above = self.inside & self.free & (np.where(self.inside, spread, 0.0) > threshold)
        for i in self._ranked(np.flatnonzero(above), -spread):
            if self.free[i]:
                yield i

    def _unsafe(self) -> Iterator[int]:
        turns: Counter[Flag] = Counter()
        while True:
            open_flags = {flag for i in np.flatnonzero(self.free) for flag in self.all.flags[int(i)]}
            if not open_flags:
                return
            turn = min(open_flags, key=lambda flag: (turns[flag], list(Flag).index(flag)))
            i = self._farthest(np.array([turn in found for found in self.all.flags]) & self.free)
            turns.update(self.all.flags[i])
            yield i

    def _diverse(self) -> Iterator[int]:
        while (self.inside & self.free).any():
            yield self._farthest(self.inside & self.free)

    def _farthest(self, where: Bools) -> int:
        """Give the structure farthest from all that is chosen; any one, by chance, if nothing is."""
        options = np.flatnonzero(where)
        options = options[np.argsort(self.rank[options])]
        if not np.isfinite(self.gaps).any():
            return int(options[int(self.start * len(options))])
        return int(options[np.argmax(np.round(self.gaps[options], GAP_DIGITS))])


def choose_initial(
    frames: Sequence[Atoms],
    fingerprints: Floats,
    elements: Sequence[str],
    settings: SelectConfig,
    rng: np.random.Generator,
    n: int,
) -> list[Choice]:
    """Choose the first labels from unrelaxed random crystals: balanced over compositions, diverse within each.

    Parameters
    ----------
    frames
        Random crystals.
    fingerprints
        Shape (n_frames, d).
    elements
        Chemical symbols of the system; each gets ``settings.end_members`` pure crystals, as far as there are.
    settings
        ``end_members`` and tolerances.
    rng
        Source of chance.
    n
        Labels to spend.

    Returns
    -------
    list[Choice]
        ``n`` choices, or all different crystals if there are fewer; pure elements first.

    Raises
    ------
    DataError
        If lengths differ, or there is no crystal of an element.
    ConfigError
        If there are fewer labels than elements.
    """
    if len(frames) != len(fingerprints):
        raise DataError(f"initial choice: expected {len(frames)} fingerprints, got {len(fingerprints)}")
    if n < len(elements):
        raise ConfigError(
            f"generate.n_initial: expected at least one label for each of {len(elements)} elements, got {n}"
        )
    stacks = _diverse_stacks(frames, fingerprints, settings, rng)
    missing = [symbol for symbol in elements if symbol not in stacks]
    if missing:
        raise DataError(f"initial choice: no random crystal of the end member{'s' if len(missing) > 1 else ''} "
                        f"{', '.join(missing)}")  # fmt: skip
    least = min(settings.end_members, n // len(elements))
    picked = [i for symbol in elements for i in stacks[symbol][:least]]
    taken = Counter({symbol: min(least, len(stacks[symbol])) for symbol in elements})
    order = [sorted(stacks)[k] for k in rng.permutation(len(stacks))]
    while len(picked) < n:
        open_ones = [formula for formula in order if taken[formula] < len(stacks[formula])]
        if not open_ones:
            break
        formula = min(open_ones, key=lambda name: taken[name])
        picked.append(stacks[formula][taken[formula]])
        taken[formula] += 1
    return [Choice(i, Reason.INITIAL) for i in picked]


def choose_final(
    e_above_hull: Sequence[float] | Floats, formulas: Sequence[str], settings: AdvanceConfig
) -> list[Choice]:
    """Choose the phases that first principles relax at the end: the best of every formula before second ones.

    Parameters
    ----------
    e_above_hull
        Best distance known of each phase, shape (n,), eV/atom.
    formulas
        Reduced formula of each phase.
    settings
        ``final_window_ev`` and ``final_max``.

    Returns
    -------
    list[Choice]
        In the order of their places within their formula, nearest to the hull first.

    Raises
    ------
    DataError
        If the lengths differ.
    """
    heights = np.asarray(e_above_hull, dtype=np.float64)
    if heights.shape != (len(formulas),):
        raise DataError(f"final choice: expected one formula per height, got {len(formulas)} for {heights.shape}")
    place: Counter[str] = Counter()
    ranked: list[tuple[int, float, int]] = []
    for i in (int(k) for k in np.argsort(heights, kind="stable") if heights[k] <= settings.final_window_ev):
        ranked.append((place[formulas[i]], float(heights[i]), i))
        place[formulas[i]] += 1
    return [Choice(i, Reason.FINAL) for _, _, i in sorted(ranked)[: settings.final_max]]


def _canonical_rank(candidates: Candidates) -> NDArray[np.int64]:
    """Give each candidate a place that does not depend on the order of the input."""
    order = sorted(
        range(len(candidates)),
        key=lambda i: (candidates.formulas[i], float(candidates.volumes[i]), candidates.fingerprints[i].tobytes()),
    )
    rank = np.empty(len(candidates), dtype=np.int64)
    rank[order] = np.arange(len(candidates))
    return rank


def _diverse_stacks(
    frames: Sequence[Atoms], fingerprints: Floats, settings: SelectConfig, rng: np.random.Generator
) -> dict[str, list[int]]:
    """Sort different crystals by reduced formula, each stack by farthest points from a random first one."""
    volumes = np.array([atoms.cell.volume / len(atoms) for atoms in frames])
    stacks: dict[str, list[int]] = defaultdict(list)
    for i, atoms in enumerate(frames):
        stacks[formula_of(atoms)].append(i)
    ordered: dict[str, list[int]] = {}
    for formula in sorted(stacks):
        stack = sorted(stacks[formula], key=lambda i: (float(volumes[i]), fingerprints[i].tobytes()))
        kept: list[int] = ordered.setdefault(formula, [])
        for place in farthest_points(fingerprints[stack], len(stack), int(rng.integers(len(stack)))):
            i = stack[place]
            alike = distances(fingerprints[i : i + 1], fingerprints[kept])[0] <= settings.same_distance
            if not (alike & (np.abs(volumes[kept] / volumes[i] - 1) <= settings.label_volume)).any():
                kept.append(i)
    return ordered
