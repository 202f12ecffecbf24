"""The report of a search: one page with its figures, their data beside them."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from makers.errors import ConfigError
from workflows import plots
from workflows.results import generations, query_phases, report
from workflows.tables import generations_table, phases_table

if TYPE_CHECKING:
    from pathlib import Path

    from jobflow import JobStore

    from makers.outcomes import GenerationDoc

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 13px; line-height: 1.4; }}
figure {{ display: inline-block; margin: 0 1rem 1rem 0; }} img {{ max-width: 28rem; }} figcaption {{ font-size: 13px; }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
{figures}
<h2>Phases</h2><pre>{phases}</pre>
<h2>Generations</h2><pre>{generations}</pre>
<h2>What each generation decided</h2>{decisions}
</body></html>
"""


def write_report(store: JobStore, project: str, folder: Path) -> Path:
    """Write ``report.html``, its figures (PNG, PDF) and their data (CSV).

    Parameters
    ----------
    store
        Connected job store.
    project
        The search; it may still be running.
    folder
        Where to write; made here.

    Returns
    -------
    Path
        The page.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: expected a folder that can be written, got: {error.strerror}") from error
    done = generations(store, project)
    phases = query_phases(store, project)
    answer = report(store, project)
    title = project
    summary = "The search is still running, or was interrupted."
    if answer is not None:
        title = f"{answer.chemsys} at {answer.pressure_gpa:g} GPa"
        summary = (
            f"{answer.n_trials} trial crystals, {answer.n_labels} first-principles labels, {answer.generations} "
            f"generations. Stopped ({answer.stop_reason}): {answer.why}"
        )
    captions = _hull_figure(phases, title, folder) | _learning_figure(done, folder)
    page = folder / "report.html"
    page.write_text(
        PAGE.format(
            title=html.escape(title),
            summary=html.escape(summary),
            figures="\n".join(_figure(name, caption) for name, caption in captions.items()),
            phases=html.escape(phases_table(phases)),
            generations=html.escape(generations_table(done)) if done else "none yet",
            decisions="".join(f"<p><b>{g.generation}.</b> {html.escape(_story(g))}</p>" for g in done),
        ),
        encoding="utf-8",
    )
    return page


def _figure(name: str, caption: str) -> str:
    links = f'<a href="{name}.pdf">PDF</a>, <a href="{name}.csv">data</a>'
    return (
        f'<figure><img src="{name}.png" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)} ({links})</figcaption></figure>"
    )


def _hull_figure(phases: list[dict[str, Any]], title: str, folder: Path) -> dict[str, str]:
    known = [p for p in phases if p["enthalpy_per_atom"] is not None]
    points = [
        plots.HullPoint(p["formula"], p["enthalpy_per_atom"], p["e_above_hull"], final=p["source"] == "relaxation")
        for p in known
        if p["e_above_hull"] is not None
    ]
    elements = sorted({element for p in known for element in p["chemsys"].split("-")})
    if not elements or not {p.formula for p in points if p.final} >= set(elements):
        return {}  # a hull without its ends is no hull: the search is still at work
    figure = plots.plot_hull(points, elements, title)
    heights = plots.formation(points, elements)
    rows = [
        (p.formula, f"{p.enthalpy_per_atom:.6f}", f"{h:.6f}", f"{p.e_above_hull:.6f}", p.final)
        for p, h in zip(points, heights, strict=True)
    ]
    header = ("formula", "enthalpy_ev_per_atom", "formation_ev_per_atom", "e_above_hull_ev_per_atom", "dft_relaxed")
    plots.save(figure, folder / "hull", header, rows)
    return {"hull": "Convex hull of first-principles enthalpies"}


def _learning_figure(done: list[GenerationDoc], folder: Path) -> dict[str, str]:
    if not done:
        return {}
    names = sorted({name for g in done for name in g.walk_forward})
    rows = [(g.generation, sum(g.labels.values()), *(g.walk_forward.get(name, "") for name in names)) for g in done]
    header = ("generation", "labels", *(f"walk_forward_{name}" for name in names))
    plots.save(plots.plot_learning(done), folder / "learning", header, rows)
    return {"learning": "Error of each model on labels that it had not seen"}


def _story(generation: GenerationDoc) -> str:
    return (
        f"Made {generation.made} crystals (refused: {_counts(generation.refused)}); relaxed: "
        f"{_counts(generation.statuses)}; flagged: {_counts(generation.flags)}; chosen: {_counts(generation.chosen)}; "
        f"labels: {_counts(generation.labels)}. Distance below which a pair is unsafe: "
        f"{generation.state.bonds_scale:.2f} of its minimum. {generation.why}"
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items())) or "none"
