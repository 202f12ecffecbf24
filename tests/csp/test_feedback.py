"""What a search turns back on its own settings stays within bounds and goes the right way."""

import numpy as np
import pytest

from csp.config import AdvanceConfig, SelectConfig
from csp.errors import DataError
from csp.feedback import MIN_NEAR_LABELS, labels_left, next_bonds_scale, next_n_structures, walk_forward_near_hull

SELECT = SelectConfig()
ADVANCE = AdvanceConfig()
FEW, MANY = SELECT.unsafe_fractions


@pytest.mark.parametrize(
    ("fraction", "direction"),
    [(0.0, 1), (FEW / 2, 1), (FEW, 0), ((FEW + MANY) / 2, 0), (MANY, 0), (MANY * 1.1, -1), (1.0, -1)],
)
def test_many_unsafe_lower_the_scale_and_few_raise_it(fraction: float, direction: int) -> None:
    expected = 0.7 + direction * SELECT.bonds_scale_step
    assert next_bonds_scale(0.7, fraction, SELECT) == pytest.approx(expected)


@pytest.mark.parametrize(("fraction", "bound"), [(0.0, 1), (1.0, 0)])
def test_the_scale_stays_within_its_bounds(fraction: float, bound: int) -> None:
    scale = SELECT.bonds_scale
    for _ in range(100):
        scale = next_bonds_scale(scale, fraction, SELECT)
    assert scale == SELECT.bonds_scale_bounds[bound]


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_an_impossible_fraction_is_an_error(fraction: float) -> None:
    with pytest.raises(DataError, match="unsafe fraction between 0 and 1"):
        next_bonds_scale(0.7, fraction, SELECT)


def test_generations_grow_only_when_the_model_predicts() -> None:
    limit = ADVANCE.grow_below_mev
    assert next_n_structures(500, None, ADVANCE) == 500
    assert next_n_structures(500, limit * 1.01, ADVANCE) == 500
    assert next_n_structures(500, limit, ADVANCE) == 500 * ADVANCE.growth
    assert next_n_structures(ADVANCE.max_structures - 1, 1.0, ADVANCE) == ADVANCE.max_structures
    assert next_n_structures(ADVANCE.max_structures + 7, 1.0, ADVANCE) == ADVANCE.max_structures + 7  # never fewer


def test_the_label_budget_is_never_overdrawn() -> None:
    assert labels_left(20, 1000, ADVANCE) == 20
    budget = AdvanceConfig(max_labels=100)
    assert [labels_left(20, spent, budget) for spent in (0, 80, 90, 100, 130)] == [20, 20, 10, 0, 0]


def test_only_labels_near_the_hull_count() -> None:
    heights = np.array([0.01] * 10 + [1.0] * 10)
    predicted = np.array([0.003] * 5 + [-0.003] * 5 + [5.0] * 10)
    error = walk_forward_near_hull(predicted, np.zeros(20), heights, 0.05)
    assert error == pytest.approx(3.0)
    order = np.random.default_rng(0).permutation(20)
    assert walk_forward_near_hull(predicted[order], np.zeros(20), heights[order], 0.05) == pytest.approx(3.0)


def test_the_nearest_labels_count_where_none_is_near() -> None:
    heights = np.arange(1.0, 11.0)
    predicted = np.where(np.arange(10) < MIN_NEAR_LABELS, 0.01, 9.0)
    assert walk_forward_near_hull(predicted, np.zeros(10), heights, 0.05) == pytest.approx(10.0)
    assert walk_forward_near_hull([0.02], [0.0], [3.0], 0.05) == pytest.approx(20.0)


@pytest.mark.parametrize(
    "columns",
    [([], [], []), ([1.0], [1.0, 2.0], [0.0]), ([np.nan], [1.0], [0.0]), ([1.0], [1.0], [np.inf])],
    ids=["none", "lengths", "nan", "inf"],
)
def test_an_error_is_never_made_up(columns: tuple[list[float], list[float], list[float]]) -> None:
    with pytest.raises(DataError, match="walk-forward error: expected finite"):
        walk_forward_near_hull(*columns, 0.05)
