"""Making trial crystals on several cores: chunks, or parts of them, as tasks; the same crystals on any number."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context

import numpy as np
from ase import Atoms

from csp.config import GenerateConfig
from csp.generate.make import Generated, generate
from csp.knowledge import Knowledge


def generate_chunks(
    settings: GenerateConfig,
    knowledge: Knowledge,
    *,
    elements: Sequence[str],
    n: int,
    seed: np.random.SeedSequence,
    processes: int = 1,
    parents: Sequence[Atoms] = (),
) -> Iterator[Generated]:
    """Make trial crystals in chunks of ``settings.chunk_size``.

    Parameters
    ----------
    settings
        How crystals are made.
    knowledge
        Least distances and volumes.
    elements
        Chemical symbols of the system.
    n
        Crystals wanted altogether.
    seed
        Source of all chance; its key is extended by the number of the chunk.
    processes
        Cores to use; the crystals do not depend on it.
    parents
        Good structures to mutate.

    Yields
    ------
    Generated
        One chunk after the other, in order.
    """
    sizes = chunk_sizes(n, settings.chunk_size)
    seeds = [
        np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, chunk), pool_size=seed.pool_size)
        for chunk in range(len(sizes))
    ]
    task = partial(_task, settings, knowledge, tuple(elements), tuple(parents))
    if processes == 1 or n < 2:
        yield from map(task, sizes, seeds)
        return
    parts = -(-processes // len(sizes))  # of each chunk, so that no core idles
    tasks = [(size, chunk, (k, parts)) for size, chunk in zip(sizes, seeds, strict=True) for k in range(parts)]
    with ProcessPoolExecutor(min(processes, len(tasks)), mp_context=get_context("spawn")) as pool:
        answers = pool.map(task, *zip(*tasks, strict=True))
        for _ in sizes:
            yield _joined(list(islice(answers, parts)))


def chunk_sizes(n: int, chunk_size: int) -> list[int]:
    """Cut a number of crystals into chunks.

    Parameters
    ----------
    n
        Crystals.
    chunk_size
        Most crystals per chunk.

    Returns
    -------
    list[int]
        As even as possible, larger ones first.
    """
    chunks = -(-n // chunk_size)
    return [n // chunks + (i < n % chunks) for i in range(chunks)]


def _task(
    settings: GenerateConfig,
    knowledge: Knowledge,
    elements: tuple[str, ...],
    parents: tuple[Atoms, ...],
    n: int,
    seed: np.random.SeedSequence,
    part: tuple[int, int] = (0, 1),
) -> Generated:
    return generate(settings, knowledge, elements=elements, n=n, seed=seed, parents=parents, part=part)


def _joined(parts: Sequence[Generated]) -> Generated:
    """Put the parts of a chunk together."""
    refused: Counter[str] = Counter()
    for part in parts:
        refused.update(part.refused)
    atoms = [crystal for part in parts for crystal in part.atoms]
    return Generated(atoms, sum(part.asked for part in parts), len(atoms), dict(refused))
