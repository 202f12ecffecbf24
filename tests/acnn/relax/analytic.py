"""A small analytic potential with every quantity in closed form: Morse pairs with a smooth cutoff."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import covalent_radii

from acnn.batch import Batch
from acnn.neighbors import Neighbors, build_neighbors


@dataclass
class Output:
    """Energies and their derivatives."""

    energy: torch.Tensor
    forces: torch.Tensor
    stress: torch.Tensor
    energy_spread: torch.Tensor


class Morse:
    """Depth 0.5 eV, minimum at the sum of covalent radii, smooth to zero at the cutoff."""

    def __init__(self, cutoff: float = 5.0, dtype: torch.dtype = torch.float64) -> None:
        self.cutoff = cutoff
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.radii = torch.as_tensor(np.nan_to_num(covalent_radii, nan=1.0), dtype=dtype)
        self.n_calls = 0

    def pair(self, r: torch.Tensor, r0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Energy and its derivative of each pair."""
        depth, alpha = 0.5, 1.6
        e = torch.exp(-alpha * (r - r0))
        v, dv = depth * (e * e - 2 * e), depth * alpha * (-2 * e * e + 2 * e)
        x = (r / self.cutoff).clamp(max=1.0)
        f, df = (1 - x * x) ** 3, -6 * x / self.cutoff * (1 - x * x) ** 2
        return v * f, dv * f + v * df

    def compute(self, batch: Batch, neighbors: Neighbors | None = None) -> Output:
        """Evaluate a batch."""
        self.n_calls += 1
        neighbors = neighbors or build_neighbors(batch, self.cutoff)
        vectors = neighbors.vectors(batch)
        r = vectors.norm(dim=2).masked_fill(~neighbors.mask, self.cutoff)
        r0 = self.radii[batch.numbers][:, None] + self.radii[batch.numbers[neighbors.index]]
        v, dv = self.pair(r, r0)
        v, dv = v.masked_fill(~neighbors.mask, 0.0), dv.masked_fill(~neighbors.mask, 0.0)
        n = batch.cells.shape[0]
        energy = torch.zeros(n, dtype=self.dtype).index_add(0, batch.system, 0.5 * v.sum(1))
        pull = dv[:, :, None] * vectors / r[:, :, None]
        virial = 0.5 * torch.einsum("nka,nkb->nab", vectors, pull)
        stress = torch.zeros((n, 3, 3), dtype=self.dtype).index_add(0, batch.system, virial)
        stress = stress / torch.linalg.det(batch.cells).abs()[:, None, None]
        return Output(energy, pull.sum(1), stress, torch.zeros(n, dtype=self.dtype))


class MorseCalculator(Calculator):
    """The same potential for ASE."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, potential: Morse) -> None:
        super().__init__()
        self.potential = potential
        self.n_calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):  # noqa: D102
        super().calculate(atoms, properties, system_changes)
        self.n_calls += 1
        batch = Batch.from_atoms([self.atoms], self.potential.dtype, "cpu")
        output = self.potential.compute(batch)
        stress = output.stress[0].double().numpy()
        self.results = {
            "energy": float(output.energy[0]),
            "forces": output.forces.double().numpy(),
            "stress": stress.reshape(-1)[[0, 4, 8, 5, 2, 1]],
        }


def random_crystals(seed: int, n: int, n_atoms: tuple[int, int] = (2, 12), symbols: str = "AlCu") -> list[Atoms]:
    """Random crystals with no two atoms closer than 1.7 Å, at about 16 Å^3 per atom."""
    rng = np.random.default_rng(seed)
    pair = [symbols[:2], symbols[2:]]
    frames: list[Atoms] = []
    while len(frames) < n:
        count = int(rng.integers(n_atoms[0], n_atoms[1] + 1))
        cell = np.eye(3) + rng.normal(0, 0.2, (3, 3))
        cell *= np.cbrt(16.0 * count / abs(np.linalg.det(cell)))
        scaled = [rng.random(3)]
        while len(scaled) < count:
            trial = rng.random(3)
            delta = np.array(scaled) - trial
            if np.linalg.norm((delta - np.round(delta)) @ cell, axis=1).min() > 1.7:
                scaled.append(trial)
        kinds = [pair[k] for k in rng.integers(0, 2, count)]
        atoms = Atoms(kinds, cell=cell, scaled_positions=scaled, pbc=True)
        if not build_neighbors(Batch.from_atoms([atoms], torch.float64, "cpu"), 1.7).mask.any():
            frames.append(atoms)
    return frames
