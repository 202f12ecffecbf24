"""What the steps make of energies that are rougher than they claim."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from analytic import Morse, Output, random_crystals

from acnn.config import RelaxConfig
from acnn.relax import FailureReason, RelaxStatus, relax

if TYPE_CHECKING:
    from acnn.batch import Batch
    from acnn.neighbors import Neighbors


class Rough(Morse):
    """Morse in float32 with energies off by up to `roughness` times their rounding error, by the positions alone."""

    def __init__(self, roughness: float) -> None:
        super().__init__(dtype=torch.float32)
        self.roughness = roughness

    def compute(self, batch: Batch, neighbors: Neighbors | None = None) -> Output:
        """Evaluate a batch."""
        output = super().compute(batch, neighbors)
        mixed = batch.positions.double() @ torch.tensor([1.0, 1.3, 1.7], dtype=torch.float64)
        wave = torch.sin(1e7 * torch.zeros(len(output.energy), dtype=torch.float64).index_add(0, batch.system, mixed))
        error = 4.0 * torch.finfo(torch.float32).eps * wave.float()
        output.energy = output.energy * (1.0 + self.roughness * error)
        return output


def test_steps_go_on_where_rounding_hides_the_descent():
    for result in relax(random_crystals(8, 60, (4, 4)), Rough(10.0), RelaxConfig(), pressure_gpa=50.0):
        assert result.status is RelaxStatus.CONVERGED


@pytest.mark.parametrize("pressure_gpa", [0.0, 50.0])
def test_no_structure_idles_between_steps_too_short_to_matter(pressure_gpa: float):
    results = list(relax(random_crystals(8, 30, (4, 4)), Rough(200.0), RelaxConfig(), pressure_gpa=pressure_gpa))
    assert {result.reason for result in results} <= {"", FailureReason.STALLED}
