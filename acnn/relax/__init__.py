"""Batched relaxation of crystals, positions and cell together, at a pressure."""

from acnn.relax.relaxer import relax
from acnn.relax.result import FailureReason, Relaxed, RelaxStatus

__all__ = ["FailureReason", "RelaxStatus", "Relaxed", "relax"]
