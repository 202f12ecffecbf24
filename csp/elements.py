"""Estimates for elements before anything was computed: volume under pressure, radii, oxidation states."""

from functools import lru_cache

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray
from pymatgen.core.periodic_table import Element

from csp.errors import ConfigError

Floats = NDArray[np.float64]

A3_PER_CM3_MOL = 1.66053907  # Å^3 per atom in one cm^3/mol
SPHERE = 4.0 / 3.0 * np.pi
DEFAULT_BULK_MODULUS = 50.0  # GPa, where the tables have none
MOLECULAR_BULK_MODULUS = 12.0  # GPa, of an atom that is a gas when elementary but bound in a compound
DEFAULT_PRIME = 4.5  # pressure derivative of the bulk modulus, typical of solids
ION_PACKING = 0.6  # filling of space by ionic radii in simple salts
BOUND_SHARE = 0.8  # volume of a bound anion in units of its van der Waals sphere
FULL_TRANSFER = 1.7  # electronegativity difference (Pauling) at which a cation has lost its metallic volume
# Solid hydrogen, P. Loubeyre et al., Nature 383, 702 (1996): volume per atom (Å^3), bulk modulus (GPa), derivative.
HYDROGEN = (21.12, 0.162, 6.813)
BOUND_HYDROGEN = (8.0, 9.0, 4.5)  # Å^3, GPa, 1: hydridic hydrogen, between MgH2 at 0 and CaH6 at 150 GPa
GASES = frozenset({"H", "N", "O", "F", "Cl", "He", "Ne", "Ar", "Kr", "Xe", "Rn"})


def element(symbol: str) -> Element:
    """Look an element up.

    Parameters
    ----------
    symbol
        Chemical symbol.

    Returns
    -------
    Element
        Of pymatgen.

    Raises
    ------
    ConfigError
        If there is no such element.
    """
    try:
        return Element(symbol)
    except ValueError as error:
        raise ConfigError(f"elements: expected chemical symbols such as Mg, got {symbol!r}") from error


def vinet_ratio(pressure_gpa: float, bulk_modulus: float, prime: float) -> float:
    """Solve Vinet's equation of state for the compression.

    Parameters
    ----------
    pressure_gpa
        Pressure, GPa; below zero counts as zero.
    bulk_modulus
        At zero pressure, GPa.
    prime
        Its pressure derivative.

    Returns
    -------
    float
        V(p) / V(0), by bisection to 1e-12.
    """
    low, high = 0.05, 1.0
    slope = 1.5 * (prime - 1.0)
    for _ in range(50):
        x = 0.5 * (low + high)
        pressure = 3.0 * bulk_modulus * (1.0 - x) / x**2 * np.exp(slope * (1.0 - x))
        low, high = (x, high) if pressure > pressure_gpa else (low, x)
    return float((0.5 * (low + high)) ** 3)


@lru_cache(maxsize=1024)
def elementary_volume(symbol: str, pressure_gpa: float) -> float:
    """Estimate the volume per atom of the element itself.

    Parameters
    ----------
    symbol
        Chemical symbol.
    pressure_gpa
        Pressure, GPa.

    Returns
    -------
    float
        Å^3 per atom, from the molar volume and the bulk modulus of pymatgen's tables.
    """
    if symbol == "H":
        return HYDROGEN[0] * vinet_ratio(pressure_gpa, *HYDROGEN[1:])
    data = element(symbol).data
    volume = _number(data.get("Molar volume"))
    at_zero = volume * A3_PER_CM3_MOL if volume else SPHERE * covalent_radius(symbol) ** 3 / 0.5
    stiffness = _number(data.get("Bulk modulus")) or (1.5 if symbol in GASES else DEFAULT_BULK_MODULUS)
    return at_zero * vinet_ratio(pressure_gpa, stiffness, 6.0 if symbol in GASES else DEFAULT_PRIME)


@lru_cache(maxsize=1024)
def bound_volume(symbol: str, pressure_gpa: float) -> float:
    """Estimate the volume per atom of an element inside a compound with full charge transfer.

    Parameters
    ----------
    symbol
        Chemical symbol.
    pressure_gpa
        Pressure, GPa.

    Returns
    -------
    float
        Å^3 per atom: ionic spheres for cations, van der Waals spheres for what is a gas by itself.
    """
    if symbol == "H":
        return BOUND_HYDROGEN[0] * vinet_ratio(pressure_gpa, *BOUND_HYDROGEN[1:])
    plain = elementary_volume(symbol, pressure_gpa)
    if symbol in GASES:
        radius = _number(element(symbol).data.get("Van der waals radius")) or 1.5
        at_zero = BOUND_SHARE * SPHERE * radius**3
        return min(plain, at_zero * vinet_ratio(pressure_gpa, 8 * MOLECULAR_BULK_MODULUS, DEFAULT_PRIME))
    radius = float(element(symbol).average_cationic_radius or 0.0)
    return min(plain, SPHERE * radius**3 / ION_PACKING) if radius else plain


@lru_cache(maxsize=256)
def electronegativity(symbol: str) -> float:
    """Give Pauling's electronegativity, 2.0 where there is none."""
    value = _number(element(symbol).data.get("X"))
    return value or 2.0


@lru_cache(maxsize=256)
def covalent_radius(symbol: str) -> float:
    """Give the covalent radius, Å, from ASE's table."""
    return float(covalent_radii[element(symbol).Z])


def oxidation_states(symbol: str) -> tuple[int, ...]:
    """Give the common oxidation states."""
    return tuple(int(state) for state in element(symbol).common_oxidation_states)


def transfer(symbols: tuple[str, ...], fractions: Floats) -> Floats:
    """Estimate how far each element of a compound has become an ion.

    Parameters
    ----------
    symbols
        The compound's elements.
    fractions
        (n_elements,) atomic fractions.

    Returns
    -------
    Floats
        (n_elements,) 0 as in the element, 1 as in a salt.
    """
    X = np.array([electronegativity(symbol) for symbol in symbols])
    gap = np.abs(X[:, None] - X[None]) / FULL_TRANSFER
    reach = np.minimum(1.0, gap) * np.minimum(1.0, 2.0 * fractions[None] / np.maximum(fractions[:, None], 1e-9))
    gas = np.array([symbol in GASES for symbol in symbols])
    partner = (gas[:, None] & ~gas[None]) * np.minimum(1.0, 4.0 * fractions[None])
    result: Floats = np.clip(np.maximum(reach, partner).max(axis=1), 0.0, 1.0)
    return result


def _number(value: object) -> float:
    """Read a number with or without a unit, 0 for none."""
    try:
        return float(str(value).split()[0])
    except (ValueError, IndexError):
        return 0.0
