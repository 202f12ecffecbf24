"""Labelled crystals that cost nothing: random cells with the energies of ASE's effective medium theory."""

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from acnn.train import loop
from acnn.train.metrics import measure


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def full_disk() -> Iterator[pytest.MonkeyPatch]:
    """Let no file be put in its place, until the patch is undone."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        yield patch


def labelled(atoms: Atoms) -> Atoms:
    """Label a structure by effective medium theory."""
    work = atoms.copy()
    work.calc = EMT()
    results = {"energy": work.get_potential_energy(), "forces": work.get_forces(), "stress": work.get_stress()}
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture(scope="session")
def label() -> Callable[[Atoms], Atoms]:
    """Give what labels a structure."""
    return labelled


def random_alloys(n: int, seed: int) -> list[Atoms]:
    """Make n random Cu-Au cells of 1 to 5 atoms with their labels."""
    rng = np.random.default_rng(seed)
    frames = []
    while len(frames) < n:
        size = int(rng.integers(1, 6))
        cell = (14.0 * size * rng.uniform(0.9, 1.3)) ** (1 / 3) * (np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3)))
        atoms = Atoms(rng.choice(["Cu", "Au"], size), scaled_positions=rng.random((size, 3)), cell=cell, pbc=True)
        distances = atoms.get_all_distances(mic=True) + 9 * np.eye(size)
        if distances.min() > 1.9:
            atoms.info["family"] = f"{atoms.get_chemical_formula()} {len(frames) // 2}"
            frames.append(labelled(atoms))
    return frames


@pytest.fixture(scope="session")
def alloys() -> list[Atoms]:
    return random_alloys(40, seed=1)


@pytest.fixture(scope="session")
def other_alloys() -> list[Atoms]:
    return random_alloys(20, seed=2)


@pytest.fixture
def rising_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each evaluation look worse than those before: the first weights that are asked are the best."""
    scores = itertools.count()
    monkeypatch.setattr(loop, "measure", lambda *args: {**measure(*args), "score": float(next(scores))})
