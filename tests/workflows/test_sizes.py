"""Ten thousand structures in a chunk, tens of thousands of formulas: no document passes 1 MB; MongoDB takes 16 MB.

mongomock does not refuse large documents, so their sizes are measured.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import bson
import numpy as np
import pytest
from fireworks import FWorker
from fireworks.core.rocket_launcher import rapidfire
from jobflow import SETTINGS

import makers.advance
import makers.generate
import makers.relax
import makers.stage
from acnn.relax import Relaxed, RelaxStatus
from csp.generate import generate
from csp.state import Ledger
from makers.stores import embedded_job_store
from workflows.launch import submit_search
from workflows.results import ledger, report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fireworks import LaunchPad
    from jobflow import JobStore

    from csp.generate.make import Generated
    from workflows.config import SearchConfig

CHUNK = 10_000
LIMIT = 1_000_000  # bytes


def many(settings, knowledge, *, n, **others: Any) -> Generated:  # noqa: ANN401 - handed on
    """Make few crystals and repeat them, strained a little: what they are does not matter here, their number does."""
    made = generate(settings, knowledge, n=24, **others)
    if n <= 24:
        return made
    rng = np.random.default_rng(0)
    copies = []
    for i in range(n):
        atoms = made.atoms[i % len(made.atoms)].copy()
        atoms.set_cell(atoms.cell.array * rng.uniform(0.95, 1.05), scale_atoms=True)
        copies.append(atoms)
    return replace(made, atoms=copies, asked=n, made=n)


def not_relaxed(frames, *_: object, **__: object) -> Iterator[Relaxed]:
    """Say of every structure that it was relaxed, with an energy of its own; some are unsafe."""
    rng = np.random.default_rng(0)
    for number, atoms in enumerate(frames):
        energy = float(rng.normal(0, 1)) * len(atoms)
        unsafe = number % 10 == 0
        yield Relaxed(
            index=number,
            atoms=atoms,
            energy=energy,
            enthalpy=energy,
            status=RelaxStatus.UNSAFE if unsafe else RelaxStatus.CONVERGED,
            reason="too_close" if unsafe else "",
            n_steps=10,
            fmax=0.001,
            stress_residual_gpa=0.0,
            spread=0.01,
            last_safe=atoms if unsafe else None,
        )


@pytest.mark.slow  # six minutes on a busy machine: ranking ten thousand distinct candidates
def test_ten_thousand_structures_in_a_chunk(tiny_config, launchpad, tmp_path, monkeypatch):
    store = embedded_job_store(tmp_path / "store")
    monkeypatch.setattr(SETTINGS, "JOB_STORE", store)
    monkeypatch.setattr(makers.generate, "generate", many)
    monkeypatch.setattr(makers.relax, "relax", not_relaxed)
    config = tiny_config(
        generate__n_initial=24,
        generate__n_structures=CHUNK,
        generate__chunk_size=CHUNK,
        train__max_steps=5,
        advance__max_generations=2,
    )
    sizes = run_to_the_end(config, store, launchpad)
    assert report(store, "tiny").n_trials == CHUNK + 24
    assert store.additional_stores["data"].count() > 4
    assert all(size < LIMIT for size in sizes.values()), sizes


def test_thirty_thousand_formulas(tiny_config, launchpad, tmp_path, monkeypatch):
    store = embedded_job_store(tmp_path / "store")
    monkeypatch.setattr(SETTINGS, "JOB_STORE", store)
    formulas = [f"Cu{i}Au{j}" for i in range(1, 151) for j in range(1, 201)]
    many = Ledger(
        attempts=dict.fromkeys(formulas, 12),
        hull_distances=dict.fromkeys(formulas, 0.123456789),
        times_found={f"{formula}-01234567": 3 for formula in formulas[:10_000]},
    )
    # The search begins as if it had tried them all.
    monkeypatch.setattr(makers.advance, "read_ledger", lambda place: makers.stage.read_ledger(place) if place else many)
    config = tiny_config(generate__chunk_size=1, advance__max_generations=2)
    sizes = run_to_the_end(config, store, launchpad)
    found = ledger(store, "tiny")
    assert len(found.attempts) > len(formulas)
    assert report(store, "tiny").n_trials == sum(found.attempts.values())
    assert all(size < LIMIT for size in sizes.values()), sizes


def run_to_the_end(config: SearchConfig, store: JobStore, launchpad: LaunchPad) -> dict[str, int]:
    """Run a search by FireWorks; return the size of the largest document of each collection, bytes."""
    submit_search(config, launchpad)
    rapidfire(launchpad, FWorker(), nlaunches=0, sleep_time=0, strm_lvl="CRITICAL")
    assert set(Counter(fw["state"] for fw in launchpad.fireworks.find({}))) == {"COMPLETED"}
    collections = {
        "fireworks": launchpad.fireworks.find({}),
        "launches": launchpad.launches.find({}),
        "workflows": launchpad.workflows.find({}),
        "outputs": store.query({}),
    }
    return {name: max(len(bson.encode(doc)) for doc in docs) for name, docs in collections.items()}
