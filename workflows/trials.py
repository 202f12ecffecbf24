"""Trial crystals by themselves: the stage `generate` into a file."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.io import write
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict

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
        Extended XYZ file, replaced once all crystals are made.
    generation
        Generation whose random numbers to use: generation 0, with n from the search file, gives the very crystals of
        a search, if a search can be: one needs cells of every element by itself, crystals alone do not.
    processes
        Cores.

    Returns
    -------
    str
        What was made.

    Raises
    ------
    ConfigError
        If the file has another suffix or cannot be written, or if every crystal was refused.
    """
    if out.suffix != ".extxyz":
        raise ConfigError(f"--out: expected a file that ends in .extxyz, got {out}")
    start = time.perf_counter()
    try:
        settings = config.trial_settings
    except ConfigError:  # no search can be without the elements; the crystals can
        settings = config.generate
    knowledge = config.first_knowledge
    seed = np.random.SeedSequence(config.seed, spawn_key=(generation, list(Stage).index(Stage.GENERATE)))
    made, refused = 0, Counter[str]()
    partial = out.with_name(out.name + ".part")
    try:
        partial.write_bytes(b"")
        for chunk in generate_chunks(settings, knowledge, elements=config.system, n=n, seed=seed, processes=processes):
            for atoms in chunk.atoms:
                atoms.info = _writable(atoms.info)
            write(partial, chunk.atoms, format="extxyz", append=True)
            made += chunk.made
            refused.update(chunk.refused)
        if made:
            partial.replace(out)
    except OSError as error:
        raise ConfigError(f"{out}: expected a file that can be written, got: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    seconds = time.perf_counter() - start
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(refused.items())) or "none"
    if not made:
        raise ConfigError(f"generate: none of {n} crystals could be made ({reasons}); {out} was not written")
    return (
        f"made {made} of {n} crystals in {seconds:.1f} s ({made / seconds:.0f} a second); refused: {reasons}; in {out}"
    )


def _writable(info: dict[str, Any]) -> dict[str, Any]:
    """Quote what readers of extxyz would not take for the text that it is: F is fluorine, not false.

    Empty text is left out: readers would take the next name for it.
    """
    return {
        name: value if _is_read_back(value) else f"_JSON {json.dumps(value)}"
        for name, value in info.items()
        if value != ""
    }


def _is_read_back(value: object) -> bool:
    return not isinstance(value, str) or key_val_str_to_dict(key_val_dict_to_str({"x": value}))["x"] == value
