"""Trial crystals by themselves: the stage `generate` into a file."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from ase.io import write

from csp.generate import generate_chunks
from makers.errors import ConfigError
from makers.stage import Stage

if TYPE_CHECKING:
    from pathlib import Path

    from workflows.config import SearchConfig


def write_trials(config: SearchConfig, n: int, out: Path, *, generation: int, processes: int) -> str:
    """Make trial crystals from the first estimates of volumes and distances, and write them.

    Parameters
    ----------
    config
        The search file.
    n
        Crystals.
    out
        Extended XYZ file; written anew, one chunk after the other.
    generation
        Generation whose random numbers to use: generation 0, with n from the search file, gives the very crystals of
        a search.
    processes
        Cores.

    Returns
    -------
    str
        What was made.

    Raises
    ------
    ConfigError
        If the file has another suffix or cannot be written.
    """
    if out.suffix != ".extxyz":
        raise ConfigError(f"--out: expected a file that ends in .extxyz, got {out}")
    start = time.perf_counter()
    knowledge = config.first_knowledge
    seed = np.random.SeedSequence(config.seed, spawn_key=(generation, list(Stage).index(Stage.GENERATE)))
    made, refused = 0, Counter[str]()
    try:
        out.write_bytes(b"")
        for chunk in generate_chunks(
            config.trial_settings, knowledge, elements=config.system, n=n, seed=seed, processes=processes
        ):
            for atoms in chunk.atoms:  # extxyz cannot hold empty text: readers would take the next name for it
                atoms.info = {name: value for name, value in atoms.info.items() if value != ""}
            write(out, chunk.atoms, format="extxyz", append=True)
            made += chunk.made
            refused.update(chunk.refused)
    except OSError as error:
        raise ConfigError(f"{out}: expected a file that can be written, got: {error.strerror}") from error
    seconds = time.perf_counter() - start
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(refused.items())) or "none"
    return (
        f"made {made} of {n} crystals in {seconds:.1f} s ({made / seconds:.0f} a second); refused: {reasons}; in {out}"
    )
