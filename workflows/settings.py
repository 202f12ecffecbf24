"""Jobflow's settings: what is wrong in its file is named without what the file holds, for it may hold a password."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import traceback
from contextlib import contextmanager
from difflib import get_close_matches
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from makers.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic import ValidationError

VARIABLE = "JOBFLOW_CONFIG_FILE"
EXAMPLE = "compare it with launchpad_config/jobflow.yaml"


@contextmanager
def naming_wrong_settings() -> Iterator[None]:
    """Tell the user what is wrong in jobflow's file, if jobflow cannot be imported for it.

    Jobflow reads its file while it is imported, wherever that happens first, and what it raises repeats the file.

    Yields
    ------
    None
        Once.

    Raises
    ------
    ConfigError
        Instead of what jobflow raised, which is not chained.
    """
    try:
        yield
    except ImportError:  # a package is missing: no fault of the file
        raise
    except Exception as error:
        frames = traceback.walk_tb(error.__traceback__)
        if not any(frame.f_globals.get("__name__") == "jobflow" for frame, _ in frames):
            raise
        raise settings_fault(error) from None


def require_settings() -> None:
    """Make sure that jobflow can read its file.

    Raises
    ------
    ConfigError
        If it cannot; names the file, what is wrong there and what to do, and no value.
    """
    with naming_wrong_settings():
        importlib.import_module("jobflow")


def import_with_defaults() -> None:
    """Import jobflow without its file, which is wrong, so that what needs no job store can be looked at."""
    file = os.environ.pop(VARIABLE, None)
    try:
        with TemporaryDirectory() as empty:
            os.environ[VARIABLE] = f"{empty}/none.yaml"  # without any, it would read one in the home directory
            importlib.import_module("jobflow")
    finally:
        del os.environ[VARIABLE]
        if file is not None:
            os.environ[VARIABLE] = file


def settings_fault(error: Exception) -> ConfigError:
    """Say what is wrong in jobflow's file.

    Parameters
    ----------
    error
        What jobflow raised when it read the file.

    Returns
    -------
    ConfigError
        What is wrong, a colon, and what to do. It repeats names of keys and types, and never a value.
    """
    found, remedy = _fault(error)
    return ConfigError(f"{VARIABLE}, {os.environ.get(VARIABLE, '~/.jobflow.yaml')} {found}: {remedy}")


def _fault(error: Exception) -> tuple[str, str]:
    from maggma import stores  # when all goes well, `--help` answers at once
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return _invalid(error)
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"is not YAML ({type(error).__name__}, line {mark.line + 1})", "mend that line"
    if isinstance(error, KeyError):
        name = str(error.args[0])
        return (
            ("has a store without the key `type`", EXAMPLE)
            if name == "type"
            else (f"has the unknown store type `{name}`", _hint(name, dir(stores)))
        )
    if isinstance(error, TypeError) and (unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error))):
        known = {*inspect.signature(stores.MongoStore).parameters, *inspect.signature(stores.GridFSStore).parameters}
        return f"has the unknown key `{unknown[1]}` in a store", _hint(unknown[1], known)
    if isinstance(error, TypeError) and (
        missing := re.search(r"(\w+)\.__init__\(\) missing \d+ .*?: (.*)", str(error))
    ):
        return f"has a {missing[1]} that lacks {missing[2]}", f"add it; {EXAMPLE}"
    return f"cannot be used ({type(error).__name__})", EXAMPLE


def _invalid(error: ValidationError) -> tuple[str, str]:
    first = error.errors(include_input=False, include_context=False, include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        from jobflow.settings import JobflowSettings  # it is there, though jobflow as a whole is not

        return f"has the unknown key `{place}`", _hint(place, JobflowSettings.model_fields)
    if place:
        return f"has a wrong value at `{place}` ({first['type']})", EXAMPLE
    return "has a JOB_STORE that cannot be read", f"it needs `docs_store` and `additional_stores`; {EXAMPLE}"


def _hint(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean `{near[0]}`?" if near else EXAMPLE
