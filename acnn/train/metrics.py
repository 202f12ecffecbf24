"""Errors while training goes on, and their table."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from acnn.nn.graph import differentiate, force_deviation
from acnn.nn.potential import FIXED
from acnn.train.loss import residuals
from acnn.train.units import other_scale

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from acnn.nn.potential import Potential
    from acnn.train.dataset import Dataset

FEWEST_TO_CALIBRATE = 8  # held-out labels
NORMAL_MEDIAN = 0.6745  # of |x| for a standard normal x
VECTOR_MEDIAN = 0.8880  # of |x| for a normal vector of three components with a variance of one in all
COLUMNS = ("step", "seconds", "loss", "energy_mae_ev_per_atom", "force_mae_ev_per_a", "virial_mae_ev_per_atom")
MOST_RECORDS = 200  # evaluations that a checkpoint keeps


def measure(potential: Potential, data: Dataset, numbers: torch.Tensor, max_atoms: int) -> dict[str, float]:
    """Measure mean absolute errors of the committee's mean on some labels.

    Parameters
    ----------
    potential
        The potential.
    data
        The labels.
    numbers
        Which of them.
    max_atoms
        Atoms evaluated together.

    Returns
    -------
    dict
        Errors in eV/atom, eV/Å and eV/atom (virial) of what the labels hold, and the ``score`` that early stopping
        minimises.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    unit = float(potential.scale)
    for chosen in data.epoch(numbers, max_atoms, torch.Generator().manual_seed(0)):
        graph, targets = data.batch(chosen)
        misfits = residuals(potential, graph, targets, None, training=False)
        parts = {
            "energy_mae_ev_per_atom": (misfits.energy.detach()[:, 0], torch.isfinite(targets.energy)),
            "force_mae_ev_per_a": (misfits.force.detach(), torch.isfinite(targets.forces)),
            "virial_mae_ev_per_atom": (misfits.virial.detach(), torch.isfinite(targets.virial)),
        }
        for name, (misfit, known) in parts.items():
            sums[name] += float(misfit[known].abs().sum()) * unit
            counts[name] += int(known.sum())
    errors = {name: sums[name] / counts[name] for name in sums if counts[name]}
    errors["score"] = (errors.get("force_mae_ev_per_a", 0.0) + 5.0 * errors["energy_mae_ev_per_atom"]) / unit
    return errors


def calibration_factors(
    potential: Potential, data: Dataset, numbers: torch.Tensor, max_atoms: int
) -> tuple[float | None, float | None] | None:
    """Find by what factors the committee's spreads must be multiplied to match the true errors.

    Parameters
    ----------
    potential
        The potential, with any present factors left out of account.
    data
        The labels.
    numbers
        Labels that were not learned.
    max_atoms
        Atoms evaluated together.

    Returns
    -------
    tuple
        Of energies and of forces: ratio of the typical error to that of a normal distribution as wide as the typical
        spread, between 0.2 and 20; None where fewer than eight labels say. None for one member or too few labels.
    """
    if potential.n_members == 1 or len(numbers) < FEWEST_TO_CALIBRATE:
        return None
    energies, forces = _Ratio(NORMAL_MEDIAN), _Ratio(VECTOR_MEDIAN)
    for chosen in data.epoch(numbers, max_atoms, torch.Generator().manual_seed(0)):
        graph, targets = data.batch(chosen)
        graph.vectors.requires_grad_(True)  # noqa: FBT003 - the signature of torch
        members = potential(graph)
        found = differentiate(graph, members.sum(0))[0].double()
        exact = members.detach().double()
        total = exact.new_zeros((graph.n_systems, exact.shape[1])).index_add(0, graph.system, exact)
        single = torch.arange(graph.n_systems)
        energies.add((total.mean(1) - targets.energy).abs() / targets.counts, total.std(1) / targets.counts, single)
        forces.add((found.mean(0) - targets.forces).norm(dim=1), force_deviation(found), graph.system)
    return energies.factor(), forces.factor()


def calibrate(potential: Potential, data: Dataset, numbers: torch.Tensor, max_atoms: int) -> None:
    """Bring the committee's spreads to the errors of labels that were not learned; where too few tell they stay.

    Parameters
    ----------
    potential
        The potential; its calibration is changed.
    data
        The labels.
    numbers
        Labels that were not learned.
    max_atoms
        Atoms evaluated together.
    """
    for place, factor in enumerate(calibration_factors(potential, data, numbers, max_atoms) or ()):
        if factor is not None:
            potential.calibration[place] = factor


def find_other_units(
    potential: Potential, data: Dataset, max_atoms: int, beyond: Mapping[str, int]
) -> dict[str, tuple[np.ndarray, float]]:
    """Find labels with forces or stresses of another unit or sign than the rest, as far as the potential can tell.

    Few such labels are outliers to the loss, so that the potential learns the others and shows what is wrong.

    Parameters
    ----------
    potential
        The potential.
    data
        The labels.
    max_atoms
        Atoms evaluated together.
    beyond
        Count of further labels that were set aside because their "forces" or "stress" are too large.

    Returns
    -------
    dict
        By "forces" or "stress": numbers of such labels, and the factor, as `other_scale` gives them.
    """
    n = len(data.counts)
    found = {name: np.zeros((3, n)) for name in ("forces", "stress")}
    for chosen in data.epoch(torch.arange(n), max_atoms, torch.Generator().manual_seed(0)):
        graph, targets = data.batch(chosen, whole=True)
        misfits = residuals(potential, graph, targets, None, training=False)
        unit, rows = float(potential.scale), targets.number.cpu().numpy()
        virial = targets.virial / targets.counts[:, None, None]
        for name, known, misfit, system in (
            ("forces", targets.forces, misfits.force, graph.system),
            ("stress", virial.flatten(1), misfits.virial.flatten(1), torch.arange(graph.n_systems)),
        ):
            label, learned = known.double(), known.double() + unit * misfit.detach().double()
            for place, product in enumerate((label * label, learned * learned, label * learned)):
                total = torch.zeros(graph.n_systems, dtype=torch.float64).index_add(0, system, product.sum(1))
                found[name][place, rows] = total.numpy()
    groups = {name: other_scale(sums[0], sums[1], sums[2], beyond[name]) for name, sums in found.items()}
    return {name: group for name, group in groups.items() if group is not None}


class _Ratio:
    """Typical error over typical spread, robust to a few wild labels."""

    def __init__(self, median: float) -> None:
        self.median = median  # size of the error, in spreads, that half of a normal distribution stays below
        self.errors: list[torch.Tensor] = []
        self.spreads: list[torch.Tensor] = []
        self.n_labels = 0

    def add(self, errors: torch.Tensor, spreads: torch.Tensor, system: torch.Tensor) -> None:
        """Note some errors, NaN where nothing is known, their spreads and labels, but for what symmetry fixes."""
        known = torch.isfinite(errors) & (spreads > FIXED)
        self.n_labels += int(torch.bincount(system[known]).count_nonzero())
        self.errors.append(errors[known])
        self.spreads.append(spreads[known])

    def factor(self) -> float | None:
        """Give the bounded ratio; None if too few labels tell."""
        if self.n_labels < FEWEST_TO_CALIBRATE:
            return None
        errors, spreads = torch.cat(self.errors), torch.cat(self.spreads)
        ratio = float(errors.median() / (self.median * spreads.median()))
        return min(20.0, max(0.2, ratio))


def history_csv(history: Sequence[dict[str, float]]) -> str:
    """Write the errors of a training as a table.

    Parameters
    ----------
    history
        One record per evaluation; units are in the names. Later ones may lack what set-aside labels alone told.

    Returns
    -------
    str
        CSV with a header line; empty without records.
    """
    if not history:
        return ""
    names = [name for name in COLUMNS if name in history[0]]
    lines = [",".join(names)]
    lines += [",".join(f"{record.get(name, np.nan):.8g}" for name in names) for record in history]
    return "\n".join(lines) + "\n"


def thinned(history: Sequence[dict[str, float]]) -> dict[str, list[float | None]]:
    """Give the errors of a training as columns for a checkpoint: the same for the same training, however long it took.

    Parameters
    ----------
    history
        One record per evaluation.

    Returns
    -------
    dict
        By name without the seconds, six digits, None for what is not finite; of a long training every few evaluations,
        counted from the last.
    """
    every = -(-len(history) // MOST_RECORDS) or 1
    kept = history[::-1][::every][::-1]
    names = [name for name in COLUMNS if history and name in history[0] and name != "seconds"]
    numbers = {name: [record.get(name, np.nan) for record in kept] for name in names}
    return {name: [float(f"{x:.6g}") if np.isfinite(x) else None for x in column] for name, column in numbers.items()}
