"""The demo at its smallest: the whole method with real density-functional theory, and its answer."""

from __future__ import annotations

import importlib.util
import json

import pytest

from makers.documents import LabelKind
from makers.labelling import read_labels
from workflows.demo import demo_config, run_demo
from workflows.results import generations, query_phases
from workflows.run import open_store


def test_the_search_is_not_told_the_answer():
    """No prototypes, no seeds, no composition list: only random crystals can find the compound."""
    for smallest in (False, True):
        config = demo_config(smallest=smallest)
        assert config.generate.prototype_share == 0
        assert config.generate.seed_share == 0
        assert config.generate.seeds == ()
        assert config.generate.compositions is None


@pytest.mark.dft
@pytest.mark.integration
@pytest.mark.skipif(importlib.util.find_spec("gpaw") is None, reason="GPAW is not installed: make dft")
def test_demo_finds_the_stable_compound(tmp_path):
    folder = tmp_path / "demo"
    text = run_demo(folder, smallest=True)
    assert "found the known compound: Mg2Si, Fm-3m" in text
    assert "on the hull" in text
    store = open_store(folder)
    stable = {doc["formula"]: doc["space_group"] for doc in query_phases(store, "demo", stable=True)}
    assert stable["Mg2Si"] == "Fm-3m"
    assert set(stable) == {"Mg", "Si", "Mg2Si"}
    done = generations(store, "demo")
    assert [g.generation for g in done] == list(range(len(done)))
    assert all(g.walk_forward for g in done[1:])
    labels = read_labels(store, "demo", kind=LabelKind.SINGLE_POINT)
    assert {label.provenance.calculator for label in labels} == {"gpaw"}
    assert json.loads(labels[0].model_dump_json())["provenance"]["versions"]["gpaw"]
    assert (folder / "report" / "hull.png").stat().st_size > 10_000
