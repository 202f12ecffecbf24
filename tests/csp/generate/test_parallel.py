from collections.abc import Callable, Iterator
from itertools import chain
from typing import Self

import numpy as np
import pytest

from csp.config import GenerateConfig
from csp.generate import Generated, generate_chunks
from csp.generate.parallel import chunk_sizes
from csp.knowledge import Knowledge

SYSTEM = ("Mg", "O")


def test_the_crystals_do_not_depend_on_the_number_of_cores():
    knowledge = Knowledge.initial(SYSTEM, 0.0)
    settings = GenerateConfig(chunk_size=6, prototype_share=0.0, atoms=(2, 8))
    seed = np.random.SeedSequence(3, spawn_key=(1, 0))
    one, two = (
        [
            list(chunk.atoms)
            for chunk in generate_chunks(settings, knowledge, elements=SYSTEM, n=11, seed=seed, processes=k)
        ]
        for k in (1, 2)
    )
    assert [len(chunk) for chunk in one] == [6, 5]
    for a, b in zip(chain(*one), chain(*two), strict=True):
        assert a.info == b.info
        assert (a.positions == b.positions).all()


@pytest.mark.parametrize(("n", "processes"), [(7, 2), (2, 3)])
def test_one_chunk_is_shared_among_cores(n: int, processes: int, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    class Here:
        """The pool of processes, in this process."""

        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def map(self, task: Callable[..., Generated], *arguments: object) -> Iterator[Generated]:
            for answer in map(task, *arguments):
                asked.append(answer.asked)
                yield answer

    monkeypatch.setattr("csp.generate.parallel.ProcessPoolExecutor", Here)
    settings = GenerateConfig(atoms=(2, 8), max_attempts=2)
    seed = np.random.SeedSequence(3, spawn_key=(1, 0))
    (one,), (many,) = (
        generate_chunks(settings, Knowledge.initial(SYSTEM, 0.0), elements=SYSTEM, n=n, seed=seed, processes=k)
        for k in (1, processes)
    )
    assert len(asked) == processes
    assert sum(asked) == many.asked == n
    assert max(asked) - min(asked) <= 1
    assert many.refused == one.refused
    for a, b in zip(one.atoms, many.atoms, strict=True):
        assert a.info == b.info
        assert (a.positions == b.positions).all()


@pytest.mark.parametrize(("n", "size", "expected"), [(10, 4, [4, 3, 3]), (3, 10, [3]), (0, 5, [])])
def test_chunks_are_even(n: int, size: int, expected: list[int]):
    assert chunk_sizes(n, size) == expected
