"""The potential as an ASE calculator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from acnn import checkpoint
from acnn.batch import Batch
from acnn.errors import ConfigError
from acnn.nn.potential import Potential

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ase import Atoms


class ACNNCalculator(Calculator):
    """Give energies, forces, stresses and the committee's spread to ASE.

    Results are ``energy`` (eV), ``energies`` (eV, by atom), ``forces`` (eV/Å), ``stress`` (eV/Å^3, Voigt order, tension
    positive; of periodic structures), ``energy_spread`` (eV/atom) and, on request through `force_spread`,
    ``force_spread`` (eV/Å, by atom).

    Parameters
    ----------
    potential
        A potential, or the path of one.
    device
        Where it is evaluated.
    force_spread
        Also compute the spread of the forces, at the cost of a gradient for each member.

    Raises
    ------
    ConfigError
        If the device cannot be used.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012 - ASE's own name

    def __init__(
        self, potential: Potential | str | Path, *, device: torch.device | str = "cpu", force_spread: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # ASE has no types
        loaded = potential if isinstance(potential, Potential) else checkpoint.load(potential)
        try:
            self.potential = loaded.to(device)
        except (RuntimeError, AssertionError) as exc:  # torch's words for a device that is not there
            raise ConfigError(f"device: {device} cannot be used: {exc}") from exc
        self.force_spread = force_spread

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute everything at once, as ASE asks.

        Parameters
        ----------
        atoms
            The structure.
        properties
            What ASE wants now; everything is computed anyway.
        system_changes
            What changed since the last call.
        """
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]  # ASE has no types
        structure: Any = self.atoms
        batch = Batch.from_atoms([structure], torch.float64, self.potential.device)
        output = self.potential.compute(batch, spread=self.force_spread)
        results: dict[str, Any] = {
            "energy": float(output.energy[0]),
            "free_energy": float(output.energy[0]),
            "energies": output.atomic_energy.cpu().numpy(),
            "forces": output.forces.cpu().numpy(),
            "energy_spread": float(output.energy_spread[0]),
        }
        if structure.pbc.all():  # without periodicity there is no volume that a stress could be of
            results["stress"] = full_3x3_to_voigt_6_stress(output.stress[0].cpu().numpy())
        if output.force_spread is not None:
            results["force_spread"] = output.force_spread.cpu().numpy()
        self.results = results
