from itertools import chain

import numpy as np
import pytest

from csp.config import GenerateConfig
from csp.generate import generate_chunks
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


@pytest.mark.parametrize(("n", "size", "expected"), [(10, 4, [4, 3, 3]), (3, 10, [3]), (0, 5, [])])
def test_chunks_are_even(n: int, size: int, expected: list[int]):
    assert chunk_sizes(n, size) == expected
