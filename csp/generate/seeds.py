"""Reading structures that the user gives."""

import logging
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import permutations
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import ParseError, read
from ase.io.formats import UnknownFileTypeError
from pymatgen.core.structure import Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.cif import CifParser

from csp.compositions import CompositionRule
from csp.errors import DataError
from csp.generate.pool import ROUNDING
from csp.geometry import least_excess
from csp.knowledge import Knowledge

logger = logging.getLogger(__name__)

POSCARS = ("*.vasp", "*poscar*", "*contcar*")  # in lower case, as all patterns here
PATTERNS = ("*.cif", *POSCARS, "*.xyz", "*.extxyz", "*.json")
UNREADABLE = (OSError, ValueError, LookupError, RuntimeError, ParseError, UnknownFileTypeError)  # what readers raise
SMALLEST_VOLUME = 0.5  # Å^3 per atom, below which a cell is no crystal


def load_seeds(sources: Sequence[str | Path | Atoms | Structure]) -> list[Atoms]:
    """Read seeds from files, folders and objects.

    Parameters
    ----------
    sources
        CIF, POSCAR or extended XYZ files, folders of these, ASE Atoms or pymatgen Structures.

    Returns
    -------
    list[Atoms]
        In the order given, folders in the order of their file names; ``info["seed"]`` tells where each is from.

    Raises
    ------
    DataError
        If a file is missing, unreadable or no ordered crystal; it is named.
    """
    seeds: list[Atoms] = []
    for position, source in enumerate(sources):
        if isinstance(source, (str, Path)):
            for path in _files(Path(source)):
                seeds.extend(_read(path))
        else:
            atoms = _ordered(source, f"seed {position}") if isinstance(source, Structure) else source.copy()
            seeds.append(_checked(atoms, f"seed {position}"))
    return seeds


def substituted(seeds: Sequence[Atoms], elements: Sequence[str], knowledge: Knowledge) -> list[Atoms]:
    """Let the system's elements take the places of foreign ones, in every way.

    Parameters
    ----------
    seeds
        From ``load_seeds``.
    elements
        Chemical symbols of the system.
    knowledge
        Volumes.

    Returns
    -------
    list[Atoms]
        Seeds of the system as they are. For each other one, all choices of elements that it lacks for its foreign ones,
        at the volume known for what it then is; ``info["seed"]`` tells the choice.

    Raises
    ------
    DataError
        If a seed has more foreign elements than there are others to take their places; it is named.
    """
    fitting: list[Atoms] = []
    for seed in seeds:
        present = set(seed.get_chemical_symbols())
        foreign, free = sorted(present - set(elements)), [symbol for symbol in elements if symbol not in present]
        if len(foreign) > len(free):
            raise DataError(
                f"generate.seeds: {seed.info['seed']} contains {', '.join(foreign)}, which is not in "
                f"{'-'.join(elements)}, and has too few elements left to take that place"
            )
        choices = permutations(free, len(foreign)) if foreign else ()
        fitting.extend(_exchanged(seed, dict(zip(foreign, choice, strict=True)), knowledge) for choice in choices)
        if not foreign:
            fitting.append(seed)
    return fitting


def outside(seeds: Sequence[Atoms], rule: CompositionRule, knowledge: Knowledge) -> str:
    """Describe the seeds that would not be allowed, had they been made here.

    Parameters
    ----------
    seeds
        From ``substituted``.
    rule
        Numbers of atoms and compositions that the settings allow.
    knowledge
        Least distances.

    Returns
    -------
    str
        How many and why; "" where all fit.
    """
    objections = Counter(rule.objection(Counter(seed.get_chemical_symbols())) for seed in seeds)
    objections.pop("", None)
    notes: list[str] = []
    if objections:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(objections.items()))
        notes.append(f"{objections.total()} do not fit the settings ({reasons}) and are tried all the same")
    tight = sum(is_tight(seed, knowledge) for seed in seeds)
    if tight:
        notes.append(f"{tight} have atoms closer than the minimum distances, which are pushed apart")
    return "; ".join(notes)


def is_tight(seed: Atoms, knowledge: Knowledge) -> bool:
    """Tell whether atoms of a seed are closer than the least distances.

    Parameters
    ----------
    seed
        A crystal of the system.
    knowledge
        Least distances.

    Returns
    -------
    bool
        True if some have to be pushed apart.
    """
    return least_excess(seed, knowledge.distance_matrix(seed.numbers)) < -ROUNDING


def _exchanged(seed: Atoms, exchange: dict[str, str], knowledge: Knowledge) -> Atoms:
    """Exchange elements of a seed, and scale it to the volume known for its new contents."""
    atoms: Atoms = seed.copy()
    atoms.symbols = [exchange.get(symbol, symbol) for symbol in seed.get_chemical_symbols()]
    scale = (knowledge.volume(Counter(atoms.get_chemical_symbols())) / seed.get_volume()) ** (1 / 3)
    atoms.set_cell(seed.cell.array * scale, scale_atoms=True)
    words = ", ".join(f"{new} for {old}" for old, new in exchange.items())
    atoms.info["seed"] = f"{seed.info['seed']}({words})"
    return atoms


def _files(path: Path) -> list[Path]:
    """Give a file, or the structure files of a folder by name."""
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"generate.seeds: expected a file or a folder, {path} does not exist")
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    found = [file for file in files if _is_like(file, PATTERNS)]
    if not found:
        raise DataError(f"generate.seeds: the folder {path} holds none of {', '.join(PATTERNS)}")
    if skipped := [file.name for file in files if file not in found]:
        logger.warning("generate.seeds: %s: skipped %s; name them one by one to try them", path, ", ".join(skipped))
    return found


def _is_like(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path.name.lower(), pattern) for pattern in patterns)


def _read(path: Path) -> list[Atoms]:
    """Read every structure of a file."""
    try:
        frames: list[Atoms]
        if path.suffix.lower() == ".cif":
            frames = [
                _ordered(structure, str(path))
                for structure in CifParser(path, check_cif=False).parse_structures(primitive=False)
            ]
        else:
            frames = list(read(path, index=":", format="vasp" if _is_like(path, POSCARS) else None))
    except UNREADABLE as error:
        raise DataError(f"generate.seeds: {path} cannot be read as a crystal: {error}") from error
    return [_checked(atoms, f"{path}:{i}" if len(frames) > 1 else str(path)) for i, atoms in enumerate(frames)]


def _ordered(structure: Structure, name: str) -> Atoms:
    """Turn a pymatgen structure into Atoms."""
    if not structure.is_ordered:
        raise DataError(f"generate.seeds: {name} has partly occupied sites; give an ordered structure")
    structure = structure.copy()
    structure.remove_oxidation_states()
    atoms: Atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
    return Atoms(numbers=atoms.numbers, cell=atoms.cell.array, positions=atoms.positions, pbc=True)


def _checked(atoms: Atoms, name: str) -> Atoms:
    """Make sure that a seed is a crystal, and keep nothing but its geometry."""
    if not len(atoms):
        raise DataError(f"generate.seeds: {name} has no atoms")
    cell = np.asarray(atoms.cell.array)
    if not np.isfinite(cell).all() or abs(np.linalg.det(cell)) < SMALLEST_VOLUME * len(atoms):
        raise DataError(f"generate.seeds: {name} has no cell; a crystal periodic in three directions is needed")
    if not np.isfinite(atoms.positions).all():
        raise DataError(f"generate.seeds: {name} has coordinates that are no finite numbers")
    seed = Atoms(numbers=atoms.numbers, cell=cell, positions=atoms.positions, pbc=True)
    seed.info["seed"] = Path(name).name
    return seed
