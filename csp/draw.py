"""Fair draws."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def even_draw(weights: Floats, rng: np.random.Generator, n: int) -> Ints:
    """Draw indices by systematic sampling: every share is met to within one, the order is random.

    Parameters
    ----------
    weights
        (m,) not negative, sum 1.
    rng
        Source of chance.
    n
        Draws.

    Returns
    -------
    Ints
        (n,) indices below m.
    """
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    points = (np.arange(n) + rng.random()) / n
    picks = np.searchsorted(np.cumsum(weights), points * (1 - 1e-12), side="right")
    return rng.permutation(np.minimum(picks, len(weights) - 1))
