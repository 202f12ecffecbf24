"""What a search knows about sizes: minimum pair distances and volumes, estimated first, learned from labels later."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import Any, Self

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.units import GPa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from csp.elements import bound_volume, covalent_radius, element, elementary_volume, transfer
from csp.errors import ConfigError
from csp.learning import ENOUGH, Evidence, fit_scales, learned_distances, read_label, weigh

Floats = NDArray[np.float64]

CONTACT = 0.72  # least distance in units of the sum of the covalent radii
FULLEST = 0.45  # share of an element's volume that spheres of its least distance may fill; 0.74 is the densest packing
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
    given_volumes: dict[str, float] = Field(
        default_factory=dict, description="Volumes per atom given by the user, which learning starts from, Å^3."
    )

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
                raise ConfigError(
                    f"generate.volumes.{symbol}: expected an element of {'-'.join(symbols)} and a volume above 0 Å^3"
                )
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
            given_volumes=dict(volumes or {}),
        )

    def first(self) -> Self:
        """Give the knowledge that the search started from, without what was learned."""
        given = {pair: self.distances[pair] for pair in self.fixed_distances}
        return self.initial(self.elements, self.pressure_gpa, distances=given, volumes=self.given_volumes)

    def scaled(self, factor: float) -> Self:
        """Scale the least distances that are estimates.

        Parameters
        ----------
        factor
            On the first estimates. Given and learned distances stay: learned ones come from crystals that were made
            with the factor, so that it would feed itself until no real crystal is allowed.

        Returns
        -------
        Self
            The same once anything was learned.
        """
        if factor == 1 or self.n_labels:
            return self
        scaled = {pair: d * (1.0 if pair in self.fixed_distances else factor) for pair, d in self.distances.items()}
        return self.model_copy(update={"distances": scaled})

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
        return float(total * self._estimated_shares(counts).sum())

    def _estimated_shares(self, counts: Mapping[str, float]) -> Floats:
        """Give each element's part of the volume per atom, in the order of ``counts``, Å^3."""
        symbols = tuple(counts)
        fractions = np.array(list(counts.values())) / sum(counts.values())
        share = transfer(symbols, fractions)
        plain = np.array([self.volumes[symbol] for symbol in symbols])
        bound = np.array([self.bound_volumes[symbol] for symbol in symbols])
        parts: Floats = fractions * ((1 - share) * plain + share * bound)
        return parts

    def learned(self, labelled: Sequence[Atoms]) -> Self:
        """Re-estimate volumes and least distances from labelled crystals.

        Parameters
        ----------
        labelled
            Crystals whose calculators hold energy, stress and, if possible, forces. Those without energy or stress, of
            other elements, or with wild forces have no say.

        Returns
        -------
        Self
            New knowledge. Best called on ``first()`` with all labels so far: the estimate is the prior.

        Notes
        -----
        A crystal's say falls with its enthalpy above the best of its composition and with the distance of its
        pressure from the target. Its volume is brought to the target pressure along the estimated equation of state.
        """
        evidence = [item for item in map(self._evidence, labelled) if item is not None]
        weighed = weigh(evidence, self.pressure_gpa)
        if not weighed:
            return self
        shares = np.zeros((len(weighed), len(self.elements)))
        for row, (item, _) in zip(shares, weighed, strict=True):
            row[[self.elements.index(symbol) for symbol in item.counts]] = self._estimated_shares(item.counts)
        volumes = np.array([item.volume for item, _ in weighed])
        weights = np.array([weight for _, weight in weighed])
        scales = dict(zip(self.elements, fit_scales(shares, volumes, weights).tolist(), strict=True))
        return self.model_copy(
            update={
                "volumes": {symbol: scales[symbol] * volume for symbol, volume in self.volumes.items()},
                "bound_volumes": {symbol: scales[symbol] * volume for symbol, volume in self.bound_volumes.items()},
                "formula_volumes": self.formula_volumes | _formula_volumes(weighed),
                "distances": learned_distances([i.atoms for i, _ in weighed], self.distances, self.fixed_distances),
                "n_labels": len(evidence),
            }
        )

    def _evidence(self, atoms: Atoms) -> Evidence | None:
        """Read what a labelled crystal says, or None where it says nothing."""
        counts = Counter(chemical_symbols[int(z)] for z in atoms.numbers)
        label = read_label(atoms)
        if label is None or not counts or not set(counts) <= set(self.elements):
            return None
        energy, pressure = label
        volume = float(abs(np.linalg.det(atoms.cell.array)))
        compression = _estimated_volume(self.elements, self.pressure_gpa, counts) / _estimated_volume(
            self.elements, pressure, counts
        )
        enthalpy = (energy + self.pressure_gpa * GPa * volume) / len(atoms)
        return Evidence(atoms, dict(counts), compression * volume / len(atoms), enthalpy, pressure)


def _estimated_volume(elements: tuple[str, ...], pressure_gpa: float, counts: Mapping[str, int]) -> float:
    """Give the first estimate of a cell's volume, Å^3, at a pressure rounded so that estimates can be kept."""
    return _first_knowledge(elements, float(max(0, round(pressure_gpa)))).volume(counts)


@lru_cache(maxsize=2048)
def _first_knowledge(elements: tuple[str, ...], pressure_gpa: float) -> Knowledge:
    return Knowledge.initial(elements, pressure_gpa)


def _formula_volumes(weighed: Sequence[tuple[Evidence, float]]) -> dict[str, float]:
    """Average volumes per atom, Å^3, of the compositions with enough evidence."""
    sums: dict[str, list[float]] = {}
    for item, weight in weighed:
        entry = sums.setdefault(reduced_formula(item.counts), [0.0, 0.0])
        entry[0] += weight
        entry[1] += weight * item.volume
    return {formula: volume / weight for formula, (weight, volume) in sums.items() if weight >= ENOUGH}


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
    room = [(6 / np.pi * FULLEST * elementary_volume(s, pressure_gpa)) ** (1 / 3) for s in (a, b)]
    return float(max(min(contact * shrink, 0.5 * sum(room)), HYDROGEN_CONTACT))


def _given_distances(symbols: tuple[str, ...], distances: Mapping[str, float]) -> dict[str, float]:
    """Check the user's minimum distances and name their pairs in our order."""
    given: dict[str, float] = {}
    for name, distance in distances.items():
        pair = name.split("-")
        if len(pair) != 2 or any(symbol not in symbols for symbol in pair):
            raise ConfigError(f"generate.distances.{name}: expected a pair of {', '.join(symbols)} such as Ca-H")
        if not distance > 0:
            raise ConfigError(f"generate.distances.{name}: expected a distance above 0 Å, got {distance}")
        key = pair_key(*pair)
        if key in given:
            raise ConfigError(f"generate.distances.{name}: expected each pair once, {key} has two distances")
        given[key] = float(distance)
    return given
