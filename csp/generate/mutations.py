"""Variations of good structures: strain, rattle, permutation, substitution, crossover, defects, soft modes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import spglib
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

from csp.compositions import CompositionRule
from csp.config import GenerateConfig
from csp.generate.pool import Proposal
from csp.generate.trial import plain_trial
from csp.generate.wyckoff import quiet
from csp.geometry import pair_vectors
from csp.knowledge import Knowledge

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STRAIN = 0.12  # standard deviation of a strain component
MAX_STRAIN = 0.35
RATTLE = (0.05, 0.6)  # Å, smallest and largest standard deviation of a displacement
SOFT = (0.4, 1.5)  # Å, largest displacement along a soft mode
SOFT_REACH = 5.0  # Å, bonds looked at
BOND_DECAY = 0.37  # Å, over which a bond's stiffness falls (the bond-valence constant)
SOFT_SHARE = 0.3  # of the modes count as soft
SYMPREC = 1e-3  # Å within which atoms of a file are at the same place
TRIES = 20  # operators tried before a parent is given up


@dataclass(frozen=True, eq=False)
class Parent:
    """A structure to be varied.

    Parameters
    ----------
    cell
        (3, 3), rows, Å.
    kinds
        (n_atoms,) index of each atom's element.
    fractions
        (n_atoms, 3).
    name
        Told in the lineage of what is derived from it.
    family
        Handed on.
    """

    cell: Floats
    kinds: Ints
    fractions: Floats
    name: str
    family: str

    @property
    def volume_per_atom(self) -> float:
        """Å^3."""
        return float(abs(np.linalg.det(self.cell))) / len(self.kinds)

    def changed(
        self, *, cell: Floats | None = None, kinds: Ints | None = None, fractions: Floats | None = None
    ) -> "Parent":
        """Give a copy with some parts replaced."""
        return Parent(
            self.cell if cell is None else cell,
            self.kinds if kinds is None else kinds,
            self.fractions if fractions is None else fractions,
            self.name,
            self.family,
        )


class Mutations:
    """Draws variations of parents.

    Parameters
    ----------
    settings
        How crystals are made.
    knowledge
        Volumes.
    elements
        Chemical symbols of the system.
    parents
        Good structures, the best first; those with foreign elements, or too many atoms even in their primitive cell,
        are left out.
    origin
        Goes into ``info["origin"]``.
    """

    def __init__(
        self,
        settings: GenerateConfig,
        knowledge: Knowledge,
        elements: Sequence[str],
        parents: Sequence[Atoms],
        *,
        origin: str = "mutation",
    ) -> None:
        self.settings = settings
        self.knowledge = knowledge
        self.origin = origin
        self.rule = CompositionRule(elements, settings)
        self.parents = [parent for i, atoms in enumerate(parents) if (parent := self._parent(atoms, i)) is not None]
        self.operators: dict[str, Callable[[Parent, np.random.Generator], Parent | None]] = {
            "strain": strain,
            "rattle": rattle,
            "permutation": permutation,
            "soft": self._soft,
            "crossover": self._crossover,
            "substitution": self._substitution,
            "defect": self._defect,
        }

    def propose(self, rng: np.random.Generator) -> Proposal | str:
        """Draw a parent, better ones more often, and vary it.

        Parameters
        ----------
        rng
            Source of chance.

        Returns
        -------
        Proposal | str
            The variation, or ``no_mutation`` where no operator gives an allowed cell, or ``time`` where that took too
            long.
        """
        if not self.parents:
            return "no_parent"
        names = sorted(self.operators)
        started = time.perf_counter()
        for _ in range(TRIES):
            if time.perf_counter() - started > self.settings.time_limit_s:
                return "time"
            parent = self.parents[int(rng.integers(len(self.parents), size=2).min())]
            name = names[int(rng.integers(len(names)))]
            child = self.operators[name](parent, rng)
            if child is None or self.rule.objection(self._counts(child.kinds)):
                continue
            lineage = f"{name}({child.name})"
            trial = plain_trial(self._sized(parent, child, rng), child.kinds, child.fractions)
            info: dict[str, str | int | float] = {"origin": self.origin, "space_group": 1}
            return Proposal(trial, info | {"lineage": lineage, "family": parent.family})
        return "no_mutation"

    def _parent(self, atoms: Atoms, index: int) -> Parent | None:
        """Read a structure, or give None where it does not belong to the system."""
        if len(atoms) > self.settings.atoms[1]:
            atoms = _primitive(atoms)
        symbols = [chemical_symbols[int(z)] for z in atoms.numbers]
        if not set(symbols) <= set(self.rule.symbols) or not 0 < len(symbols) <= self.settings.atoms[1]:
            return None
        names = (atoms.info.get(key) for key in ("name", "phase_id", "seed"))
        name = str(next(filter(None, names), f"parent{index}"))
        cell = np.asarray(atoms.cell.array, dtype=float)
        fractions = atoms.positions @ np.linalg.inv(cell)
        kinds = np.array([self.knowledge.elements.index(symbol) for symbol in symbols])
        return Parent(cell, kinds, fractions, name, str(atoms.info.get("family") or name))

    def _counts(self, kinds: Ints) -> dict[str, int]:
        """Count atoms by element."""
        numbers = np.bincount(kinds, minlength=len(self.knowledge.elements)).tolist()
        return {symbol: n for symbol, n in zip(self.knowledge.elements, numbers, strict=True) if n}

    def _sized(self, parent: Parent, child: Parent, rng: np.random.Generator) -> Floats:
        """Scale a cell: the parent's volume where the composition is the same, else the known one."""
        old, new = np.bincount(parent.kinds, minlength=20), np.bincount(child.kinds, minlength=20)
        same = self.origin != "seed" and bool((old * new.sum() == new * old.sum()).all())
        volume = parent.volume_per_atom * len(child.kinds) if same else self.knowledge.volume(self._counts(child.kinds))
        volume *= rng.uniform(1 - self.settings.volume_jitter, 1 + self.settings.volume_jitter)
        cell: Floats = child.cell * (volume / abs(np.linalg.det(child.cell))) ** (1 / 3)
        return cell

    def _substitution(self, parent: Parent, rng: np.random.Generator) -> Parent | None:
        """Let one element take another's place, or exchange the two."""
        n = len(self.knowledge.elements)
        present = np.unique(parent.kinds)
        old, new = int(rng.choice(present)), int(rng.integers(n))
        if old == new:
            return None
        kinds = parent.kinds.copy()
        kinds[parent.kinds == old] = new
        if rng.random() < 0.5:
            kinds[parent.kinds == new] = old
        return parent.changed(kinds=kinds)

    def _crossover(self, parent: Parent, rng: np.random.Generator) -> Parent | None:
        """Cut two parents along a lattice plane and join the halves; lacking and surplus atoms are mended."""
        other = self.parents[int(rng.integers(len(self.parents)))]
        if other is parent:
            return None
        axis = int(rng.integers(3))
        share = rng.uniform(0.25, 0.75)
        one, two = (
            (p.fractions + rng.random(3)) % 1.0 for p in (parent, other)
        )  # a random origin cuts through every layer alike
        kept, added = one[:, axis] < share, two[:, axis] >= share
        kinds = np.concatenate([parent.kinds[kept], other.kinds[added]])
        fractions = np.concatenate([one[kept], two[added]])
        if not kept.any() or not added.any():
            return None
        child = _mended(kinds, fractions, parent.kinds if self.settings.compositions else None, rng)
        weight = rng.uniform(0.3, 0.7)
        cell = weight * _upright(parent.cell) + (1 - weight) * _upright(other.cell)
        name = f"{parent.name}, {other.name}"
        return Parent(cell, *child, name, parent.family)

    def _defect(self, parent: Parent, rng: np.random.Generator) -> Parent | None:
        """Take an atom out, put one in or exchange one for another element, in a supercell where there is room."""
        axis = int(rng.integers(3))
        times = int(rng.integers(1, max(1, min(3, self.settings.atoms[1] // len(parent.kinds))) + 1))
        steps = np.zeros((times, 1, 3))
        steps[:, 0, axis] = np.arange(times)
        scale = np.ones(3)
        scale[axis] = times
        fractions = ((parent.fractions[None] + steps) / scale).reshape(-1, 3)
        kinds = np.tile(parent.kinds, times)
        cell = parent.cell * scale[:, None]
        site, what, kind = (
            int(rng.integers(len(kinds))),
            int(rng.integers(3)),
            rng.integers(len(self.knowledge.elements)),
        )
        if what == 0:
            kinds, fractions = np.delete(kinds, site), np.delete(fractions, site, axis=0)
        elif what == 1:
            kinds, fractions = np.append(kinds, kind), np.vstack([fractions, rng.random((1, 3))])
        else:
            kinds[site] = kind
        return parent.changed(cell=cell, kinds=kinds, fractions=fractions) if len(kinds) else None

    def _soft(self, parent: Parent, rng: np.random.Generator) -> Parent | None:
        """Displace atoms along a soft mode of a crystal of bonds."""
        if len(parent.kinds) < 2:
            return None
        modes = soft_modes(parent, [self.knowledge.elements[kind] for kind in parent.kinds])
        mode = modes[int(rng.integers(len(modes)))]
        size = rng.uniform(*SOFT) * (1 if rng.random() < 0.5 else -1)
        moved = parent.fractions + size * mode @ np.linalg.inv(parent.cell)
        return parent.changed(fractions=moved)


def strain(parent: Parent, rng: np.random.Generator) -> Parent:
    """Deform the cell and shake the atoms slightly."""
    strains = np.clip(rng.normal(0.0, STRAIN, (3, 3)), -MAX_STRAIN, MAX_STRAIN)
    cell = parent.cell @ (np.eye(3) + 0.5 * (strains + strains.T))
    return parent.changed(cell=cell, fractions=parent.fractions + rng.normal(0.0, 0.01, parent.fractions.shape))


def rattle(parent: Parent, rng: np.random.Generator) -> Parent:
    """Displace every atom at random."""
    size = np.exp(rng.uniform(*np.log(RATTLE)))
    moves = rng.normal(0.0, size, parent.fractions.shape)
    return parent.changed(fractions=parent.fractions + moves @ np.linalg.inv(parent.cell))


def permutation(parent: Parent, rng: np.random.Generator) -> Parent | None:
    """Exchange some pairs of unlike atoms."""
    kinds = parent.kinds.copy()
    if len(np.unique(kinds)) < 2:
        return None
    for _ in range(int(rng.integers(1, max(2, len(kinds) // 3 + 1)))):
        one = int(rng.integers(len(kinds)))
        unlike = np.flatnonzero(kinds != kinds[one])
        two = int(rng.choice(unlike))
        kinds[[one, two]] = kinds[[two, one]]
    return parent.changed(kinds=kinds)


def soft_modes(parent: Parent, symbols: Sequence[str]) -> Floats:
    """Find displacement patterns that stretch bonds least.

    Bonds are springs whose stiffness falls exponentially with the length beyond the covalent radii (after
    A. O. Lyakhov, A. R. Oganov, M. Valle, Comput. Phys. Commun. 181, 1623 (2010)).

    Parameters
    ----------
    parent
        The structure.
    symbols
        (n_atoms,) elements.

    Returns
    -------
    Floats
        (n_modes, n_atoms, 3) Cartesian patterns, largest displacement 1; translations of the whole are left out.
    """
    atoms = Atoms(symbols, cell=parent.cell, scaled_positions=parent.fractions, pbc=True)
    first, second, vectors = pair_vectors(atoms, SOFT_REACH)
    length = np.sqrt((vectors**2).sum(axis=1))
    radii = covalent_radii[atoms.numbers]
    stiffness = np.exp(-(length - radii[first] - radii[second]) / BOND_DECAY)
    direction = vectors / np.maximum(length, 0.1)[:, None]
    blocks = stiffness[:, None, None] * direction[:, :, None] * direction[:, None, :]
    n = len(symbols)
    matrix = np.zeros((n, n, 3, 3))
    np.add.at(matrix, (first, first), blocks)
    np.add.at(matrix, (first, second), -blocks)
    patterns = np.linalg.eigh(matrix.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n))[1]
    count = max(1, int(SOFT_SHARE * (3 * n - 3)))
    modes = patterns.T[3 : 3 + count].reshape(count, n, 3)
    scaled: Floats = modes / np.sqrt((modes**2).sum(axis=2)).max(axis=1)[:, None, None]
    return scaled


def _upright(cell: Floats) -> Floats:
    """Turn a cell so that a is along x and b in the xy plane; right-handed."""
    return np.asarray(np.linalg.cholesky(cell @ cell.T), dtype=np.float64)


def _mended(kinds: Ints, fractions: Floats, wanted: Ints | None, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Bring a joined cell to the wanted contents: surplus atoms go at random, lacking ones come at random places."""
    if wanted is None:
        return kinds, fractions
    kept: list[int] = []
    added: list[int] = []
    for kind in np.unique(np.concatenate([kinds, wanted])).tolist():
        places = rng.permutation(np.flatnonzero(kinds == kind))
        need = int((wanted == kind).sum())
        kept.extend(places[:need].tolist())
        added.extend([kind] * max(0, need - len(places)))
    new = np.vstack([fractions[kept], rng.random((len(added), 3))])
    return np.concatenate([kinds[kept], np.array(added, dtype=np.int64)]), new


def _primitive(atoms: Atoms) -> Atoms:
    """Reduce a structure to its primitive cell: files often hold the conventional one."""
    with quiet():
        found = spglib.find_primitive((atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec=SYMPREC)
    if found is None:
        return atoms
    cell, fractions, numbers = found
    return Atoms(numbers, cell=cell, scaled_positions=fractions, pbc=True, info=atoms.info)
