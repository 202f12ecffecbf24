"""What a search knows about sizes: minimum pair distances and volumes, estimated first, learned from labels later."""

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any, Self

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from csp.elements import bound_volume, covalent_radius, element, elementary_volume, transfer
from csp.errors import ConfigError

Floats = NDArray[np.float64]

CONTACT = 0.72  # least distance in units of the sum of the covalent radii
SQUEEZE = 1 / 6  # least distances shrink as the volume to this power: half as fast as all lengths do
HYDROGEN_CONTACT = 0.72  # Å, least H-H distance to start from at zero pressure: just inside the molecule


def pair_key(a: str, b: str) -> str:
    """Name a pair of elements independently of their order, as in "Ca-H"."""
    return "-".join(sorted((a, b)))


class Knowledge(BaseModel):
    """Sizes of atoms at the pressure of the search; small, immutable, plain JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    elements: tuple[str, ...] = Field(description="Chemical symbols of the system.")
    pressure_gpa: float = Field(description="Pressure of the search, GPa.")
    distances: dict[str, float] = Field(description='Minimum distance by pair such as "Ca-H", Å.')
    volumes: dict[str, float] = Field(description="Volume per atom of each element by itself, Å^3.")
    bound_volumes: dict[str, float] = Field(description="Volume per atom of each element inside a compound, Å^3.")
    formula_volumes: dict[str, float] = Field(
        default_factory=dict, description="Learned volume per atom by reduced formula, Å^3."
    )
    n_labels: int = Field(0, description="Labels that these numbers were learned from.")
    fixed_distances: tuple[str, ...] = Field((), description="Pairs given by the user, which learning leaves alone.")

    @classmethod
    def initial(
        cls,
        elements: Sequence[str],
        pressure_gpa: float,
        *,
        distances: Mapping[str, float] | None = None,
        volumes: Mapping[str, float] | None = None,
    ) -> Self:
        """Estimate everything from radii, molar volumes and compressibilities.

        Parameters
        ----------
        elements
            Chemical symbols of the system.
        pressure_gpa
            Pressure of the search, GPa.
        distances
            Minimum distances that the user knows better, by pair such as "Ca-H", Å; never changed by learning.
        volumes
            Volumes per atom that the user knows better, by element, Å^3.

        Returns
        -------
        Self
            The first knowledge of a search.

        Raises
        ------
        ConfigError
            If an element or a pair is unknown, or a distance or volume is not positive.
        """
        symbols = tuple(dict.fromkeys(elements))
        if not symbols:
            raise ConfigError("elements: expected at least one chemical symbol, got none")
        for symbol in symbols:
            element(symbol)
        given = _given_distances(symbols, distances or {})
        plain = {symbol: elementary_volume(symbol, pressure_gpa) for symbol in symbols}
        bound = {symbol: bound_volume(symbol, pressure_gpa) for symbol in symbols}
        for symbol, volume in (volumes or {}).items():
            if symbol not in symbols or volume <= 0:
                raise ConfigError(f"volumes.{symbol}: expected an element of {symbols} and a volume above 0 Å^3")
            plain[symbol] = bound[symbol] = float(volume)
        estimated = {
            pair_key(a, b): _first_distance(a, b, pressure_gpa) for a, b in combinations_with_replacement(symbols, 2)
        }
        return cls(
            elements=symbols,
            pressure_gpa=pressure_gpa,
            distances=estimated | given,
            volumes=plain,
            bound_volumes=bound,
            fixed_distances=tuple(given),
        )

    def min_distance(self, a: str, b: str) -> float:
        """Give the least allowed distance of two elements.

        Parameters
        ----------
        a
            Chemical symbol.
        b
            Chemical symbol.

        Returns
        -------
        float
            Å.

        Raises
        ------
        ConfigError
            If the pair is not of this system.
        """
        key = pair_key(a, b)
        if key not in self.distances:
            raise ConfigError(f"distances: expected a pair of {'-'.join(self.elements)}, got {key}")
        return self.distances[key]

    def distance_matrix(self, numbers: Sequence[int] | NDArray[Any]) -> Floats:
        """Give the least allowed distance of each pair of atoms.

        Parameters
        ----------
        numbers
            (n,) atomic numbers.

        Returns
        -------
        Floats
            (n, n), Å.
        """
        kinds, inverse = np.unique(np.asarray(numbers), return_inverse=True)
        symbols = [chemical_symbols[int(z)] for z in kinds]
        table = np.array([[self.min_distance(a, b) for b in symbols] for a in symbols])
        return table[np.ix_(inverse, inverse)]

    def volume(self, composition: Mapping[str, float]) -> float:
        """Estimate the volume of a cell.

        Parameters
        ----------
        composition
            Atoms by element, in the whole cell.

        Returns
        -------
        float
            Å^3 for the whole cell.
        """
        counts = {symbol: float(n) for symbol, n in composition.items() if n}
        total = sum(counts.values())
        formula = reduced_formula(counts)
        if formula in self.formula_volumes:
            return self.formula_volumes[formula] * total
        symbols = tuple(counts)
        fractions = np.array([counts[symbol] / total for symbol in symbols])
        share = transfer(symbols, fractions)
        plain = np.array([self.volumes[symbol] for symbol in symbols])
        bound = np.array([self.bound_volumes[symbol] for symbol in symbols])
        return float(total * (fractions * ((1 - share) * plain + share * bound)).sum())


def reduced_formula(counts: Mapping[str, float]) -> str:
    """Write a composition with the smallest whole numbers, elements in alphabetical order.

    Parameters
    ----------
    counts
        Atoms by element; whole numbers.

    Returns
    -------
    str
        Such as "Ca3H23Mg".
    """
    whole = {symbol: round(n) for symbol, n in sorted(counts.items()) if n}
    divisor = int(np.gcd.reduce(list(whole.values()))) if whole else 1
    return "".join(f"{symbol}{n // divisor if n != divisor else ''}" for symbol, n in whole.items())


def _first_distance(a: str, b: str, pressure_gpa: float) -> float:
    """Estimate a least distance from covalent radii, shrunk as the atoms' volumes are, Å."""
    estimate = [bound_volume if s == "H" else elementary_volume for s in (a, b)]
    squeeze = [volume(s, pressure_gpa) / volume(s, 0.0) for volume, s in zip(estimate, (a, b), strict=True)]
    shrink = float((squeeze[0] * squeeze[1]) ** (SQUEEZE / 2))
    contact = CONTACT * (covalent_radius(a) + covalent_radius(b))
    return max(contact * shrink, HYDROGEN_CONTACT)


def _given_distances(symbols: tuple[str, ...], distances: Mapping[str, float]) -> dict[str, float]:
    """Check the user's minimum distances and name their pairs in our order."""
    given: dict[str, float] = {}
    for name, distance in distances.items():
        pair = name.split("-")
        if len(pair) != 2 or any(symbol not in symbols for symbol in pair):
            raise ConfigError(f"distances.{name}: expected a pair of {', '.join(symbols)} such as Ca-H")
        if not distance > 0:
            raise ConfigError(f"distances.{name}: expected a distance above 0 Å, got {distance}")
        given[pair_key(*pair)] = float(distance)
    return given
