"""What a person reads in the terminal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from makers.indexes import BASIS
from makers.outcomes import NEAR_HULL_ERROR
from workflows.results import generations, report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobflow import JobStore

    from makers.outcomes import GenerationDoc, ReportDoc
    from workflows.recover import Case


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out columns, numbers to the right.

    Parameters
    ----------
    header
        Names of the columns.
    rows
        Cells; floats are expected to be formatted already.

    Returns
    -------
    str
        Lines without trailing spaces.
    """
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [bool(rows) and all(_is_number(row[i]) for row in cells[1:]) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def answer_table(answer: ReportDoc) -> str:
    """Return the end of a search as text.

    Parameters
    ----------
    answer
        The report.

    Returns
    -------
    str
        The phases and the reason of the stop.
    """
    head = (
        f"{answer.chemsys} at {answer.pressure_gpa:g} GPa: {answer.n_trials} trial crystals, {answer.n_labels} labels, "
        f"{answer.generations} generations\nstopped ({answer.stop_reason}): {answer.why}\n"
    )
    rows = [
        (
            p.formula,
            f"{p.space_group} ({p.space_group_number})",
            p.n_atoms,
            f"{1000 * p.e_above_hull:.1f}",
            f"{p.enthalpy_per_atom:.4f}",
            f"{p.volume_per_atom:.2f}",
            p.times_found,
            p.phase_id,
        )
        for p in answer.phases
    ]
    header = ("formula", "space group", "atoms", "meV/atom above hull", "eV/atom", "Å³/atom", "found", "phase")
    return head + "\n" + table(header, rows)


def phases_table(phases: Sequence[Mapping[str, Any]]) -> str:
    """Return phases as text.

    Parameters
    ----------
    phases
        Documents of the `phases` collection.

    Returns
    -------
    str
        One line a phase.
    """
    if not phases:
        return "no such phase"
    rows = [
        (
            p["formula"],
            f"{p['space_group']} ({p['space_group_number']})",
            p["n_atoms"],
            p["status"],
            p["source"],
            _milli(p["e_above_hull"]),
            _milli(p["e_above_hull_model"]),
            f"{p['volume_per_atom']:.2f}",
            p["times_found"],
            p["phase_id"],
        )
        for p in phases
    ]
    header = (
        "formula",
        "space group",
        "atoms",
        "status",
        "source",
        "meV/atom above hull",
        "by the potential",
        "Å³/atom",
        "found",
        "phase",
    )
    return table(header, rows)


def recovery_table(cases: Sequence[Case], *, dry_run: bool) -> str:
    """Return jobs in trouble as text.

    Parameters
    ----------
    cases
        What was found.
    dry_run
        Whether nothing was done about it.

    Returns
    -------
    str
        One line a job, and what to do next.
    """
    if not cases:
        return "no job is lost, failed or forgotten; if nothing runs, start workers with `qlaunch` or `rlaunch`"
    would = "would be done" if dry_run else "what is done"
    rows = [(c.name, c.fw_id, str(c.trouble), _duration(c.age), str(c.action), c.why) for c in cases]
    lines = table(("job", "firework", "trouble", "for", would, "why"), rows)
    hint = "nothing was changed: leave out --dry-run" if dry_run else "now start workers with `qlaunch` or `rlaunch`"
    return f"{lines}\n\n{hint}"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def phases_json(phases: Sequence[Mapping[str, Any]]) -> str:
    """Return phases as JSON.

    Parameters
    ----------
    phases
        Documents of the `phases` collection.

    Returns
    -------
    str
        A list of documents; pymatgen reads their ``structure``.
    """
    plain = [{k: v for k, v in doc.items() if k not in {"_id", "phase_key", BASIS}} for doc in phases]
    return json.dumps(plain, indent=1)


def status_table(store: JobStore, project: str) -> str:
    """Return what each generation did, and where the search stands.

    Parameters
    ----------
    store
        Connected job store.
    project
        The search.

    Returns
    -------
    str
        A table and a sentence.
    """
    done = generations(store, project)
    answer = report(store, project)
    if not done:
        return f"{project}: no generation has finished yet"
    state = f"ended ({answer.stop_reason})" if answer else "running, or interrupted"
    return f"{project}: {state}\n\n{generations_table(done)}\n\n{done[-1].why}"


def generations_table(done: Sequence[GenerationDoc]) -> str:
    """Return what each generation did as text.

    Parameters
    ----------
    done
        Finished generations.

    Returns
    -------
    str
        One line a generation.
    """
    rows = [
        (
            g.generation,
            g.made,
            g.statuses.get("converged", 0),
            sum(g.flags.values()),
            sum(g.labels.values()),
            sum(n for status, n in g.labels.items() if status != "ok"),
            f"{g.metrics['energy_rmse_mev_per_atom']:.1f}",
            _metric(g, "energy_rmse_mev_per_atom"),
            _metric(g, NEAR_HULL_ERROR),
            " ".join(m.formula for m in g.hull if m.e_above_hull == 0),
        )
        for g in done
    ]
    header = (
        "generation",
        "trials",
        "converged",
        "flagged",
        "labels",
        "failed",
        "training",
        "walk-forward",
        "near the hull",
        "hull (DFT)",
    )
    return table(header, rows) + "\n(errors: RMSE of the energy, meV/atom)"


def _metric(generation: GenerationDoc, name: str) -> str:
    value = generation.walk_forward.get(name)
    return "-" if value is None else f"{value:.1f}"


def _milli(value: float | None) -> str:
    return "-" if value is None else f"{1000 * value:.1f}"


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("-", "", 1).isdigit() or text == "-"
