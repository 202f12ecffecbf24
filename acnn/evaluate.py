"""How good a potential is: predictions for many structures, and errors against labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from ase.units import GPa
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import spearmanr

from acnn.batch import Batch
from acnn.config import TrainConfig
from acnn.errors import DataError
from acnn.nn.graph import system_pieces
from acnn.nn.potential import FIXED
from acnn.train.labels import LabelSet, check_elements, read_labels
from acnn.train.units import other_scale, warn_of_other_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

    from acnn.nn.potential import Potential
    from acnn.train.label import Label

PREDICT_ATOMS = 8192  # atoms whose neighbours are held at a time
UPPER = [0, 1, 2, 4, 5, 8]  # of a flat 3x3
WORST = 0.1  # the part of the structures that the calibration asks about


@dataclass(slots=True)
class Predictions:
    """What a potential says about structures, in their order.

    Parameters
    ----------
    energies
        Total energies, shape (n,), eV.
    forces
        One array of shape (n_atoms, 3) per structure, eV/Å.
    stresses
        Shape (n, 3, 3), eV/Å^3, tension positive.
    pulay
        What labels of the settings it learned from add to these stresses (`acnn.nn.pulay`), shape (n, 3, 3), eV/Å^3.
    energy_spreads
        The committee's standard deviation, shape (n,), eV/atom.
    force_spreads
        One array of shape (n_atoms,) per structure, eV/Å; empty unless it was asked for.
    """

    energies: np.ndarray
    forces: list[np.ndarray]
    stresses: np.ndarray
    pulay: np.ndarray
    energy_spreads: np.ndarray
    force_spreads: list[np.ndarray]

    @property
    def labelled_stresses(self) -> np.ndarray:
        """The stresses that labels of these structures should have, shape (n, 3, 3), eV/Å^3."""
        total: np.ndarray = self.stresses + self.pulay
        return total


class Metrics(BaseModel):
    """Errors of a potential on labels; None where the labels do not say."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    n_structures: int = Field(description="Labels compared.")
    n_dropped: int = Field(description="Labels set aside because they cannot be compared.")
    n_with_forces: int = Field(description="Labels that hold forces.")
    n_with_stress: int = Field(description="Labels that hold a stress.")
    energy_mae_mev_per_atom: float = Field(description="Mean absolute error of the energy, meV/atom.")
    energy_rmse_mev_per_atom: float = Field(description="Root mean square error of the energy, meV/atom.")
    force_mae_ev_per_a: float | None = Field(description="Mean absolute error of force components, eV/Å.")
    force_rmse_ev_per_a: float | None = Field(description="Root mean square error of force components, eV/Å.")
    stress_mae_gpa: float | None = Field(
        description="Mean absolute error of the six stress components, with the Pulay stress that was learned, GPa."
    )
    stress_rmse_gpa: float | None = Field(description="Root mean square error of the same, GPa.")
    stress_mae_without_pulay_gpa: float | None = Field(
        description="Mean absolute error of the stress as the derivative of the potential's energy alone, GPa."
    )
    pulay_stress_gpa: float | None = Field(
        description="Mean Pulay stress here as learned: tension that stresses of labels hold and energies do not, GPa."
    )
    spread_mean_mev_per_atom: float = Field(description="Mean of the committee's energy spread, meV/atom.")
    spread_rank_correlation: float | None = Field(
        description="Spearman correlation of energy spread and true absolute error; None for one member or few labels."
    )
    spread_worst_found: float | None = Field(
        description="Part of the worst tenth of the errors that the tenth of largest spread holds."
    )
    spread_within: float | None = Field(
        description="Part of the energies whose error is below the spread; 0.68 if errors were normal."
    )
    force_spread_mean_ev_per_a: float | None = Field(description="Mean of the committee's force spread, eV/Å.")
    force_spread_rank_correlation: float | None = Field(
        description="Spearman correlation of spread and length of the error of all forces that no symmetry fixes."
    )
    force_spread_within: float | None = Field(
        description="Part of the forces whose error is shorter than the spread; 0.61 if errors were normal."
    )


def predict(potential: Potential, frames: Sequence[Atoms], *, spread: bool = False) -> Predictions:
    """Evaluate a potential on structures.

    Parameters
    ----------
    potential
        The potential.
    frames
        Any number of structures; not changed.
    spread
        Also compute the spread of the forces.

    Returns
    -------
    Predictions
        In the order of ``frames``.
    """
    energies, forces, stresses, pulay, spreads, force_spreads = [], [], [], [], [], []
    counts = [len(atoms) for atoms in frames]
    if 0 in counts:
        raise DataError(f"structure {counts.index(0)}: has no atoms")
    for begin, end in system_pieces(counts, PREDICT_ATOMS):
        batch = Batch.from_atoms(frames[begin:end], torch.float64, potential.device, first=begin)
        output = potential.compute(batch, spread=spread)
        energies.append(output.energy.cpu().numpy())
        stresses.append(output.stress.cpu().numpy())
        pulay.append(_pulay_stress(potential, batch).cpu().numpy())
        spreads.append(output.energy_spread.cpu().numpy())
        cuts = np.cumsum(counts[begin:end])[:-1]
        forces += np.split(output.forces.cpu().numpy(), cuts)
        if output.force_spread is not None:
            force_spreads += np.split(output.force_spread.cpu().numpy(), cuts)
    if not energies:
        return Predictions(np.zeros(0), [], np.zeros((0, 3, 3)), np.zeros((0, 3, 3)), np.zeros(0), [])
    return Predictions(
        np.concatenate(energies),
        forces,
        np.concatenate(stresses),
        np.concatenate(pulay),
        np.concatenate(spreads),
        force_spreads,
    )


def _pulay_stress(potential: Potential, batch: Batch) -> torch.Tensor:
    """Compute the Pulay stress that labels of a batch would show, shape (n_systems, 3, 3), eV/Å^3."""
    with torch.no_grad():
        species = potential.species_of(batch.numbers)
        virial: torch.Tensor = potential.pulay(species, batch.system, batch.n_systems, potential.scale)
        volumes: torch.Tensor = torch.linalg.det(batch.cells).abs()
        return virial.to(batch.cells) / volumes[:, None, None]


def evaluate(potential: Potential, frames: Sequence[Atoms], *, settings: TrainConfig | None = None) -> Metrics:
    """Compare a potential with labels.

    Parameters
    ----------
    potential
        The potential.
    frames
        Structures with a calculator that holds what is known of them.
    settings
        Limits beyond which labels are set aside, as in training; None: only broken labels are, and what looks like
        other units is pointed out.

    Returns
    -------
    Metrics
        Errors with units in their names.

    Raises
    ------
    DataError
        If no label can be compared.
    ModelError
        If the potential does not know an element; names the frame.
    """
    limits = settings or TrainConfig(max_force=1e9, max_energy=1e9, max_pressure_gpa=1e9)
    found = read_labels(frames, limits)
    labels = found.labels
    check_elements(labels, potential.elements)
    result = predict(potential, [label.atoms for label in labels], spread=potential.n_members > 1)
    sizes = np.array([len(label.atoms) for label in labels])
    energy = (result.energies - np.array([label.energy for label in labels])) / sizes
    if settings is None:  # with the limits of a training it is one that asks, which has warned itself
        _warn_of_other_units(result, found)
    force = _force_differences(result.forces, labels)
    stress, plain = (_stress_differences(s, labels) for s in (result.labelled_stresses, result.stresses))
    pulay = [own[0, 0] / GPa for own, label in zip(result.pulay, labels, strict=True) if label.stress is not None]
    energies = _calibration(result.energy_spreads, np.abs(energy))
    spread, length = _force_spreads(result, labels, FIXED * float(potential.calibration[1]))
    forces = _calibration(spread, length)
    return Metrics(
        n_structures=len(labels),
        n_dropped=sum(found.dropped.values()),
        n_with_forces=sum(label.forces is not None for label in labels),
        n_with_stress=sum(label.stress is not None for label in labels),
        energy_mae_mev_per_atom=1e3 * float(np.abs(energy).mean()),
        energy_rmse_mev_per_atom=1e3 * float(np.sqrt(np.square(energy).mean())),
        force_mae_ev_per_a=_mae(force),
        force_rmse_ev_per_a=_rmse(force),
        stress_mae_gpa=_mae(stress),
        stress_rmse_gpa=_rmse(stress),
        stress_mae_without_pulay_gpa=_mae(plain),
        pulay_stress_gpa=float(np.mean(pulay)) if pulay else None,
        spread_mean_mev_per_atom=1e3 * float(result.energy_spreads.mean()),
        spread_rank_correlation=energies.correlation,
        spread_worst_found=energies.worst_found,
        spread_within=energies.within,
        force_spread_mean_ev_per_a=float(spread.mean()) if spread.size else None,
        force_spread_rank_correlation=forces.correlation,
        force_spread_within=forces.within,
    )


def _warn_of_other_units(result: Predictions, found: LabelSet) -> None:
    """Log which labels have forces or stresses of another unit or sign than the rest."""
    labels = found.labels
    frames = [label.frame for label in labels]
    for name, known, predicted in (
        ("forces", [label.forces for label in labels], result.forces),
        ("stress", [label.stress for label in labels], result.labelled_stresses),
    ):
        sums = [
            (np.nan, np.nan, np.nan) if a is None else (np.vdot(a, a), np.vdot(b, b), np.vdot(a, b))
            for a, b in zip(known, predicted, strict=True)
        ]
        labelled, predicted_sizes, products = np.array(sums).T
        group = other_scale(labelled, predicted_sizes, products, found.beyond[name], most=np.inf)
        if group is not None:
            warn_of_other_scale(name, *group, frames)


def _force_differences(predicted: Sequence[np.ndarray], labels: Sequence[Label]) -> np.ndarray:
    """Give the differences of all force components that the labels have, eV/Å."""
    pairs = zip(predicted, labels, strict=True)
    known = [(force - label.forces).ravel() for force, label in pairs if label.forces is not None]
    return np.concatenate([np.zeros(0), *known])


def _stress_differences(predicted: np.ndarray, labels: Sequence[Label]) -> np.ndarray:
    """Give the differences of the six stress components that the labels have, GPa."""
    pairs = zip(predicted, labels, strict=True)
    known = [(stress - label.stress).reshape(9)[UPPER] / GPa for stress, label in pairs if label.stress is not None]
    return np.concatenate([np.zeros(0), *known])


def _mae(difference: np.ndarray) -> float | None:
    return float(np.abs(difference).mean()) if difference.size else None


def _rmse(difference: np.ndarray) -> float | None:
    return float(np.sqrt(np.square(difference).mean())) if difference.size else None


def _force_spreads(result: Predictions, labels: Sequence[Label], fixed: float) -> tuple[np.ndarray, np.ndarray]:
    """Give spread and length of the error, eV/Å, of each force that is known and free; nothing for one member."""
    spreads, lengths = [np.zeros(0)], [np.zeros(0)]
    for label, force, spread in zip(labels, result.forces, result.force_spreads, strict=False):
        if label.forces is not None:
            free = spread > fixed
            spreads.append(spread[free])
            lengths.append(np.linalg.norm(force - label.forces, axis=1)[free])
    return np.concatenate(spreads), np.concatenate(lengths)


class _Calibration(NamedTuple):
    """How well spreads tell errors; None where that cannot be asked."""

    correlation: float | None
    worst_found: float | None
    within: float | None


def _calibration(spread: np.ndarray, error: np.ndarray) -> _Calibration:
    """Say how well the spread tells where the error is large, and how large."""
    if len(error) < 10 or np.ptp(spread) == 0 or np.ptp(error) == 0:
        return _Calibration(None, None, None)
    correlation = float(spearmanr(spread, error).statistic)  # equal values share a rank
    n_worst = max(1, round(WORST * len(error)))
    uncertain, wrong = set(np.argsort(-spread)[:n_worst].tolist()), set(np.argsort(-error)[:n_worst].tolist())
    return _Calibration(correlation, len(uncertain & wrong) / n_worst, float((error < spread).mean()))
