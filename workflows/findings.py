"""What the doctor says of a link."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from makers.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Verdict(StrEnum):
    """How a link is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """What was found about one link.

    Parameters
    ----------
    verdict
        How it is.
    text
        What was looked at and what was found.
    remedy
        What to do; empty if it is ok.
    """

    verdict: Verdict
    text: str
    remedy: str = ""


def show(finding: Finding) -> str:
    """Return a finding as text.

    Parameters
    ----------
    finding
        Any.

    Returns
    -------
    str
        One line, and one more with the remedy.
    """
    line = f"{finding.verdict:<8} {finding.text}"
    return f"{line}\n{'':8} -> {finding.remedy}" if finding.remedy else line


def good(text: str) -> Finding:
    """Say that a link is sound."""
    return Finding(Verdict.OK, text)


def warn(text: str, remedy: str) -> Finding:
    """Say that a link may break, and what to do."""
    return Finding(Verdict.WARNING, text, remedy)


def bad(text: str, remedy: str) -> Finding:
    """Say that a link is broken, and what to do."""
    return Finding(Verdict.FAILED, text, remedy)


def safely(check: Callable[[], Iterator[Finding]], name: str) -> Iterator[Finding]:
    """Turn what a check did not expect into a finding.

    Parameters
    ----------
    check
        Yields findings.
    name
        What it looks at.

    Yields
    ------
    Finding
        Its findings; then, if it raises, one more. Messages may hold credentials: only our own are repeated.
    """
    try:
        yield from check()
    except ConfigError as error:
        text, _, remedy = str(error).partition(": ")
        yield bad(text, remedy or "see the message")
    except Exception as error:  # noqa: BLE001 - one broken link must not hide the others
        yield bad(f"{name}: cannot be used ({type(error).__name__})", "compare the files with launchpad_config/")
