"""The command line. Imports at the top stay light: `hullseeker --help` must answer at once."""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from makers.errors import USER_ERRORS, ConfigError
from workflows.settings import naming_wrong_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobflow import JobStore

app = typer.Typer(
    help="Hullseeker finds stable crystals by itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DEFAULT_FOLDER = Path("runs")

SearchFile = Annotated[Path, typer.Argument(help="Search file (YAML), see `hullseeker init`.")]
Folder = Annotated[Path | None, typer.Argument(help="Folder of a search; by default the newest below runs/.")]
Project = Annotated[
    str | None, typer.Option(help="Search in the job store that jobflow is configured for, instead of a folder.")
]


@app.callback()
def options(
    context: typer.Context,
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and results.")] = False,
) -> None:
    """Take the options of all commands."""
    context.obj = {"debug": debug}
    configure_logging(logging.WARNING if quiet else logging.INFO)


@app.command()
def init(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder to make; with --scheduler by default hullseeker-config.")
    ] = None,
    *,
    template: Annotated[str, typer.Option(help="Which example to start from: demo, or vasp.")] = "demo",
    scheduler: Annotated[
        str | None, typer.Option(help="Write what a cluster needs instead, for slurm, pbs, sge or lsf.")
    ] = None,
    host: Annotated[str, typer.Option(help="MongoDB as the compute nodes reach it: host or host:port.")] = "localhost",
    database: Annotated[str, typer.Option(help="Database of workflows and results.")] = "hullseeker",
    username: Annotated[
        str | None, typer.Option(help="Its user; the password is read from HULLSEEKER_DB_PASSWORD, if that is set.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files of a cluster that exist.")] = False,
) -> None:
    """Write an annotated search file to start from, or what a cluster needs."""
    if scheduler is not None:
        from workflows.cluster import next_steps, site_here, write_working_set

        site = site_here(folder or Path("hullseeker-config"), scheduler, host, database, username)
        write_working_set(site, force=force)
        typer.echo(next_steps(site))
        return
    from workflows.templates import write_template

    if folder is None:
        raise ConfigError("init: name the folder to make, as in `hullseeker init my-search`")
    path = write_template(folder, template)
    typer.echo(f"wrote {path}; edit it, then: hullseeker check {path}")


@app.command()
def check(file: SearchFile) -> None:
    """Check a search file, the labeller and the sizes, without computing anything."""
    from workflows.check import check_search

    typer.echo(check_search(file))


@app.command()
def generate(
    file: SearchFile,
    *,
    n: Annotated[int, typer.Option("-n", min=1, help="Trial crystals.")],
    out: Annotated[Path, typer.Option(help="File for the crystals, .extxyz.")],
    generation: Annotated[int, typer.Option(min=0, help="Generation whose random numbers to use.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Cores; the crystals do not depend on it.")] = 1,
) -> None:
    """Make trial crystals as a search would, and nothing else."""
    from workflows.config import load_config
    from workflows.trials import write_trials

    typer.echo(write_trials(load_config(file), n, out, generation=generation, processes=processes))


@app.command()
def run(
    file: SearchFile,
    *,
    folder: Annotated[Path | None, typer.Option("--dir", help="Where results go; by default runs/PROJECT.")] = None,
) -> None:
    """Run a search here, without any server. Ctrl-C loses no finished label; `resume` goes on."""
    from makers.labelling.calculators import check_labeller
    from workflows.check import verify
    from workflows.config import load_config
    from workflows.run import run_search

    config = load_config(file)
    verify(config)
    check_labeller(config.label)
    folder = folder or DEFAULT_FOLDER / config.project
    with interruptible(folder):
        answer = run_search(config, folder)
    finish(folder, answer)


@app.command()
def resume(
    folder: Folder = None,
    *,
    project: Annotated[
        str | None, typer.Option(help="Search on the LaunchPad: run again what was lost or failed, and nothing else.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --project: explain, and change nothing.")] = False,
    expiration: Annotated[
        float | None, typer.Option(help="With --project: seconds without a sign of life until a job counts as lost.")
    ] = None,
) -> None:
    """Go on with an interrupted search."""
    if project is not None:
        from workflows.launch import ask_queue, fireworks_setup, open_launchpad
        from workflows.recover import recover
        from workflows.tables import recovery_table

        limit = fireworks_setup().expiration if expiration is None else expiration
        cases, others = recover(open_launchpad(), project, limit, queue=ask_queue(), dry_run=dry_run)
        typer.echo(f"{others}\n\n{recovery_table(cases, dry_run=dry_run)}")
        return
    if dry_run or expiration is not None:
        raise ConfigError("--dry-run, --expiration: expected with --project, for a search on the LaunchPad")
    from workflows.run import resume_search

    folder = folder or newest_folder()
    with interruptible(folder):
        answer = resume_search(folder)
    finish(folder, answer)


@app.command()
def submit(file: SearchFile) -> None:
    """Add a search to the FireWorks LaunchPad; workers started by `qlaunch` or `rlaunch` run it."""
    from workflows.check import verify
    from workflows.config import load_config
    from workflows.launch import submit_search

    config = load_config(file)
    verify(config)
    typer.echo(submit_search(config))


@app.command()
def doctor(
    file: Annotated[Path | None, typer.Argument(help="Search file whose labeller is looked at too.")] = None,
) -> None:
    """Check every link to the database, the queue and the codes, and say how to mend each."""
    from workflows.doctor import examine
    from workflows.findings import Verdict, show

    failed = 0
    for finding in examine(file):
        typer.echo(show(finding))
        failed += finding.verdict == Verdict.FAILED
    if failed:
        typer.echo(f"\n{failed} failed: a search cannot run like this")
        raise typer.Exit(1)


@app.command()
def status(folder: Folder = None, *, project: Project = None) -> None:
    """Show what each generation did and where the search stands."""
    from workflows.tables import status_table

    store, name = locate(folder, project)
    typer.echo(status_table(store, name))


@app.command()
def query(
    folder: Folder = None,
    *,
    project: Project = None,
    stable: Annotated[bool, typer.Option("--stable", help="Only phases on the hull.")] = False,
    below: Annotated[float | None, typer.Option(help="Only phases at most so far above it, eV/atom.")] = None,
    formula: Annotated[str | None, typer.Option(help="Only this formula, as Mg2Si.")] = None,
    limit: Annotated[int, typer.Option(help="Phases to show, at most; 0 for all.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Whole documents, as JSON.")] = False,
) -> None:
    """List the phases found, the most stable first."""
    from workflows.results import query_phases
    from workflows.tables import phases_json, phases_table

    store, name = locate(folder, project)
    phases = query_phases(store, name, stable=stable, below=below, formula=formula)
    shown = phases[: limit or None]
    typer.echo(phases_json(shown) if as_json else phases_table(shown))
    if len(shown) < len(phases):
        typer.echo(f"... and {len(phases) - len(shown)} more; --limit 0 shows all", err=True)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="File: .cif holds the best phase, .extxyz all; .json whole documents.")],
    folder: Annotated[Path | None, typer.Option("--dir", help="Folder of a search.")] = None,
    *,
    project: Project = None,
    labels: Annotated[bool, typer.Option("--labels", help="The labels, as training data.")] = False,
    below: Annotated[float, typer.Option(help="Phases at most so far above the hull, eV/atom.")] = 0.05,
) -> None:
    """Write phases or labels to a file."""
    from workflows.export import export_labels, export_phases

    store, name = locate(folder, project)
    n = export_labels(store, name, out) if labels else export_phases(store, name, out, below)
    typer.echo(f"wrote {n} {'labels' if labels else 'phases'} to {out}")


@app.command()
def report(folder: Folder = None, *, project: Project = None) -> None:
    """Write the report: hull figure, table of phases, learning curve, what each generation did."""
    from workflows.report import write_report

    store, name = locate(folder, project)
    target = (folder or newest_folder() if project is None else Path(name)) / "report"
    typer.echo(f"wrote {write_report(store, name, target)}")


@app.command()
def demo(
    *,
    folder: Annotated[Path | None, typer.Option("--dir", help="Where results go; by default runs/demo.")] = None,
    smallest: Annotated[bool, typer.Option("--smallest", help="Fewest labels, for the tests.")] = False,
) -> None:
    """Find the stable compound of Mg-Si with real density-functional theory, in ten minutes on two cores."""
    from workflows.demo import run_demo

    folder = folder or free_folder(DEFAULT_FOLDER / "demo")
    with interruptible(folder):
        verdict = run_demo(folder, smallest=smallest)
    typer.echo(verdict)


def locate(folder: Path | None, project: str | None) -> tuple[JobStore, str]:
    """Open the results of a search, in a folder or in the configured database."""
    from workflows.config import load_config
    from workflows.run import SEARCH_FILE, open_store

    if project is not None:
        from workflows.launch import configured_store

        return configured_store(), project
    folder = folder or newest_folder()
    return open_store(folder), load_config(folder / SEARCH_FILE).project


def newest_folder() -> Path:
    """Return the folder of the newest search here."""
    from workflows.run import SEARCH_FILE

    if Path(SEARCH_FILE).is_file() and Path("store").is_dir():
        return Path()
    found = sorted(DEFAULT_FOLDER.glob(f"*/{SEARCH_FILE}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(
            f"no search below {DEFAULT_FOLDER.absolute()}: name its folder, or start one with `hullseeker run`"
        )
    return found[-1].parent


def free_folder(folder: Path) -> Path:
    """Return the folder, or the first of folder-2, folder-3, ... that does not exist."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def finish(folder: Path, answer: object) -> None:
    """Write the report and say where everything lies."""
    from makers.outcomes import ReportDoc
    from workflows.report import write_report
    from workflows.run import open_store
    from workflows.tables import answer_table

    if not isinstance(answer, ReportDoc):
        raise TypeError(f"expected the report of a search, got {type(answer).__name__}")
    page = write_report(open_store(folder), answer.project, folder / "report")
    typer.echo(answer_table(answer))
    typer.echo(f"\nresults in {folder}, report {page}\nquery them: hullseeker query {folder} --stable")


def configure_logging(level: int) -> None:
    """Send one line per stage to stderr; jobflow speaks only of failed jobs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("acnn", "csp", "makers", "workflows"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [handler]
    jobs = logging.getLogger("jobflow")
    jobs.setLevel(logging.INFO)
    jobs.propagate = False
    failures = logging.StreamHandler()
    failures.addFilter(lambda record: "failed with exception" in record.getMessage())
    jobs.handlers = [failures]


def main() -> None:
    """Run a command; a user's mistake ends in one paragraph and exit code 2."""
    try:
        with naming_wrong_settings():
            app(prog_name="hullseeker")
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        sys.exit(explain(error))


@contextmanager
def interruptible(folder: Path) -> Iterator[None]:
    """Say how to go on after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        begun = (folder / "search.yaml").exists()
        hint = f"finished labels are kept; go on with `hullseeker resume {folder}`" if begun else "nothing was begun"
        typer.echo(f"\ninterrupted: {hint}", err=True)
        raise typer.Exit(130) from None


def explain(error: Exception) -> int:
    """Say what went wrong in one paragraph; an error that is not the user's leaves its traceback in error.log."""
    typer.echo(f"hullseeker: {error}", err=True)
    if isinstance(error, USER_ERRORS):
        return 2
    log = Path("error.log")
    try:
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        typer.echo(f"(traceback in {log.absolute()}; --debug shows it)", err=True)
    except OSError:
        typer.echo("(--debug shows the traceback)", err=True)
    return 1
