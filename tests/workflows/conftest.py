"""Searches so small that they take seconds: two metals, cells of one or two atoms, effective-medium labels."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from jobflow import JobStore, run_locally
from maggma.stores import MemoryStore

from workflows.config import SearchConfig, parse_config
from workflows.run import run_search
from workflows.search import SearchMaker

if TYPE_CHECKING:
    from collections.abc import Callable

TINY: dict[str, Any] = {
    "project": "tiny",
    "system": "Cu-Au",
    "seed": 1,
    "generate": {"n_initial": 24, "n_structures": 12, "chunk_size": 8, "atoms": [1, 2], "prototype_share": 1.0},
    "relax": {"max_steps": 40, "fmax": 0.1, "stress_gpa": 1.0},
    "select": {"n_labels": 4},
    "label": {"door": "ase", "calculator": "emt", "relax_fmax": 0.02},
    # a number of steps, not of seconds: the same model on any machine
    "train": {
        "max_steps": 150,
        "model": {
            "members": 2,
            "n_radial": 6,
            "l_max": 2,
            "max_factors": 3,
            "channels": 4,
            "mixed_channels": 4,
            "hidden": [16],
        },
    },
    "advance": {"max_generations": 3, "final_window_ev": 0.1, "final_max": 4},
}


def _tiny(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever YAML gives
    content = copy.deepcopy(TINY)
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return content


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict[str, Any]]:
    """Return the content of the tiny search file with some options changed: ``tiny(label__workers=2)``."""
    return _tiny


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., SearchConfig]:
    """Return the checked tiny search file with some options changed."""
    return lambda **changes: parse_config(_tiny(**changes))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """Return the folder of a finished tiny search, for reading only; its store is an embedded one."""
    folder = tmp_path_factory.mktemp("finished") / "runs" / "tiny"
    run_search(parse_config(TINY), folder)
    return folder


@pytest.fixture(scope="session")
def in_memory(tmp_path_factory) -> JobStore:
    """Return the store of the same search, run in memory, for reading only."""
    store = JobStore(MemoryStore(), additional_stores={"data": MemoryStore()})
    store.connect()
    flow = SearchMaker(parse_config(TINY)).make()
    run_locally(flow, store=store, log=False, root_dir=tmp_path_factory.mktemp("in-memory"), raise_immediately=True)
    return store


@pytest.fixture
def search_file(tmp_path) -> Callable[..., Path]:
    """Write the tiny search file with some options changed, and return its path."""

    def write(**changes: Any) -> Path:  # noqa: ANN401 - whatever YAML gives
        path = tmp_path / "search.yaml"
        path.write_text(yaml.safe_dump(_tiny(**changes)))
        return path

    return write


@pytest.fixture
def calculators(monkeypatch) -> Path:
    """Let label workers import the calculators of ``search_calculators.py``; return their folder."""
    folder = Path(__file__).parent
    monkeypatch.syspath_prepend(str(folder))
    return folder
