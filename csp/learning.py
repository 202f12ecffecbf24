"""Re-estimating volumes and least distances from labelled crystals."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.data import chemical_symbols
from ase.units import GPa
from numpy.typing import NDArray

from csp.geometry import shortest_distances

Floats = NDArray[np.float64]

MAX_FORCE = 50.0  # eV/Å, beyond which a labelled crystal says nothing about equilibrium
ENTHALPY_WIDTH = 0.3  # eV/atom over which a crystal's say fades, counted from the best of its composition
PRESSURE_WIDTH = (20.0, 0.25)  # GPa, and share of the target, over which it fades with its pressure
LEAST_SAY = 0.05  # weights below count as nothing
ENOUGH = 3.0  # total weight from which a composition has a volume of its own
PRIOR = 2.0  # weight of the first estimate of an element's volume
VOLUME_BOUNDS = (0.5, 2.0)  # of the first estimate
DISTANCE_PRIOR = 5.0  # crystals that the first estimate of a distance is worth
DISTANCE_BOUNDS = (0.7, 1.3)  # of the first estimate
QUANTILE = 0.05  # of the shortest distances seen in good crystals
MARGIN = 0.95  # allowed below that
REACH = 5.0  # Å, pairs looked at


@dataclass(frozen=True)
class Evidence:
    """What one labelled crystal says.

    Parameters
    ----------
    atoms
        The crystal.
    counts
        Atoms by element.
    volume
        Per atom, Å^3, brought to the pressure of the search.
    enthalpy
        At that pressure, eV/atom.
    pressure
        Of the crystal as it was labelled, GPa.
    """

    atoms: Atoms
    counts: Mapping[str, int]
    volume: float
    enthalpy: float
    pressure: float


def read_label(atoms: Atoms) -> tuple[float, float] | None:
    """Read a crystal's energy and pressure.

    Parameters
    ----------
    atoms
        With a calculator that holds results.

    Returns
    -------
    tuple[float, float] | None
        Energy in eV and pressure in GPa, or None where one is missing or the forces are wild.
    """
    if atoms.calc is None:
        return None
    try:
        energy = float(atoms.get_potential_energy())
        stress = np.asarray(atoms.get_stress(voigt=True))
    except (PropertyNotImplementedError, NotImplementedError):
        return None
    forces = getattr(atoms.calc, "results", {}).get("forces")
    wild = forces is not None and len(forces) and float(np.linalg.norm(forces, axis=1).max()) > MAX_FORCE
    pressure = -float(stress[:3].mean()) / GPa
    return None if wild or not np.isfinite([energy, pressure]).all() else (energy, pressure)


def weigh(evidence: Sequence[Evidence], pressure_gpa: float) -> list[tuple[Evidence, float]]:
    """Give each crystal its weight: low enthalpy for its composition, pressure near the target.

    Parameters
    ----------
    evidence
        Labelled crystals.
    pressure_gpa
        Target, GPa.

    Returns
    -------
    list[tuple[Evidence, float]]
        Crystals with a say, and their weights from 0.05 to 1.
    """
    best: dict[frozenset[tuple[str, float]], float] = {}
    for item in evidence:
        best[_shares(item)] = min(item.enthalpy, best.get(_shares(item), np.inf))
    width = PRESSURE_WIDTH[0] + PRESSURE_WIDTH[1] * abs(pressure_gpa)
    weighed: list[tuple[Evidence, float]] = []
    for item in evidence:
        excess = (item.enthalpy - best[_shares(item)]) / ENTHALPY_WIDTH
        weight = float(np.exp(-excess) / (1.0 + ((item.pressure - pressure_gpa) / width) ** 2))
        if weight >= LEAST_SAY:
            weighed.append((item, weight))
    return weighed


def _shares(item: Evidence) -> frozenset[tuple[str, float]]:
    total = sum(item.counts.values())
    return frozenset((symbol, round(n / total, 6)) for symbol, n in item.counts.items())


def fit_scales(shares: Floats, volumes: Floats, weights: Floats) -> Floats:
    """Fit one factor per element on its estimated volume.

    Parameters
    ----------
    shares
        (n, n_elements) estimated volume of each element per atom of the crystal, Å^3.
    volumes
        (n,) volumes per atom seen, Å^3.
    weights
        (n,).

    Returns
    -------
    Floats
        (n_elements,) factors, drawn towards 1 with the weight of a few crystals, within bounds.
    """
    size = np.maximum(volumes, 1e-9)
    rows = shares / size[:, None] * np.sqrt(weights)[:, None]
    normal = rows.T @ rows + PRIOR * 0.1 * np.eye(shares.shape[1])
    target = rows.T @ np.sqrt(weights) + PRIOR * 0.1
    return np.clip(np.linalg.solve(normal, target), *VOLUME_BOUNDS)


def learned_distances(good: Sequence[Atoms], first: Mapping[str, float], fixed: Sequence[str]) -> dict[str, float]:
    """Re-estimate least distances.

    Parameters
    ----------
    good
        Crystals near equilibrium.
    first
        Estimates so far by pair such as "Ca-H", Å.
    fixed
        Pairs that stay as they are.

    Returns
    -------
    dict[str, float]
        By pair, Å: a low quantile of the shortest distances seen, mixed with the estimate while there are few.
    """
    seen: dict[str, list[float]] = defaultdict(list)
    for atoms in good:
        for (a, b), distance in shortest_distances(atoms, REACH).items():
            seen["-".join(sorted((chemical_symbols[a], chemical_symbols[b])))].append(distance)
    result = dict(first)
    for pair, distances in seen.items():
        if pair in fixed or pair not in first:
            continue
        found = MARGIN * float(np.quantile(distances, QUANTILE))
        mixed = (len(distances) * found + DISTANCE_PRIOR * first[pair]) / (len(distances) + DISTANCE_PRIOR)
        low, high = DISTANCE_BOUNDS
        result[pair] = float(np.clip(mixed, low * first[pair], high * first[pair]))
    return result
