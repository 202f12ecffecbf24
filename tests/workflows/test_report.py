"""The report: its figures exist, their data are the phases' own numbers, and the page tells the whole story."""

from __future__ import annotations

import csv
import html
from typing import TYPE_CHECKING, Any

import pytest

from workflows.report import write_report
from workflows.results import generations, query_phases, report
from workflows.run import open_store

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

ROUNDED = 1e-6  # eV/atom; six decimals are written
MAGIC = {"png": b"\x89PNG", "pdf": b"%PDF"}


@pytest.fixture(scope="module")
def written(finished, tmp_path_factory) -> Path:
    return write_report(open_store(finished), "tiny", tmp_path_factory.mktemp("report") / "report")


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_figures_exist(written):
    assert written.name == "report.html"
    for name in ("hull", "learning"):
        for kind, magic in MAGIC.items():
            content = (written.parent / f"{name}.{kind}").read_bytes()
            assert content.startswith(magic)
            assert len(content) > 2000
            assert f"{name}.{'png' if kind == 'png' else 'pdf'}" in written.read_text()


def test_hull_data_are_the_phases(written, finished):
    phases = [p for p in query_phases(open_store(finished), "tiny") if p["e_above_hull"] is not None]
    found = rows(written.parent / "hull.csv")
    assert len(found) == len(phases) > 2
    ends = {
        e: min(p["enthalpy_per_atom"] for p in phases if p["formula"] == e and p["source"] == "relaxation")
        for e in ("Au", "Cu")
    }
    for row, phase in zip(found, phases, strict=True):
        assert row["formula"] == phase["formula"]
        assert float(row["enthalpy_ev_per_atom"]) == pytest.approx(phase["enthalpy_per_atom"], abs=ROUNDED)
        assert float(row["e_above_hull_ev_per_atom"]) == pytest.approx(phase["e_above_hull"], abs=ROUNDED)
        assert row["dft_relaxed"] == str(phase["source"] == "relaxation")
        if phase["formula"] == "AuCu":
            formation = phase["enthalpy_per_atom"] - (ends["Au"] + ends["Cu"]) / 2
            assert float(row["formation_ev_per_atom"]) == pytest.approx(formation, abs=2 * ROUNDED)


def test_learning_data_are_the_generations(written, finished):
    found = rows(written.parent / "learning.csv")
    steps = generations(open_store(finished), "tiny")
    assert [int(row["generation"]) for row in found] == [g.generation for g in steps]
    assert [int(row["labels"]) for row in found] == [sum(g.labels.values()) for g in steps]
    for row, step in zip(found, steps, strict=True):
        for name in ("energy_mae_mev_per_atom", "force_mae_ev_per_a"):
            cell = row[f"walk_forward_{name}"]
            assert (float(cell) if cell else None) == step.walk_forward.get(name)


def test_page_tells_everything(written, finished):
    store = open_store(finished)
    page = html.unescape(written.read_text())
    answer = report(store, "tiny")
    assert answer.why in page
    assert answer.stop_reason in page
    assert "Au-Cu at 0 GPa" in page
    for phase in query_phases(store, "tiny"):
        assert phase["phase_id"] in page
    for step in generations(store, "tiny"):
        assert step.why in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched from anywhere


def test_interrupted_search_has_a_report(finished, tmp_path):
    page = write_report(open_store(finished), "another project", tmp_path / "report")
    assert "still running, or was interrupted" in page.read_text()
    assert not (tmp_path / "report" / "learning.png").exists()


def test_no_phases_no_hull(finished, tmp_path):
    write_report(open_store(finished), "another project", tmp_path / "report")
    assert not (tmp_path / "report" / "hull.png").exists()
