"""Errors while training goes on, and their table."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import torch

from acnn.train.loss import residuals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from acnn.nn.potential import Potential
    from acnn.train.dataset import Dataset

FEWEST_TO_CALIBRATE = 8  # held-out labels


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
        Errors in eV/atom, eV/Å and eV/atom (virial), and the ``score`` that early stopping minimises.
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
    errors = {name: sums[name] / max(1, counts[name]) for name in sums}
    errors["score"] = (errors["force_mae_ev_per_a"] + 5.0 * errors["energy_mae_ev_per_atom"]) / unit
    return errors


def calibration_factor(potential: Potential, data: Dataset, numbers: torch.Tensor, max_atoms: int) -> float:
    """Find by what factor the committee's energy spread must be multiplied to match the true errors.

    Parameters
    ----------
    potential
        The potential, with any present factor left out of account.
    data
        The labels.
    numbers
        Labels that were not learned.
    max_atoms
        Atoms evaluated together.

    Returns
    -------
    float
        Ratio of the typical error to the typical spread, between 0.2 and 20; 1 for one member or too few labels.
    """
    if potential.n_members == 1 or len(numbers) < FEWEST_TO_CALIBRATE:
        return 1.0
    errors, spreads = [], []
    for chosen in data.epoch(numbers, max_atoms, torch.Generator().manual_seed(0)):
        graph, targets = data.batch(chosen)
        with torch.no_grad():
            members = potential(graph).double()
        total = members.new_zeros((graph.n_systems, members.shape[1])).index_add(0, graph.system, members)
        errors.append((total.mean(1) - targets.energy).abs() / targets.counts)
        spreads.append(total.std(1) / targets.counts)
    ratio = float(torch.cat(errors).median() / (0.6745 * torch.cat(spreads).median().clamp(min=1e-12)))
    return min(20.0, max(0.2, ratio))


def history_csv(history: Sequence[dict[str, float]]) -> str:
    """Write the errors of a training as a table.

    Parameters
    ----------
    history
        One record per evaluation, all with the same keys; units are in the names.

    Returns
    -------
    str
        CSV with a header line; empty without records.
    """
    if not history:
        return ""
    names = list(history[0])
    lines = [",".join(names)]
    lines += [",".join(f"{record[name]:.8g}" for name in names) for record in history]
    return "\n".join(lines) + "\n"
