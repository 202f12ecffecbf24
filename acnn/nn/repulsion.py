"""Short-range repulsion: colliding atoms are always pushed apart, whatever the network extrapolates."""

from __future__ import annotations

import numpy as np
import torch
from ase.data import covalent_radii
from torch import nn

COULOMB = 14.399645  # e^2 / (4 pi eps0), eV Å
ZBL_LENGTH = 0.46850  # 0.8854 Bohr radii, Å
ZBL_WEIGHTS = (0.18175, 0.50986, 0.28022, 0.02817)
ZBL_RATES = (3.19980, 0.94229, 0.40290, 0.20162)
DEFAULT_ONSET = 0.75  # of the sum of covalent radii, where no data say better
LATEST_ONSET = 0.95  # of the cutoff: beyond it the repulsion of a pair would end at once
WALL = 1000.0  # eV: steep enough to beat any slope that the bounded network part can have
CLAMP = 0.9  # of the onset: the network sees no shorter distance than this


class Repulsion(nn.Module):
    """Screened nuclear repulsion (ZBL) and a steep wall, both exactly zero beyond an onset distance.

    The onset of a pair of elements is the shortest distance in the training data, so the repulsion never disturbs
    what was learned; for a pair that the data do not hold it is a fraction of the sum of covalent radii. Value,
    slope and curvature are continuous at the onset. Below it the network is given a distance that stops shrinking
    (`soften`), so that only the repulsion depends on how close two atoms are.

    Parameters
    ----------
    numbers
        Atomic numbers of the potential's elements.
    cutoff
        Distance up to which neighbours are known, Å.
    """

    onset: torch.Tensor
    charges: torch.Tensor
    lengths: torch.Tensor

    def __init__(self, numbers: list[int], cutoff: float) -> None:
        super().__init__()
        z = torch.tensor(numbers, dtype=torch.float64)
        power = z**0.23
        self.register_buffer("charges", COULOMB * z[:, None] * z[None, :], persistent=False)
        self.register_buffer("lengths", ZBL_LENGTH / (power[:, None] + power[None, :]), persistent=False)
        self.register_buffer("onset", torch.tensor(default_onset(numbers, cutoff), dtype=torch.float64))

    def soften(self, distances: torch.Tensor, onset: torch.Tensor) -> torch.Tensor:
        """Keep the distance that the network sees from falling below a floor.

        Parameters
        ----------
        distances
            Distances, shape (n_atoms, K), Å.
        onset
            Onset for each pair, same shape, Å.

        Returns
        -------
        torch.Tensor
            The distance itself beyond the onset; between, a C2 curve that levels off at the floor.
        """
        width = (1.0 - CLAMP) * 2.0 * onset
        t = ((distances - onset) / width).clamp(min=-1.0, max=0.0)
        # s(0) = 0, s'(0) = 1, s''(0) = 0, and s' = s'' = 0 at t = -1, where s = -1/2
        shift = t - t**3 - 0.5 * t**4
        return torch.where(distances < onset, onset + width * shift, distances)

    def forward(self, distances: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Compute each atom's half of its pair repulsions.

        Parameters
        ----------
        distances
            Distances, shape (n_atoms, K), Å.
        first
            Element of the atoms, shape (n_atoms, 1).
        second
            Element of the neighbours, shape (n_atoms, K).

        Returns
        -------
        torch.Tensor
            Energies, shape (n_atoms,), eV.
        """
        onset = self.onset[first, second]
        x = (distances / onset).clamp(max=1.0)
        rest = 1.0 - x
        near = x * onset
        scaled = near / self.lengths[first, second]
        screening = sum(w * torch.exp(-k * scaled) for w, k in zip(ZBL_WEIGHTS, ZBL_RATES, strict=True))
        zbl = self.charges[first, second] / near * screening
        wall = WALL / x
        return 0.5 * ((zbl + wall) * rest**3).sum(-1)


def default_onset(numbers: list[int], cutoff: float) -> np.ndarray:
    """Guess from covalent radii where the repulsion starts, shape (n_elements, n_elements), within the cutoff; Å."""
    radii = np.array([covalent_radii[number] for number in numbers])
    onset: np.ndarray = np.minimum(DEFAULT_ONSET * (radii[:, None] + radii[None, :]), LATEST_ONSET * cutoff)
    return onset
