"""The plan over compositions and cell sizes: fair at first, then more where the hull is near or undecided."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from math import gcd

import numpy as np
from numpy.typing import NDArray
from pymatgen.core.composition import Composition

from csp.config import GenerateConfig
from csp.draw import even_draw
from csp.elements import element, oxidation_states
from csp.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_TABLE = 2_000_000  # compositions listed at most; larger systems need element_ranges or fewer atoms
NEAR = 0.1  # eV/atom above the hull over which interest in a composition fades
FLOOR = 0.05  # share of interest that even a hopeless composition keeps
TRIED = 50  # attempts after which a composition counts as half explored


def plan_compositions(
    elements: Sequence[str],
    settings: GenerateConfig,
    rng: np.random.Generator,
    n: int,
    *,
    attempts: Mapping[str, int] | None = None,
    hull_distances: Mapping[str, float] | None = None,
    possible: Callable[[Mapping[str, int]], bool] | None = None,
) -> list[dict[str, int]]:
    """Choose the contents of ``n`` primitive cells.

    Parameters
    ----------
    elements
        Chemical symbols of the system.
    settings
        Compositions, formula units, atoms, ranges, charge balance.
    rng
        Source of chance.
    n
        Cells wanted.
    attempts
        Crystals already tried, by reduced formula (alphabetical, as ``reduced_formula`` writes it).
    hull_distances
        Least enthalpy above the hull that is still possible by reduced formula, eV/atom: what was seen less its
        uncertainty, so that undecided compositions count as near.
    possible
        Tells whether a cell can be made; the number of formula units is drawn from those for which it can, if any.

    Returns
    -------
    list[dict[str, int]]
        Atoms by element of each cell, absent elements left out, in the order of ``elements``.

    Raises
    ------
    ConfigError
        If no composition meets the settings.

    Notes
    -----
    Without results every number of elements k gets a share proportional to k (end members included). In it the weight
    of a reduced formula falls with its size to the power k - 1, as fast as the number of formulae rises, so that all
    sizes get about the same: there are hundreds of ternary formulae of 60 atoms and one of three. Results then multiply
    the weight of a formula by how near the hull it may be, with a floor, and divide it by how often it was tried. A
    formula without a result is as interesting as one on the hull. Results are known by reduced formula, so they say
    nothing of cell sizes: the numbers of formula units that fit are drawn evenly, always.
    """
    symbols = tuple(dict.fromkeys(elements))
    for symbol in symbols:
        element(symbol)
    formulae = _listed(symbols, settings) if settings.compositions is not None else _varied(symbols, settings)
    weights = _weights(formulae, symbols, attempts or {}, hull_distances or {}, fixed=settings.compositions is not None)
    picks = even_draw(weights, rng, n)
    units = rng.random(n)
    plan: list[dict[str, int]] = []
    for pick, chance in zip(picks, units, strict=True):
        unit = formulae[pick]
        cells = _cells(unit.tolist(), symbols, settings)
        cells = [cell for cell in cells if possible(cell)] or cells if possible else cells
        plan.append(cells[int(chance * len(cells))])
    return plan


def listed_cells(elements: Sequence[str], settings: GenerateConfig) -> dict[str, list[dict[str, int]]]:
    """List the cells of the formulae that the user lists.

    Parameters
    ----------
    elements
        Chemical symbols of the system.
    settings
        Compositions, formula units, atoms.

    Returns
    -------
    dict[str, list[dict[str, int]]]
        Atoms by element of every cell that the numbers of atoms and formula units allow, by formula as the user wrote
        it; empty where compositions vary.

    Raises
    ------
    ConfigError
        If a formula can never be met.
    """
    formulae = settings.compositions or ()
    symbols = tuple(dict.fromkeys(elements))
    rows = _listed(symbols, settings).tolist()
    return {formula: _cells(row, symbols, settings) for formula, row in zip(formulae, rows, strict=True)}


def _cells(unit: Sequence[int], symbols: tuple[str, ...], settings: GenerateConfig) -> list[dict[str, int]]:
    """List the cells of whole formula units that fit, absent elements left out."""
    present = {symbol: count for symbol, count in zip(symbols, unit, strict=True) if count}
    return [{symbol: n * count for symbol, count in present.items()} for n in _sizes(sum(unit), settings)]


def _sizes(unit: int, settings: GenerateConfig) -> range:
    """Give the numbers of formula units of so many atoms that fit the cell."""
    low = max(settings.formula_units[0], -(-settings.atoms[0] // unit))
    high = min(settings.formula_units[1], settings.atoms[1] // unit)
    return range(low, high + 1)


def _listed(symbols: tuple[str, ...], settings: GenerateConfig) -> Ints:
    """Read the user's formulae, shape (n, n_elements); each has to meet all the settings."""
    _check_ranges(symbols, settings)
    rows: list[list[int]] = []
    for formula in settings.compositions or ():
        rows.append(_read_formula(formula, symbols))
        unit = sum(rows[-1])
        if not _sizes(unit, settings):
            raise ConfigError(
                f"generate.compositions: {formula} has {unit} atoms per formula unit; no number of formula units from "
                f"{settings.formula_units[0]} to {settings.formula_units[1]} gives {settings.atoms[0]} to "
                f"{settings.atoms[1]} atoms (generate.formula_units, generate.atoms)"
            )
        for symbol, (least, most) in settings.element_ranges.items():
            share = rows[-1][symbols.index(symbol)] / unit
            if not least - 1e-9 <= share <= most + 1e-9:
                raise ConfigError(
                    f"generate.compositions: {formula} is {share:.3g} {symbol}, outside generate.element_ranges "
                    f"({least:g} to {most:g}); widen the range or leave the formula out"
                )
        if settings.charge_balanced and not charge_balanced(np.array(rows[-1:]), symbols)[0]:
            raise ConfigError(
                f"generate.compositions: no common oxidation states balance {formula}; leave it out or set "
                "generate.charge_balanced to false"
            )
    return np.array(rows, dtype=np.int64)


def _read_formula(formula: str, symbols: tuple[str, ...]) -> list[int]:
    """Read a formula with whole numbers of the system's elements."""
    try:
        amounts = Composition(formula).get_el_amt_dict()
    except ValueError as error:
        raise ConfigError(f"generate.compositions: expected a formula such as MgH2, got {formula!r}") from error
    foreign = sorted(set(amounts) - set(symbols))
    if foreign:
        raise ConfigError(
            f"generate.compositions: {formula} contains {', '.join(foreign)}, which is not in {'-'.join(symbols)}"
        )
    counts = [amounts.get(symbol, 0.0) for symbol in symbols]
    if any(count != round(count) for count in counts) or not sum(counts):
        raise ConfigError(f"generate.compositions: expected whole numbers of atoms, got {formula}")
    return [round(count) for count in counts]


def _varied(symbols: tuple[str, ...], settings: GenerateConfig) -> Ints:
    """List every reduced formula of the system that the settings allow, shape (n, n_elements)."""
    _check_ranges(symbols, settings)
    formulae = reduced_compositions(len(symbols), settings.atoms[1])
    total = formulae.sum(axis=1)
    low = np.maximum(settings.formula_units[0], -(-settings.atoms[0] // total))
    high = np.minimum(settings.formula_units[1], settings.atoms[1] // total)
    formulae = formulae[low <= high]
    fractions = formulae / formulae.sum(axis=1, keepdims=True)
    for symbol, (least, most) in settings.element_ranges.items():
        column = symbols.index(symbol)
        kept = (fractions[:, column] >= least - 1e-9) & (fractions[:, column] <= most + 1e-9)
        formulae, fractions = formulae[kept], fractions[kept]
    if settings.charge_balanced:
        formulae = formulae[charge_balanced(formulae, symbols)]
    if not len(formulae):
        raise ConfigError(
            f"generate: no composition of {'-'.join(symbols)} has {settings.atoms[0]} to {settings.atoms[1]} atoms, "
            f"{settings.formula_units[0]} to {settings.formula_units[1]} formula units"
            f"{', balanced charges' if settings.charge_balanced else ''} and fractions within element_ranges "
            f"{settings.element_ranges}; widen one of atoms, formula_units, element_ranges, charge_balanced"
        )
    present = formulae > 0
    order = np.lexsort((formulae.sum(axis=1), present @ (1 << np.arange(len(symbols))), present.sum(axis=1)))
    return np.asarray(formulae[order], dtype=np.int64)  # subsystems together, so that each gets its exact share


def _check_ranges(symbols: tuple[str, ...], settings: GenerateConfig) -> None:
    """Refuse ranges of elements that the system has not."""
    strange = sorted(set(settings.element_ranges) - set(symbols))
    if strange:
        raise ConfigError(
            f"generate.element_ranges: expected elements of {'-'.join(symbols)}, got {', '.join(strange)}"
        )


@lru_cache(maxsize=8)
def reduced_compositions(n_elements: int, max_atoms: int) -> Ints:
    """List all compositions whose counts have no common divisor.

    Parameters
    ----------
    n_elements
        Elements of the system.
    max_atoms
        Most atoms of a reduced formula.

    Returns
    -------
    Ints
        (n, n_elements) counts, end members included.

    Raises
    ------
    ConfigError
        If there would be more than two million of them.
    """
    rows = np.zeros((1, 0), dtype=np.int64)
    for _ in range(n_elements):
        used = rows.sum(axis=1)
        room = max_atoms - used + 1
        if room.sum() > MAX_TABLE:
            raise ConfigError(
                f"generate.atoms: {n_elements} elements and up to {max_atoms} atoms give more than {MAX_TABLE} "
                "compositions; lower generate.atoms or list generate.compositions"
            )
        last = np.arange(room.sum()) - np.repeat(np.cumsum(room) - room, room)
        rows = np.column_stack([np.repeat(rows, room, axis=0), last])
    coprime = np.gcd.reduce(rows, axis=1) == 1
    return np.asarray(rows[coprime], dtype=np.int64)


def charge_balanced(formulae: Ints, symbols: Sequence[str]) -> NDArray[np.bool_]:
    """Tell which compositions common oxidation states can balance.

    Parameters
    ----------
    formulae
        (n, n_elements) counts.
    symbols
        The elements.

    Returns
    -------
    NDArray[np.bool_]
        (n,); elements by themselves count as balanced.
    """
    fine: NDArray[np.bool_] = (formulae > 0).sum(axis=1) == 1
    for states in product(*(oxidation_states(symbol) or (0,) for symbol in symbols)):
        fine |= formulae @ np.array(states) == 0
    return fine


def _weights(
    formulae: Ints,
    symbols: tuple[str, ...],
    attempts: Mapping[str, int],
    hull_distances: Mapping[str, float],
    *,
    fixed: bool,
) -> Floats:
    """Weigh formulae by fairness and by what was seen so far, shape (n,), sum 1."""
    order = (formulae > 0).sum(axis=1)
    weights = np.ones(len(formulae)) if fixed else formulae.sum(axis=1) ** (1.0 - order)
    if not fixed:
        for k in range(1, len(symbols) + 1):
            members = order == k
            if members.any():
                weights[members] *= k / weights[members].sum()
    known = set(attempts) | set(hull_distances)
    if known:
        place = {tuple(row): i for i, row in enumerate(_coprime(formulae))}
        for formula in known:
            row = _row(formula, symbols)
            index = place.get(row)
            if index is None:
                continue
            distance = hull_distances.get(formula)
            interest = 1.0 if distance is None else FLOOR + np.exp(-max(distance, 0.0) / NEAR)
            weights[index] *= interest / (1.0 + attempts.get(formula, 0) / TRIED)
    normalised: Floats = weights / weights.sum()
    return normalised


def _row(formula: str, symbols: tuple[str, ...]) -> tuple[int, ...]:
    """Turn a formula into reduced counts in the order of the elements."""
    amounts = Composition(formula).get_el_amt_dict()
    return _reduced([round(amounts.get(symbol, 0.0)) for symbol in symbols])


class CompositionRule:
    """Tells which cells the settings allow.

    Parameters
    ----------
    elements
        Chemical symbols of the system.
    settings
        Compositions, formula units, atoms, ranges, charge balance.

    Raises
    ------
    ConfigError
        If a listed composition or a range can never be met.
    """

    def __init__(self, elements: Sequence[str], settings: GenerateConfig) -> None:
        self.symbols = tuple(dict.fromkeys(elements))
        self.settings = settings
        _check_ranges(self.symbols, settings)
        self.listed: dict[tuple[int, ...], list[int]] | None = None
        if settings.compositions is not None:
            self.listed = {}
            for row in _listed(self.symbols, settings).tolist():
                self.listed.setdefault(_reduced(row), []).append(gcd(*row))
        self._known: dict[tuple[int, ...], str] = {}

    def objection(self, counts: Mapping[str, int]) -> str:
        """Tell why a cell may not be made.

        Parameters
        ----------
        counts
            Atoms by element.

        Returns
        -------
        str
            ``atoms`` or ``formula_units`` where there are too few or too many, ``composition`` where it is not listed,
            out of range or unbalanced; "" where the cell is allowed.
        """
        if not set(counts) <= set(self.symbols):
            return "composition"
        row = tuple(counts.get(symbol, 0) for symbol in self.symbols)
        if row not in self._known:
            self._known[row] = self._objection(row)
        return self._known[row]

    def _objection(self, row: tuple[int, ...]) -> str:
        least, most = self.settings.atoms
        if not least <= sum(row) <= most:
            return "atoms"
        reduced = _reduced(row)
        if not self._in_range(reduced):
            return "composition"
        least, most = self.settings.formula_units
        units = [1] if self.listed is None else self.listed[reduced]  # a listed formula may be a multiple: Mg2O2
        fits = (gcd(*row) % unit == 0 and least <= gcd(*row) // unit <= most for unit in units)
        return "" if any(fits) else "formula_units"

    def _in_range(self, reduced: tuple[int, ...]) -> bool:
        if self.listed is not None:
            return reduced in self.listed
        fractions = np.array(reduced) / sum(reduced)
        for symbol, (least, most) in self.settings.element_ranges.items():
            if not least - 1e-9 <= fractions[self.symbols.index(symbol)] <= most + 1e-9:
                return False
        return not self.settings.charge_balanced or bool(charge_balanced(np.array([reduced]), self.symbols)[0])


def _coprime(rows: Ints) -> list[list[int]]:
    """Divide each row of counts by its common divisor."""
    reduced: list[list[int]] = (rows // np.gcd.reduce(rows, axis=1)[:, None]).tolist()
    return reduced


def _reduced(row: Sequence[int]) -> tuple[int, ...]:
    """Divide counts by their common divisor."""
    divisor = gcd(*row) or 1
    return tuple(count // divisor for count in row)
