"""One attempt at a crystal: a space group, its occupied positions, a lattice and starting coordinates."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csp.generate.lattice import random_lattice, reduction
from csp.generate.wyckoff import SpaceGroup

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SAME_SITE = 1e-3  # Å within which an image of an atom is an atom
NO_SYMMETRY = np.eye(3)[None], np.zeros((1, 3))  # the identity alone: rotations and translations


@dataclass(eq=False)
class Trial:
    """A crystal by its free coordinates, in the reduced primitive cell.

    Parameters
    ----------
    group
        Number of the space group that atoms and cell are moved by.
    cell
        (3, 3), rows, Å.
    kinds
        (n_orbits,) index of each orbit's element.
    points
        (n_orbits, 3) fractions of each orbit's first atom.
    projectors
        (n_orbits, 3, 3) keep a displacement of the first atom on its position.
    owner
        (n_atoms,) orbit of each atom; the first atom of an orbit is its point itself.
    rotations
        (n_atoms, 3, 3); with ``translations`` (n_atoms, 3), take the orbit's point to the atom.
    translations
        (n_atoms, 3).
    turn
        (3, 3) takes columns of fractions of the cell as it was drawn to those of the reduced one.
    drawn
        Rotations (n, 3, 3) and translations (n, 3), in fractions of the cell as it was drawn: the symmetry to keep.
    """

    group: int
    cell: Floats
    kinds: Ints
    points: Floats
    projectors: Floats
    owner: Ints
    rotations: Floats
    translations: Floats
    turn: Floats
    drawn: tuple[Floats | Ints, Floats]

    def fractions(self) -> Floats:
        """Give the fractional coordinates of all atoms, shape (n_atoms, 3), within [0, 1)."""
        spread = (self.rotations @ self.points[self.owner][..., None])[..., 0] + self.translations
        wrapped: Floats = spread % 1.0 % 1.0  # twice: a tiny negative number wraps to 1 at first
        return wrapped

    def operations(self) -> tuple[Floats, Floats]:
        """Give the rotations (n, 3, 3) and translations (n, 3), in this cell, that the crystal has to have."""
        rotations, translations = self.drawn
        return self.turn @ rotations @ np.linalg.inv(self.turn), translations @ self.turn.T

    def is_symmetric(self, fractions: Floats) -> bool:
        """Tell whether every operation takes the lattice and the atoms to themselves.

        Parameters
        ----------
        fractions
            (n_atoms, 3) of the finished crystal.

        Returns
        -------
        bool
            True if the images of the orbits' points are the atoms, all of them, within ``SAME_SITE``.
        """
        if len(self.drawn[0]) == 1:
            return True  # the identity
        rotations, translations = self.operations()
        metric = self.cell @ self.cell.T
        length = np.sqrt(metric.diagonal().max())
        if np.abs(rotations.transpose(0, 2, 1) @ metric @ rotations - metric).max() > SAME_SITE * length:
            return False
        images = (rotations @ self.points.T + translations[:, :, None]).transpose(1, 0, 2).reshape(3, -1)
        gap = images[:, :, None] - fractions.T[:, None]  # (3, n_operations * n_orbits, n_atoms)
        gap -= np.rint(gap)
        kinds = np.tile(self.kinds, len(rotations))
        same = (np.abs(gap).max(axis=0) < SAME_SITE / length) & (kinds[:, None] == self.kinds[self.owner])
        return bool(same.any(axis=1).all() and same.any(axis=0).all())


def new_trial(group: SpaceGroup, chosen: list[tuple[int, int]], volume: float, rng: np.random.Generator) -> Trial:
    """Draw a lattice and coordinates for chosen positions.

    Parameters
    ----------
    group
        The space group.
    chosen
        (element's index, position's index) of each orbit.
    volume
        Of the primitive cell, Å^3.
    rng
        Source of chance.

    Returns
    -------
    Trial
        Without regard to distances.
    """
    chosen = sorted(chosen)
    cell = random_lattice(group, rng, volume)
    change = reduction(cell)
    turn = np.rint(np.linalg.inv(change)).T  # takes columns of fractions into the reduced cell
    positions = [group.positions[index] for _, index in chosen]
    back = change.T
    projectors = np.array([position.projector for position in positions])
    offsets = np.array([position.offset for position in positions])
    points = (projectors @ rng.random((len(chosen), 3))[..., None])[..., 0] + offsets
    return Trial(
        group=group.number,
        cell=change @ cell,
        kinds=np.array([kind for kind, _ in chosen]),
        points=points @ turn.T,
        projectors=turn @ projectors @ back,
        owner=np.repeat(np.arange(len(chosen)), [position.multiplicity for position in positions]),
        rotations=turn @ np.concatenate([position.rotations for position in positions]) @ back,
        translations=np.concatenate([position.translations for position in positions]) @ turn.T,
        turn=turn,
        drawn=(group.rotations, group.translations),
    )


def plain_trial(cell: Floats, kinds: Ints, fractions: Floats, operations: tuple[Floats, Floats] = NO_SYMMETRY) -> Trial:
    """Take a structure as it is, every atom free.

    Parameters
    ----------
    cell
        (3, 3), rows, Å; a left-handed cell is turned into a right-handed one.
    kinds
        (n_atoms,) index of each atom's element.
    fractions
        (n_atoms, 3).
    operations
        Rotations and translations, in fractions of this cell, that the crystal has and has to keep.

    Returns
    -------
    Trial
        In the reduced cell, each atom an orbit of its own.
    """
    order = np.argsort(kinds, kind="stable")
    n = len(kinds)
    rotations, translations = operations
    if np.linalg.det(cell) < 0:
        cell, fractions, translations = -cell, -fractions, -translations
    change = reduction(cell)
    turn = np.rint(np.linalg.inv(change)).T
    unit = np.broadcast_to(np.eye(3), (n, 3, 3))
    return Trial(
        group=1,
        cell=change @ cell,
        kinds=kinds[order],
        points=fractions[order] @ turn.T,
        projectors=unit,
        owner=np.arange(n),
        rotations=unit,
        translations=np.zeros((n, 3)),
        turn=turn,
        drawn=(rotations, translations),
    )
