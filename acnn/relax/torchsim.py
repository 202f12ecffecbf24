"""Any TorchSim model as the potential of a relaxation; needs the optional package ``torch-sim-atomistic``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from ase.data import atomic_masses

from acnn.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from acnn.batch import Batch
    from acnn.neighbors import Neighbors

GUARD_CUTOFF = 4.0
"""Distance up to which pairs are watched by the guards, Å; the model searches its own neighbours."""


@dataclass(frozen=True)
class TorchSimOutput:
    """What a TorchSim model says about a batch.

    Attributes
    ----------
    energy
        Shape (n_systems,), eV.
    forces
        Shape (n_atoms, 3), eV/Å.
    stress
        Shape (n_systems, 3, 3), eV/Å^3, tension positive.
    energy_spread
        Shape (n_systems,), eV/atom; zero where the model gives none.
    """

    energy: torch.Tensor
    forces: torch.Tensor
    stress: torch.Tensor
    energy_spread: torch.Tensor


class TorchSimPotential:
    """Let a TorchSim model, such as a foundation potential, drive `acnn.relax.relax`.

    Parameters
    ----------
    model
        A TorchSim model that computes forces and stresses.
    cutoff
        Distance up to which pairs are watched by the guards, Å.

    Raises
    ------
    ConfigError
        If TorchSim is not installed.
    ModelError
        If the model computes no stresses.
    """

    def __init__(self, model: Any, cutoff: float = GUARD_CUTOFF) -> None:  # noqa: ANN401 - TorchSim is optional
        try:
            self._state = import_module("torch_sim").SimState
        except ImportError as error:
            raise ConfigError("acnn.relax.torchsim needs TorchSim: pip install 'hullseeker[torchsim]'") from error
        if not model.compute_stress or not model.compute_forces:
            raise ModelError(f"{type(model).__name__}: expected a model that computes forces and stresses")
        self.model = model
        self.cutoff = cutoff
        self.dtype: torch.dtype = model.dtype
        self.device = torch.device(model.device)
        self._masses = torch.as_tensor(atomic_masses, dtype=self.dtype, device=self.device)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Give the model's weights, so that results kept on disk are told from those of another model.

        Returns
        -------
        dict[str, torch.Tensor]
            Weights by name; empty where the model has none.
        """
        state = getattr(self.model, "state_dict", None)
        return dict(state()) if state is not None else {}

    def compute(self, batch: Batch, neighbors: Neighbors | None = None) -> TorchSimOutput:  # noqa: ARG002 - the model has its own
        """Evaluate all structures of a batch.

        Parameters
        ----------
        batch
            Structures in the model's floating type and on its device.
        neighbors
            Not used.

        Returns
        -------
        TorchSimOutput
            Energies, forces and stresses.
        """
        state = self._state(
            positions=batch.positions,
            masses=self._masses[batch.numbers],
            cell=batch.cells.mT.contiguous(),
            pbc=True,
            atomic_numbers=batch.numbers,
            system_idx=batch.system,
        )
        found = self.model(state)
        spread = found.get("energy_spread")
        return TorchSimOutput(
            energy=found["energy"].detach(),
            forces=found["forces"].detach(),
            stress=found["stress"].detach(),
            energy_spread=torch.zeros_like(found["energy"]) if spread is None else spread.detach(),
        )


def load(place: str, device: torch.device) -> TorchSimPotential:
    """Make a potential by calling a function that gives a TorchSim model.

    Parameters
    ----------
    place
        ``module:function``; called with ``device=``, and free in the model's floating type.
    device
        Where the model shall live.

    Returns
    -------
    TorchSimPotential
        The model as a potential.

    Raises
    ------
    ConfigError
        If there is no such function.
    """
    module, _, name = place.partition(":")
    try:
        factory = getattr(import_module(module), name)
        model = factory(device=device)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"torchsim:{place}: expected torchsim:MODULE:FUNCTION that can be imported and called with device=: {error}"
        ) from error
    return TorchSimPotential(model)
