"""The potential as a TorchSim model; needs the optional package ``torch-sim-atomistic``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from acnn import checkpoint
from acnn.batch import Batch
from acnn.errors import ConfigError, DataError
from acnn.nn.potential import Potential

try:
    from torch_sim.models.interface import ModelInterface
except ImportError as exc:
    raise ConfigError("acnn.torchsim needs TorchSim: pip install 'hullseeker[torchsim]'") from exc

if TYPE_CHECKING:
    from pathlib import Path


class ACNNModel(ModelInterface):  # type: ignore[misc]  # TorchSim is optional and may be absent where types are checked
    """Give energies, forces and stresses to TorchSim.

    Parameters
    ----------
    potential
        A potential, or the path of one.
    device
        Where it is evaluated.
    """

    def __init__(self, potential: Potential | str | Path, *, device: torch.device | str = "cpu") -> None:
        super().__init__()
        loaded = potential if isinstance(potential, Potential) else checkpoint.load(potential)
        self.potential = loaded.to(device)
        self._device = torch.device(device)
        self._dtype = torch.float64
        self._compute_stress = True
        self._compute_forces = True

    def forward(self, state: Any, **others: object) -> dict[str, torch.Tensor]:  # noqa: ANN401, ARG002 - a SimState
        """Evaluate a state.

        Parameters
        ----------
        state
            A TorchSim state, periodic in all directions.
        **others
            What other models want; without effect.

        Returns
        -------
        dict
            ``energy`` (n_systems,), eV; ``forces`` (n_atoms, 3), eV/Å; ``stress`` (n_systems, 3, 3), eV/Å^3, tension
            positive; ``energy_spread`` (n_systems,), eV/atom.

        Raises
        ------
        DataError
            If a structure is not periodic in all directions.
        """
        if not bool(torch.as_tensor(state.pbc).all()):
            raise DataError(f"expected periodicity in all directions, got {state.pbc}; TorchSim's cells have no other")
        batch = Batch(
            state.atomic_numbers.to(torch.int64),
            state.positions.detach(),
            state.row_vector_cell.detach(),
            state.system_idx,
        )
        output = self.potential.compute(batch)
        return {
            "energy": output.energy.to(batch.positions.dtype),
            "forces": output.forces,
            "stress": output.stress,
            "energy_spread": output.energy_spread,
        }
