"""The direction of L-BFGS: in C as by PyTorch, and exact on a quadratic."""

from __future__ import annotations

import pytest
import torch

from acnn.relax import lbfgs
from acnn.relax.lbfgs import History

LENGTH, WIDTH, FIRST = 4, 6, 0.1


def filled(n_added: list[int], seed: int) -> tuple[History, torch.Tensor]:
    """Give each slot some pairs of a quadratic, and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    history = History(len(n_added), LENGTH, WIDTH, torch.device("cpu"))
    matrix = torch.randn((WIDTH, WIDTH), dtype=torch.float64, generator=generator)
    matrix = matrix @ matrix.T + torch.eye(WIDTH, dtype=torch.float64)
    for k in range(max(n_added)):
        rows = torch.tensor([slot for slot, n in enumerate(n_added) if n > k])
        step = torch.randn((len(rows), WIDTH), dtype=torch.float64, generator=generator)
        history.add(rows, step, step @ matrix)
    return history, torch.randn((len(n_added), WIDTH), dtype=torch.float64, generator=generator)


@pytest.mark.skipif(lbfgs.load_library(lbfgs.SOURCES, torch.device("cpu")) is None, reason="no C compiler here")
def test_c_and_torch_give_the_same_direction(monkeypatch: pytest.MonkeyPatch):
    history, gradient = filled([0, 1, 3, 4, 9], seed=1)
    history.clear(torch.tensor([2]))
    rows = torch.tensor([4, 0, 2, 3])
    compiled = history.direction(rows, gradient[rows], FIRST)
    monkeypatch.setattr(lbfgs, "load_library", lambda *_: None)
    assert torch.allclose(compiled, history.direction(rows, gradient[rows], FIRST), rtol=1e-12)


def test_the_newest_pair_is_reproduced():
    history, _ = filled([9], seed=2)
    row, place = torch.tensor([0]), (int(history.head[0]) - 1) % LENGTH
    step, change = history.steps[0, place], history.changes[0, place]
    assert torch.allclose(history.direction(row, change[None], FIRST)[0], -step)
