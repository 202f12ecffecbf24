"""The judgement of a committee's spread."""

import numpy as np
import pytest

from acnn.evaluate import _calibration


def test_equal_spreads_share_a_rank():
    spread = np.repeat([0.1, 0.3], 10)
    error = np.arange(20.0)
    order = np.random.default_rng(0).permutation(20)
    found = _calibration(spread, error).correlation
    assert found == pytest.approx(_calibration(spread[order], error[order]).correlation)
    # ranks 4.5 and 14.5 against 0 to 19: covariance 25, variances 25 and 33.25
    assert found == pytest.approx(25 / np.sqrt(25 * 33.25))
