"""Filling a cell's atom counts with Wyckoff positions: exact feasibility by memoised search, fair random choice."""

from functools import lru_cache
from itertools import product

import numpy as np

from csp.generate.wyckoff import space_group

MAX_MEMO = 200_000  # remembered answers per group: some tens of megabytes

Stock = tuple[int, ...]


class Filler:
    """The ways in which one space group can hold a list of atom counts.

    Positions without freedom can be used once; all with the same multiplicity are one class of the ``stock``.
    """

    def __init__(self, number: int) -> None:
        positions = space_group(number).positions
        self.positions = positions
        self.fixed: dict[int, list[int]] = {}
        for index, position in enumerate(positions):
            if position.freedom == 0:
                self.fixed.setdefault(position.multiplicity, []).append(index)
        self.sizes = tuple(sorted(self.fixed))
        self.free = tuple(i for i, position in enumerate(positions) if position.freedom)
        self.free_sizes = tuple(sorted({positions[i].multiplicity for i in self.free}))
        self.stock: Stock = tuple(len(self.fixed[size]) for size in self.sizes)
        self._memo: dict[tuple[tuple[int, ...], Stock], bool] = {}
        self._reach: list[bool] = [True]
        self._uses: dict[tuple[int, Stock], list[Stock]] = {}

    def possible(self, counts: tuple[int, ...]) -> bool:
        """Tell whether the group can hold these atoms.

        Parameters
        ----------
        counts
            Atoms of each element in the primitive cell.

        Returns
        -------
        bool
            Exact: every use of the positions without freedom is considered.
        """
        if len(self._memo) > MAX_MEMO:
            self._memo.clear()
            self._uses.clear()
        return self._possible(tuple(sorted(counts)), self.stock)

    def _possible(self, counts: tuple[int, ...], stock: Stock) -> bool:
        while counts and counts[0] == 0:
            counts = counts[1:]
        if not counts:
            return True
        key = (counts, stock)
        known = self._memo.get(key)
        if known is None:
            known = any(self._possible(counts[1:], left) for left in self._leftovers(counts[0], stock))
            self._memo[key] = known
        return known

    def _leftovers(self, count: int, stock: Stock) -> list[Stock]:
        """List the stocks that can remain after one element has been placed."""
        key = (count, stock)
        if key not in self._uses:
            ranges = [range(min(n, count // size) + 1) for n, size in zip(stock, self.sizes, strict=True)]
            self._uses[key] = [
                tuple(n - u for n, u in zip(stock, use, strict=True))
                for use in product(*ranges)
                if self._fillable(count - sum(u * size for u, size in zip(use, self.sizes, strict=True)))
            ]
        return self._uses[key]

    def _fillable(self, count: int) -> bool:
        """Tell whether positions with freedom alone can hold so many atoms of one element."""
        if count < 0:
            return False
        for n in range(len(self._reach), count + 1):
            self._reach.append(any(size <= n and self._reach[n - size] for size in self.free_sizes))
        return self._reach[count]

    def draw(self, counts: tuple[int, ...], rng: np.random.Generator) -> list[tuple[int, int]] | None:
        """Place every atom.

        The next position is drawn from those that leave the rest possible, so no draw is ever wasted, with weights
        equal to multiplicities: crystals of few orbits, as nature prefers them, come more often.

        Parameters
        ----------
        counts
            Atoms of each element in the primitive cell.
        rng
            Source of chance.

        Returns
        -------
        list[tuple[int, int]] | None
            (element's index, position's index) for each orbit, or None where it is impossible.
        """
        if not self.possible(counts):
            return None
        left, stock = list(counts), list(self.stock)
        open_fixed = {size: list(indices) for size, indices in self.fixed.items()}
        chosen: list[tuple[int, int]] = []
        chances = iter(rng.random(2 * sum(counts)).tolist())
        for kind in sorted(range(len(counts)), key=lambda i: (counts[i], i)):
            while left[kind]:
                options = self._options(kind, left, stock)
                if not options:
                    return None
                size, index = _pick(options, next(chances))
                if index is None:
                    place = stock[self.sizes.index(size)]
                    stock[self.sizes.index(size)] -= 1
                    index = open_fixed[size].pop(int(next(chances) * place))
                left[kind] -= size
                chosen.append((kind, index))
        return chosen

    def _options(self, kind: int, left: list[int], stock: list[int]) -> list[tuple[float, int, int | None]]:
        """List (weight, multiplicity, position) of the next orbit of an element; None is any fixed position."""
        options: list[tuple[float, int, int | None]] = []
        count = left[kind]
        fits: dict[int, bool] = {}
        for index in self.free:
            size = self.positions[index].multiplicity
            if size > count:
                continue
            if size not in fits:
                left[kind] = count - size
                fits[size] = self._possible(tuple(sorted(left)), tuple(stock))
            if fits[size]:
                options.append((float(size), size, index))
        for place, size in enumerate(self.sizes):
            if size > count or not stock[place]:
                continue
            left[kind] = count - size
            stock[place] -= 1
            if self._possible(tuple(sorted(left)), tuple(stock)):
                options.append(((stock[place] + 1.0) * size, size, None))
            stock[place] += 1
        left[kind] = count
        return options


def _pick(options: list[tuple[float, int, int | None]], chance: float) -> tuple[int, int | None]:
    """Pick an option by its weight, chance being even in [0, 1)."""
    aim = chance * sum(option[0] for option in options)
    for weight, size, index in options:
        aim -= weight
        if aim < 0:
            return size, index
    return options[-1][1:]


@lru_cache(maxsize=256)
def filler(number: int) -> Filler:
    """Give the filler of a space group, made once."""
    return Filler(number)
