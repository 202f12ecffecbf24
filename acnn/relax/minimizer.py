"""One step at a time for every structure in flight: propose, judge, remember."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from acnn.relax.lbfgs import History

if TYPE_CHECKING:
    from acnn.config import RelaxConfig

FIRST_CURVATURE = 0.02
"""Inverse curvature of the very first step, Å^2/eV: that of a stiff bond."""

SUFFICIENT = 1e-4
"""Part of the decrease promised by the slope that a step must deliver."""

CLOSE = 10.0
"""Enthalpies that differ by less than this times their rounding error are told apart by their gradients."""

IDLE = 1e-4
"""A step this much shorter than a stiff bond's answer to the largest force gets nowhere, accepted or not."""

LARGEST_REJECTIONS = 12
"""Rejected or idle steps in a row after which a structure is given up as stalled."""


@dataclass(frozen=True)
class Trial:
    """Enthalpies and gradients at the trial points of some slots.

    Attributes
    ----------
    enthalpy
        Enthalpies, shape (n,), eV.
    noise
        Rounding error of the enthalpies, shape (n,), eV.
    gradient
        Gradients, shape (n, rows, 3), eV/Å.
    usable
        False where the guards forbid the point, shape (n,).
    """

    enthalpy: torch.Tensor
    noise: torch.Tensor
    gradient: torch.Tensor
    usable: torch.Tensor


class Minimizer:
    """Batched L-BFGS with a trust radius and a guaranteed descent of the enthalpy.

    A trial that does not lower the enthalpy enough is rejected: its curvature is kept, the radius shrinks, and a
    new direction starts from the last accepted point. Near a minimum rounding decides which of two enthalpies is the
    lower; there their difference is taken from the gradients at both ends.

    Parameters
    ----------
    n_slots
        Structures held.
    width
        Rows of a point.
    settings
        Step length and history.
    device
        Where the tensors live.
    """

    def __init__(self, n_slots: int, width: int, settings: RelaxConfig, device: torch.device) -> None:
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros((n_slots, *shape), dtype=torch.float64, device=device)

        self.max_step = settings.max_step
        self.point, self.gradient, self.trial = zeros(width, 3), zeros(width, 3), zeros(width, 3)
        self.enthalpy, self.start_enthalpy, self.slope, self.radius = zeros(), zeros(), zeros(), zeros()
        self.rejections = torch.zeros(n_slots, dtype=torch.int64, device=device)
        self.started = torch.zeros(n_slots, dtype=torch.bool, device=device)
        self.history = History(n_slots, settings.history, 3 * width, device)

    def start(self, rows: torch.Tensor, point: torch.Tensor) -> None:
        """Begin new structures.

        Parameters
        ----------
        rows
            Slots, shape (n,).
        point
            Their starting points, shape (n, rows, 3).
        """
        self.trial[rows] = point
        self.point[rows] = point
        self.gradient[rows] = 0.0
        self.slope[rows] = 0.0
        self.radius[rows] = self.max_step
        self.rejections[rows] = 0
        self.started[rows] = False
        self.history.clear(rows)

    def judge(self, rows: torch.Tensor, trial: Trial) -> torch.Tensor:
        """Accept or reject the trial points.

        Parameters
        ----------
        rows
            Slots, shape (n,).
        trial
            What the potential said there.

        Returns
        -------
        torch.Tensor
            True where the trial became the new point, shape (n,).
        """
        step = (self.trial[rows] - self.point[rows]).flatten(1)
        change = (trial.gradient - self.gradient[rows]).flatten(1)
        rise = trial.enthalpy - self.enthalpy[rows]
        by_gradients = self.slope[rows] + 0.5 * (step * change).sum(1)
        rise = torch.where(rise.abs() < CLOSE * trial.noise, by_gradients, rise)
        lower = rise <= SUFFICIENT * self.slope[rows]
        lower &= trial.enthalpy <= self.start_enthalpy[rows]
        accept = trial.usable & (lower | ~self.started[rows])
        learn = trial.usable & self.started[rows]
        self.history.add(rows[learn], step[learn], change[learn])
        self._adapt(rows, accept, rise, step)
        taken = rows[accept]
        first = accept & ~self.started[rows]
        self.start_enthalpy[rows[first]] = trial.enthalpy[first]
        self.point[taken] = self.trial[taken]
        self.gradient[taken] = trial.gradient[accept]
        self.enthalpy[taken] = trial.enthalpy[accept]
        self.started[taken] = True
        return accept

    def _adapt(self, rows: torch.Tensor, accept: torch.Tensor, rise: torch.Tensor, step: torch.Tensor) -> None:
        """Widen the trust radius after a good step that used it, shrink it after a rejected one."""
        longest = _rows(step).norm(dim=2).amax(1)
        radius = self.radius[rows]
        good = accept & (rise < 0.25 * self.slope[rows])
        radius = torch.where(good, (2.0 * radius).clamp(max=self.max_step), radius)
        radius = torch.where(accept, radius, 0.4 * torch.minimum(longest, radius))
        self.radius[rows] = torch.where(self.started[rows] | accept, radius, self.radius[rows])
        moved = accept & (longest >= IDLE * FIRST_CURVATURE * self.gradient[rows].norm(dim=2).amax(1))
        self.rejections[rows] = torch.where(moved, 0, self.rejections[rows] + 1)

    def stalled(self, rows: torch.Tensor) -> torch.Tensor:
        """Tell which structures have had too many rejected or idle steps in a row, shape (n,)."""
        return self.rejections[rows] >= LARGEST_REJECTIONS

    def propose(self, rows: torch.Tensor) -> None:
        """Choose the next trial points.

        Parameters
        ----------
        rows
            Slots, shape (n,).
        """
        gradient = self.gradient[rows].flatten(1)
        forget = rows[self.rejections[rows] == LARGEST_REJECTIONS // 2]
        self.history.clear(forget)
        step = self.history.direction(rows, gradient, FIRST_CURVATURE)
        slope = (step * gradient).sum(1)
        steepest = -FIRST_CURVATURE * gradient
        uphill = ~(slope < -1e-6 * step.norm(dim=1) * gradient.norm(dim=1))
        step = torch.where(uphill[:, None], steepest, step)
        longest = _rows(step).norm(dim=2).amax(1)
        step = step * (self.radius[rows] / longest.clamp(min=1e-300)).clamp(max=1.0)[:, None]
        self.slope[rows] = (step * gradient).sum(1)
        self.trial[rows] = self.point[rows] + _rows(step)


def _rows(step: torch.Tensor) -> torch.Tensor:
    """Show flat steps as rows of three, shape (n, rows, 3)."""
    return step.view(len(step), step.shape[1] // 3, 3)
