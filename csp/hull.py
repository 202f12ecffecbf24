"""The convex hull of the enthalpies at the pressure of the search: who is stable, and how far the others are above."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Self, cast

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core.composition import Composition

from csp.errors import DataError
from csp.knowledge import reduced_formula

Floats = NDArray[np.float64]

FRACTION_DIGITS = 9  # compositions that agree to so many digits are one composition
SINGULAR = 1e-12  # determinant below which a facet has no area


@dataclass(frozen=True)
class Hull:
    """The lower convex hull of enthalpy over composition.

    Parameters
    ----------
    elements
        Chemical symbols, in the order of the columns of ``facets``.
    members
        Which of the given entries are stable: indices in ascending order.
    facets
        Compositions of the corners of each facet, shape (n_facets, n_elements, n_elements), atomic fractions.
    enthalpies
        Enthalpies of the corners of each facet, shape (n_facets, n_elements), eV/atom.
    """

    elements: tuple[str, ...]
    members: tuple[int, ...]
    facets: Floats
    enthalpies: Floats

    @classmethod
    def from_entries(cls, formulas: Sequence[str], enthalpies_per_atom: Sequence[float] | Floats) -> Self:
        """Build the hull; only the lowest entry of each composition can be a part of it.

        Parameters
        ----------
        formulas
            Formula of each entry, reduced or not.
        enthalpies_per_atom
            Enthalpy at the pressure of the search, shape (n_entries,), eV/atom.

        Returns
        -------
        Self
            The hull. Entries of equal enthalpy and composition count once, the first of them.

        Raises
        ------
        DataError
            If there are no entries, lengths differ, an enthalpy is not finite, or an element has no entry of its own.
        """
        enthalpies = np.asarray(enthalpies_per_atom, dtype=np.float64)
        _check_entries(formulas, enthalpies)
        elements = tuple(sorted({symbol for formula in set(formulas) for symbol in _amounts(formula)}))
        fractions = atomic_fractions(formulas, elements)
        lowest = _lowest_per_composition(fractions, enthalpies)
        _check_end_members(elements, fractions[lowest])
        entries = [
            PDEntry(Composition(formulas[i]), float(enthalpies[i]) * Composition(formulas[i]).num_atoms, name=str(i))
            for i in lowest
        ]
        diagram = PhaseDiagram(entries)
        usable = cast("list[PDEntry]", diagram.qhull_entries)
        stable = cast("set[PDEntry]", diagram.stable_entries)
        corners = np.array([[int(usable[k].name) for k in facet] for facet in diagram.facets])
        return cls(
            elements=elements,
            members=tuple(sorted(int(entry.name) for entry in stable)),
            facets=fractions[corners],
            enthalpies=enthalpies[corners],
        )

    @cached_property
    def _inverses(self) -> tuple[Floats, Floats]:
        """Inverse corner matrices of the facets that have an area, and the enthalpies of their corners."""
        sound = np.abs(np.linalg.det(self.facets)) > SINGULAR
        return np.linalg.inv(self.facets[sound]), self.enthalpies[sound]

    def at_fractions(self, fractions: Floats) -> Floats:
        """Give the enthalpy of the hull itself.

        Parameters
        ----------
        fractions
            Atomic fractions in the order of ``elements``, shape (n, n_elements).

        Returns
        -------
        Floats
            Shape (n,), eV/atom: of the best mixture of stable phases with these compositions.
        """
        rounded = np.round(fractions, FRACTION_DIGITS)
        _, first, back = np.unique(rounded, axis=0, return_index=True, return_inverse=True)
        inverses, enthalpies = self._inverses
        energies = np.empty(len(first))
        for i, point in enumerate(fractions[first]):
            shares = point @ inverses  # barycentric coordinates in each facet: all positive inside
            best = int(np.argmax(shares.min(axis=1)))
            energies[i] = shares[best] @ enthalpies[best]
        return energies[back.reshape(-1)]

    def at(self, formulas: Sequence[str]) -> Floats:
        """Give the enthalpy of the hull at some compositions.

        Parameters
        ----------
        formulas
            Formulas, reduced or not.

        Returns
        -------
        Floats
            Shape (n,), eV/atom.

        Raises
        ------
        DataError
            If a formula has an element that the hull does not know.
        """
        return self.at_fractions(atomic_fractions(formulas, self.elements))

    def e_above_many(self, formulas: Sequence[str], enthalpies_per_atom: Sequence[float] | Floats) -> Floats:
        """Give the distances of many candidates from the hull.

        Parameters
        ----------
        formulas
            Formula of each candidate, reduced or not.
        enthalpies_per_atom
            Shape (n,), eV/atom.

        Returns
        -------
        Floats
            Shape (n,), eV/atom; zero on the hull, negative for something below it that would be a new member.

        Raises
        ------
        DataError
            If lengths differ, or a formula has an element that the hull does not know.
        """
        enthalpies = np.asarray(enthalpies_per_atom, dtype=np.float64)
        if enthalpies.shape != (len(formulas),):
            raise DataError(f"hull: expected {len(formulas)} enthalpies, one per formula, got {enthalpies.shape}")
        return enthalpies - self.at(formulas)

    def e_above(self, formula: str, enthalpy_per_atom: float) -> float:
        """Give the distance of one candidate from the hull.

        Parameters
        ----------
        formula
            Formula, reduced or not.
        enthalpy_per_atom
            In eV/atom.

        Returns
        -------
        float
            In eV/atom; negative below the hull.
        """
        return float(self.e_above_many([formula], [enthalpy_per_atom])[0])


@dataclass(frozen=True)
class NearHull:
    """The phases near the hull.

    Parameters
    ----------
    members
        Identifiers of the phases on the hull, sorted.
    e_above
        Distance by identifier, eV/atom, of every phase within the window; members have zero.
    """

    members: tuple[str, ...]
    e_above: dict[str, float]


def near_hull(
    phase_ids: Sequence[str],
    formulas: Sequence[str],
    enthalpies_per_atom: Sequence[float] | Floats,
    window_ev: float,
) -> NearHull:
    """Say which phases are on or near the hull of their own enthalpies; a phase counts with its lowest one.

    Parameters
    ----------
    phase_ids
        Phase of each entry; several entries may belong to one phase.
    formulas
        Formula of each entry, reduced or not.
    enthalpies_per_atom
        Shape (n,), eV/atom.
    window_ev
        Largest distance from the hull, eV/atom.

    Returns
    -------
    NearHull
        The members and the distances within the window.

    Raises
    ------
    DataError
        If an end member is missing, or the lengths differ.
    """
    if len(phase_ids) != len(formulas):
        raise DataError(f"hull: expected one phase per formula, got {len(phase_ids)} phases, {len(formulas)} formulas")
    enthalpies = np.asarray(enthalpies_per_atom, dtype=np.float64)
    order = sorted(range(len(formulas)), key=lambda i: (float(enthalpies[i]), phase_ids[i]))
    names, plain, values = [phase_ids[i] for i in order], [formulas[i] for i in order], enthalpies[order]
    hull = Hull.from_entries(plain, values)
    distances = hull.e_above_many(plain, values)
    members = {names[i] for i in hull.members}
    e_above: dict[str, float] = {}
    for name, distance in zip(names, distances, strict=True):
        if distance <= window_ev:
            e_above.setdefault(name, 0.0 if name in members else max(float(distance), 0.0))
    return NearHull(members=tuple(sorted(members)), e_above=e_above)


def formula_of(atoms: Atoms) -> str:
    """Write the reduced formula of a crystal as the whole search does: smallest whole numbers, alphabetical.

    Parameters
    ----------
    atoms
        A crystal.

    Returns
    -------
    str
        Such as "Mg2Si"; "H" for any number of hydrogen atoms alone.
    """
    numbers, counts = np.unique(atoms.numbers, return_counts=True)
    return reduced_formula({chemical_symbols[z]: int(n) for z, n in zip(numbers, counts, strict=True)})


def atomic_fractions(formulas: Sequence[str], elements: Sequence[str]) -> Floats:
    """Turn formulas into atomic fractions.

    Parameters
    ----------
    formulas
        Formulas, reduced or not.
    elements
        Chemical symbols; the order of the columns.

    Returns
    -------
    Floats
        Shape (n, n_elements); each row sums to one.

    Raises
    ------
    DataError
        If a formula cannot be read or has an element outside ``elements``.
    """
    known = {formula: _fractions(formula, tuple(elements)) for formula in set(formulas)}
    return np.array([known[formula] for formula in formulas], dtype=np.float64).reshape(-1, len(elements))


@lru_cache(maxsize=100_000)
def _fractions(formula: str, elements: tuple[str, ...]) -> tuple[float, ...]:
    amounts = _amounts(formula)
    for symbol in amounts:
        if symbol not in elements:
            raise DataError(f"formula {formula}: expected only {', '.join(elements)}, got {symbol}")
    total = sum(amounts.values())
    return tuple(amounts.get(symbol, 0.0) / total for symbol in elements)


@lru_cache(maxsize=100_000)
def _amounts(formula: str) -> dict[str, float]:
    try:
        amounts = Composition(formula).get_el_amt_dict()
    except ValueError as exc:
        raise DataError(f"formula {formula!r}: expected something like Mg2Si") from exc
    if not amounts:
        raise DataError(f"formula {formula!r}: expected something like Mg2Si, got no atoms")
    return {str(symbol): float(amount) for symbol, amount in amounts.items()}


def _check_entries(formulas: Sequence[str], enthalpies: Floats) -> None:
    if not formulas:
        raise DataError("hull: expected at least one entry, got none")
    if enthalpies.shape != (len(formulas),):
        raise DataError(f"hull: expected {len(formulas)} enthalpies, one per formula, got {enthalpies.shape}")
    wrong = np.flatnonzero(~np.isfinite(enthalpies))
    if len(wrong):
        i = int(wrong[0])
        raise DataError(f"hull: entry {i} ({formulas[i]}) has no finite enthalpy, got {enthalpies[i]}")


def _lowest_per_composition(fractions: Floats, enthalpies: Floats) -> list[int]:
    """Find the lowest entry of each composition; the first one among equals."""
    order = np.lexsort((np.arange(len(enthalpies)), enthalpies))
    _, first = np.unique(np.round(fractions[order], FRACTION_DIGITS), axis=0, return_index=True)
    return sorted(int(i) for i in order[first])


def _check_end_members(elements: tuple[str, ...], fractions: Floats) -> None:
    pure = {elements[int(np.argmax(row))] for row in fractions if row.max() > 1 - 10.0**-FRACTION_DIGITS}
    missing = [symbol for symbol in elements if symbol not in pure]
    if missing:
        raise DataError(
            f"hull of {'-'.join(elements)}: missing end member{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            "every element needs at least one crystal of its own"
        )
