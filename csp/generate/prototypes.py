"""Known crystal structures, from pymatgen's copy of the AFLOW library, decorated with the elements of a system."""

import gzip
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import spglib
from numpy.typing import NDArray

from csp.compositions import CompositionRule
from csp.config import GenerateConfig
from csp.errors import DataError
from csp.generate.pool import Proposal
from csp.generate.symmetric import allowed_groups
from csp.generate.trial import plain_trial
from csp.generate.wyckoff import quiet
from csp.knowledge import Knowledge, reduced_formula

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LIBRARY = ("pymatgen.analysis", "prototypes", "aflow_prototypes.json.gz")
SYMPREC = 1e-4  # Å, as exact as the library is


@dataclass(frozen=True, eq=False)
class Prototype:
    """A known crystal structure.

    Parameters
    ----------
    name
        AFLOW's label, such as "AB_cF8_225_a_b".
    space_group
        Its number.
    cell
        (3, 3), rows, Å; only its shape counts.
    kinds
        (n_atoms,) 0 for the first kind of atom, 1 for the second, and so on.
    fractions
        (n_atoms, 3).
    """

    name: str
    space_group: int
    cell: Floats
    kinds: Ints
    fractions: Floats

    @cached_property
    def operations(self) -> tuple[Floats, Floats]:
        """Rotations (n, 3, 3) and translations (n, 3) of its symmetry, in fractions of its cell."""
        cell = self.cell.tolist(), self.fractions.tolist(), (self.kinds + 1).tolist()
        with quiet():
            found = spglib.get_symmetry(cell, symprec=SYMPREC)
        if found is None:
            raise DataError(f"spglib finds no symmetry in the prototype {self.name}")
        return np.asarray(found["rotations"], dtype=float), np.asarray(found["translations"])


@lru_cache(maxsize=1)
def library() -> tuple[Prototype, ...]:
    """Read the library that comes with pymatgen.

    Returns
    -------
    tuple[Prototype, ...]
        Some three hundred unary to quinary structures, mostly in primitive cells.

    Raises
    ------
    DataError
        If this pymatgen has none.
    """
    spec = find_spec(LIBRARY[0])
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = next((p for folder in folders if (p := Path(folder, *LIBRARY[1:])).is_file()), None)
    if path is None:
        raise DataError(f"the prototype library {'/'.join(LIBRARY)} is missing from the installed pymatgen")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        entries = json.load(stream)
    return tuple(_prototype(entry["tags"]["aflow"], entry["snl"]) for entry in entries)


def _prototype(name: str, structure: dict[str, Any]) -> Prototype:
    """Read one entry of the library."""
    sites = structure["sites"]
    symbols = [str(site["species"][0]["element"]) for site in sites]
    kinds = sorted(set(symbols))
    return Prototype(
        name=name,
        space_group=int(name.split("_")[2]),
        cell=np.array(structure["lattice"]["matrix"], dtype=float),
        kinds=np.array([kinds.index(symbol) for symbol in symbols]),
        fractions=np.array([site["abc"] for site in sites], dtype=float),
    )


class Prototypes:
    """Draws decorated prototypes of one chemical system.

    Parameters
    ----------
    settings
        How crystals are made.
    knowledge
        Volumes.
    elements
        Chemical symbols of the system.
    """

    def __init__(self, settings: GenerateConfig, knowledge: Knowledge, elements: Sequence[str]) -> None:
        self.settings = settings
        self.knowledge = knowledge
        self.by_formula = _decorations(CompositionRule(elements, settings), set(allowed_groups(settings)))
        self.formulae = sorted(self.by_formula)
        self.formula_weights = _normalised([1.0 / _smallest(self.by_formula[f]) for f in self.formulae])

    def propose(self, rng: np.random.Generator) -> Proposal | str:
        """Draw a formula, then a prototype and a decoration that give it, simple ones more often.

        Parameters
        ----------
        rng
            Source of chance.

        Returns
        -------
        Proposal | str
            The crystal at the volume known for its composition, or ``no_prototype`` where the settings allow none.
        """
        if not self.formulae:
            return "no_prototype"
        options = self.by_formula[self.formulae[int(rng.choice(len(self.formulae), p=self.formula_weights))]]
        weights = _normalised([len(prototype.kinds) ** -0.5 for prototype, _ in options])
        prototype, decoration = options[int(rng.choice(len(options), p=weights))]
        symbols = [decoration[kind] for kind in prototype.kinds]
        kinds = np.array([self.knowledge.elements.index(symbol) for symbol in symbols])
        jitter = self.settings.volume_jitter
        volume = self.knowledge.volume(Counter(symbols)) * rng.uniform(1 - jitter, 1 + jitter)
        cell = prototype.cell * (volume / abs(np.linalg.det(prototype.cell))) ** (1 / 3)
        info: dict[str, str | int | float] = {
            "origin": "prototype",
            "space_group": prototype.space_group,
            "lineage": f"{prototype.name}({', '.join(decoration)})",
        }
        return Proposal(plain_trial(cell, kinds, prototype.fractions, prototype.operations), info)


def _smallest(options: Sequence[tuple[Prototype, tuple[str, ...]]]) -> int:
    """Count the atoms of the smallest prototype."""
    return min(len(prototype.kinds) for prototype, _ in options)


def _normalised(weights: Sequence[float]) -> Floats:
    """Scale weights to sum 1."""
    values = np.asarray(weights, dtype=float)
    return values / values.sum() if len(values) else values


def _decorations(rule: CompositionRule, groups: Collection[int]) -> dict[str, list[tuple[Prototype, tuple[str, ...]]]]:
    """List every prototype of some space groups with every allowed choice of elements, by reduced formula."""
    found: dict[str, list[tuple[Prototype, tuple[str, ...]]]] = {}
    for prototype in library():
        if prototype.space_group not in groups:
            continue
        counts = np.bincount(prototype.kinds).tolist()
        for decoration in permutations(rule.symbols, len(counts)):
            contents = dict(zip(decoration, counts, strict=True))
            if not rule.objection(contents):
                found.setdefault(reduced_formula(contents), []).append((prototype, decoration))
    return found
