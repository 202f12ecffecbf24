"""Figures of a search; the only module that knows a plotting library. No function shows what it returns."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pymatgen.core import Composition

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from makers.outcomes import GenerationDoc

# Okabe-Ito colours: distinguishable with any colour vision.
BLUE, ORANGE, GREEN, GREY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#999999", "#D55E00"
STYLE = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
COLUMN = (3.5, 2.8)  # width of a journal's column, inches


@dataclass(frozen=True)
class HullPoint:
    """One phase in a hull figure.

    Parameters
    ----------
    formula
        Reduced formula.
    enthalpy_per_atom
        Enthalpy, eV/atom.
    e_above_hull
        Distance to the hull, eV/atom.
    final
        Whether first principles relaxed it; else a single point.
    """

    formula: str
    enthalpy_per_atom: float
    e_above_hull: float
    final: bool


def formation(points: Sequence[HullPoint], elements: Sequence[str]) -> list[float]:
    """Return enthalpies of formation from the lowest phases of the elements.

    Parameters
    ----------
    points
        Phases, among them one of each element.
    elements
        Chemical symbols.

    Returns
    -------
    list[float]
        In eV/atom, in the order of the points.
    """
    ends = {e: min(p.enthalpy_per_atom for p in points if p.formula == e) for e in elements}
    return [
        p.enthalpy_per_atom - sum(Composition(p.formula).get_atomic_fraction(e) * ends[e] for e in elements)
        for p in points
    ]


def plot_hull(points: Sequence[HullPoint], elements: Sequence[str], title: str) -> Figure:
    """Draw the convex hull of a binary system; of other systems, heights above the hull by formula.

    Parameters
    ----------
    points
        Phases, among them one of each element.
    elements
        Chemical symbols, in alphabetical order.
    title
        Title, as the system and its pressure.

    Returns
    -------
    Figure
        One column wide.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=COLUMN, layout="constrained")
        axes = figure.add_subplot()
        draw = _draw_binary if len(elements) == 2 else _draw_heights
        draw(axes, points, elements)
        axes.set_title(title)
        axes.legend(loc="best", fontsize=7)
        return figure


def _draw_binary(axes: Any, points: Sequence[HullPoint], elements: Sequence[str]) -> None:  # noqa: ANN401
    x = [Composition(p.formula).get_atomic_fraction(elements[1]) for p in points]
    y = formation(points, elements)
    rows = list(zip(x, y, points, strict=True))
    single = [(a, b) for a, b, p in rows if not p.final]
    above = [(a, b) for a, b, p in rows if p.final and p.e_above_hull > 1e-6]
    on = sorted((a, b, p.formula) for a, b, p in rows if p.final and p.e_above_hull <= 1e-6)
    if single:
        axes.scatter(*zip(*single, strict=True), s=8, c=GREY, alpha=0.5, lw=0, label="single points")
    if above:
        axes.scatter(
            *zip(*above, strict=True),
            s=22,
            marker="s",
            facecolors="none",
            edgecolors=ORANGE,
            label="relaxed, above the hull",
        )
    axes.plot([a for a, _, _ in on], [b for _, b, _ in on], "-o", c=BLUE, ms=5, lw=1.2, label="relaxed, stable")
    for a, b, formula in on:
        axes.annotate(_subscript(formula), (a, b), textcoords="offset points", xytext=(4, -9), fontsize=8)
    low = min(y)
    axes.set_ylim(1.35 * low - 0.02, max(0.12, -2.0 * low))
    axes.set_xlabel(f"Atomic fraction of {elements[1]} in {elements[0]}–{elements[1]}")
    axes.set_ylabel("Enthalpy of formation (eV/atom)")


def _draw_heights(axes: Any, points: Sequence[HullPoint], elements: Sequence[str]) -> None:  # noqa: ANN401
    final = sorted((p for p in points if p.final), key=lambda p: (p.e_above_hull, p.formula))
    colours = [BLUE if p.e_above_hull <= 1e-6 else ORANGE for p in final]
    axes.barh(range(len(final)), [1000 * p.e_above_hull for p in final], color=colours, label="relaxed")
    axes.plot(
        [0] * sum(c == BLUE for c in colours), range(sum(c == BLUE for c in colours)), "o", c=BLUE, label="stable"
    )
    axes.set_yticks(range(len(final)), [_subscript(p.formula) for p in final])
    axes.invert_yaxis()
    axes.set_xlabel(f"Height above the hull of {'–'.join(elements)} (meV/atom)")


def plot_learning(generations: Sequence[GenerationDoc]) -> Figure:
    """Draw how wrong each model was on labels that it had not seen, and how many labels it took.

    Parameters
    ----------
    generations
        What each generation did.

    Returns
    -------
    Figure
        One column wide.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=COLUMN, layout="constrained")
        axes = figure.add_subplot()
        for prefix, colour, marker, label in (
            ("", BLUE, "o", "all new labels"),
            ("near_hull_", VERMILION, "s", "new labels near the hull"),
        ):
            name = prefix + "energy_rmse_mev_per_atom"
            rows = [(g.generation, g.walk_forward[name]) for g in generations if name in g.walk_forward]
            if rows:
                axes.semilogy(*zip(*rows, strict=True), marker=marker, c=colour, ms=4, lw=1, label=label)
        axes.set_xlabel("Generation")
        axes.set_ylabel("Walk-forward energy RMSE (meV/atom)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        twin = axes.twinx()
        total = [sum(sum(g.labels.values()) for g in generations[: i + 1]) for i in range(len(generations))]
        twin.step([g.generation for g in generations], total, where="mid", c=GREY, lw=1, label="labels (right)")
        twin.set_ylabel("Labels calculated", color=GREY)
        twin.set_ylim(0, None)
        handles = [*axes.get_legend_handles_labels()[0], *twin.get_legend_handles_labels()[0]]
        axes.legend(handles, [str(h.get_label()) for h in handles], loc="best", fontsize=7)
        return figure


def save(figure: Figure, stem: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a figure as PNG and PDF, and its data as CSV beside them.

    Parameters
    ----------
    figure
        The figure.
    stem
        Path without suffix.
    header
        Names of the columns, with units.
    rows
        The data.
    """
    FigureCanvasAgg(figure)
    figure.savefig(stem.with_suffix(".png"), dpi=200)
    figure.savefig(stem.with_suffix(".pdf"))
    with stem.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _subscript(formula: str) -> str:
    return "".join(f"$_{{{c}}}$" if c.isdigit() else c for c in formula)
