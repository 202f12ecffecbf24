"""One attempt at a crystal: a space group, its occupied positions, a lattice and starting coordinates."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csp.generate.lattice import random_lattice, reduction
from csp.generate.wyckoff import SpaceGroup

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(eq=False)
class Trial:
    """A crystal by its free coordinates, in the reduced primitive cell.

    Parameters
    ----------
    group
        Number of the space group.
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
    """

    group: int
    cell: Floats
    kinds: Ints
    points: Floats
    projectors: Floats
    owner: Ints
    rotations: Floats
    translations: Floats

    def fractions(self) -> Floats:
        """Give the fractional coordinates of all atoms, shape (n_atoms, 3), within [0, 1)."""
        spread = (self.rotations @ self.points[self.owner][..., None])[..., 0] + self.translations
        wrapped: Floats = spread % 1.0 % 1.0  # twice: a tiny negative number wraps to 1 at first
        return wrapped


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
    )


def plain_trial(cell: Floats, kinds: Ints, fractions: Floats) -> Trial:
    """Take a structure as it is, every atom free.

    Parameters
    ----------
    cell
        (3, 3), rows, Å; a left-handed cell is turned into a right-handed one.
    kinds
        (n_atoms,) index of each atom's element.
    fractions
        (n_atoms, 3).

    Returns
    -------
    Trial
        Without symmetry, in the reduced cell.
    """
    order = np.argsort(kinds, kind="stable")
    n = len(kinds)
    if np.linalg.det(cell) < 0:
        cell, fractions = -cell, -fractions
    change = reduction(cell)
    unit = np.broadcast_to(np.eye(3), (n, 3, 3))
    points = fractions[order] @ np.rint(np.linalg.inv(change))
    return Trial(1, change @ cell, kinds[order], points, unit, np.arange(n), unit, np.zeros((n, 3)))
