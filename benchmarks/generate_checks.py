"""What every generated crystal promises, checked by code that the generator does not use."""

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import spglib
from ase import Atoms
from pymatgen.core.composition import Composition
from pymatgen.optimization.neighbors import find_points_in_spheres

from csp.config import GenerateConfig
from csp.generate import Generated, generate
from csp.generate.trial import Trial
from csp.knowledge import Knowledge

SYMPREC = 1e-4  # Å
SAME_SHIFT = 10 * SYMPREC  # Å between a translation asked for and the one that spglib finds
NASTY: dict[str, dict[str, Any]] = {  # one cell each, and settings
    "Mg7Ca11H41": {},
    "Cs29H": {},
    "Be13P13N13O": {},
    "Li23Be19B17C13N11O7F5": {},
    "Cu59": {"symmetry_operations": (24, 48)},
    "Mg17O3": {"space_groups": (230,)},
    "Mg200O200": {"symmetric_fraction": 0.0},
}
FULL = 0.8  # of space, filled by spheres of half the least distances of nasty requests: no random crystal keeps them
PARENTS = {"Mg": 8, "Ca": 26, "H": 206}  # atoms of parents, none of whose variations is MgCaH2


def excess(atoms: Atoms, knowledge: Knowledge) -> float:
    """Give the least of all distances less its minimum, over all periodic images, Å: by pymatgen's neighbour search."""
    symbols = knowledge.elements
    limits = np.array([[knowledge.distances["-".join(sorted((a, b)))] for b in symbols] for a in symbols])
    kinds = np.array([symbols.index(symbol) for symbol in atoms.symbols])
    xyz = np.ascontiguousarray(atoms.positions)
    i, j, images, d = find_points_in_spheres(
        xyz, xyz, r=limits.max() + 0.1, pbc=np.ones(3, dtype=np.int64), lattice=np.ascontiguousarray(atoms.cell.array)
    )
    other = (i != j) | images.any(axis=1)
    return float((d - limits[kinds[i], kinds[j]])[other].min(initial=np.inf))


def keeps_symmetry(atoms: Atoms, trial: Trial) -> bool:
    """Tell whether the operations that spglib finds contain each one that the generator used, in the crystal's cell."""
    cell = atoms.cell.array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = spglib.get_symmetry((cell, atoms.get_scaled_positions(), atoms.numbers), symprec=SYMPREC)
    if found is None:
        return False
    rotations, translations = trial.operations()
    same = (np.rint(rotations)[:, None] == found["rotations"]).all(axis=(2, 3))
    shift = translations[:, None] - found["translations"]
    shift = (shift - np.rint(shift)) @ cell
    return bool((same & ((shift**2).sum(axis=2) < SAME_SHIFT**2)).any(axis=1).all())


def letters(atoms: Atoms) -> str:
    """Write which Wyckoff positions hold which element."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        data = spglib.get_symmetry_dataset(
            (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec=SYMPREC
        )
    if data is None:
        return "none"
    count = Counter(zip(atoms.get_chemical_symbols(), data.wyckoffs, data.equivalent_atoms, strict=True))
    names = sorted((symbol, n, letter) for (symbol, letter, _), n in count.items())
    return " ".join(f"{symbol}{n}{letter}" for symbol, n, letter in names)


def nasty(limit_s: float, repeats: int) -> dict[str, Any]:
    """Measure how far hopeless requests run past their time limit, one structure at a time."""
    table: dict[str, Any] = {}
    for formula, options in NASTY.items():
        counts = {symbol: int(n) for symbol, n in Composition(formula).get_el_amt_dict().items()}
        knowledge = Knowledge.initial(tuple(counts), 0.0)
        spheres = np.pi / 6 * sum(n * knowledge.min_distance(symbol, symbol) ** 3 for symbol, n in counts.items())
        settings = GenerateConfig.model_validate(
            {
                "symmetric_fraction": 1.0,
                "atoms": (sum(counts.values()),) * 2,
                "compositions": (formula,),
                "max_attempts": 1_000_000,
                "time_limit_s": limit_s,
                "volume_jitter": 0.0,
                "distance_scale": (FULL * knowledge.volume(counts) / spheres) ** (1 / 3),
            }
            | options
        )
        table[formula] = _longest(settings, knowledge, repeats, plan=[counts])
    table["mutations"] = _hopeless_mutations(limit_s, repeats)
    worst = max(row["longest_s"] for row in table.values()) - limit_s
    print(f"nasty: {table}: at most {worst:.3f} s past a limit of {limit_s} s")
    assert worst < limit_s
    return {"limit_s": limit_s, "requests": table, "worst_past_limit_s": worst}


def _hopeless_mutations(limit_s: float, repeats: int) -> dict[str, Any]:
    """Ask for mutations of large parents that never have the composition that is listed."""
    size = sum(PARENTS.values())
    knowledge = Knowledge.initial(tuple(PARENTS), 200.0)
    settings = GenerateConfig(atoms=(size, size), formula_units=(1, size), max_attempts=400)
    seed = np.random.SeedSequence(1)
    made = generate(settings, knowledge, elements=tuple(PARENTS), n=6, seed=seed, plan=[PARENTS] * 6)
    settings = GenerateConfig(
        atoms=(1, size),
        formula_units=(1, size),
        compositions=("MgCaH2",),
        random_share=0.0,
        prototype_share=0.0,
        mutation_share=1.0,
        time_limit_s=limit_s,
    )
    return _longest(settings, knowledge, repeats, parents=made.atoms)


def _longest(settings: GenerateConfig, knowledge: Knowledge, repeats: int, **source: Sequence[Any]) -> dict[str, Any]:
    """Ask for one structure several times; tell how each ended and how long the longest took, s."""
    seconds: list[float] = []
    ends = Counter[str]()
    for seed in np.random.SeedSequence(1).spawn(repeats):
        started = time.perf_counter()
        made: Generated = generate(settings, knowledge, elements=knowledge.elements, n=1, seed=seed, **source)
        seconds.append(time.perf_counter() - started)
        ends.update(made.refused or ["made"])
    return {"ends": ends, "longest_s": max(seconds)}
