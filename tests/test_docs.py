"""README and docs keep their promises: the commands they show exist with their options, the links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from acnn.cli import build_parser
from workflows.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "launchpad_config").glob("*.md"))


def shown_commands(program: str = "hullseeker") -> list[tuple[str, str]]:
    """Return (page, command line) of every `hullseeker ...` line, or of another program, in a code block."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            lines = [line.split("#")[0].strip() for line in block.splitlines()]
            found += [(page.name, line) for line in lines if line.startswith(f"{program} ")]
    return found


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_shown_commands_exist_with_their_options(page: str, line: str):
    words = shlex.split(line)[1:]
    group = typer.main.get_command(app)
    command = group.commands.get(words[0])
    assert command is not None, f"{page}: {line}"
    context = command.make_context(words[0], words[1:], resilient_parsing=False)
    assert context.command is command


@pytest.mark.parametrize(("page", "line"), shown_commands("acnn"))
def test_shown_commands_of_the_potential_exist_with_their_options(page: str, line: str):
    assert build_parser().parse_args(shlex.split(line)[1:]).command == shlex.split(line)[1], page


def test_pages_show_commands():
    assert len(shown_commands()) >= 10
    assert len(shown_commands("acnn")) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_paths_named_in_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(
        r"`((?:acnn|csp|makers|workflows|docs|examples|launchpad_config|benchmarks)/[\w/.]*)`", text
    ):
        assert (ROOT / name).exists(), name
