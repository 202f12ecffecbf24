"""Settings for the command line from a YAML or JSON file with the sections model, train and relax."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from acnn.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SECTIONS = ("model", "train", "relax")

Kind = TypeVar("Kind", bound=BaseModel)


def read_config(path: Path | None) -> dict[str, dict[str, Any]]:
    """Read a file of settings; one file serves all commands.

    Parameters
    ----------
    path
        YAML or JSON with the optional sections ``model``, ``train`` and ``relax``; None: no settings.

    Returns
    -------
    dict
        The sections that the file has, not checked yet.

    Raises
    ------
    ConfigError
        If the file cannot be read or holds something else; names the file and the nearest valid section.
    """
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
    expected = f"expected the sections {', '.join(SECTIONS)}"
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: {expected}, got {type(content).__name__}")
    found = {}
    for key, values in content.items():
        if key not in SECTIONS:
            raise ConfigError(f"{path}: {key}: unknown section{_nearest(key, SECTIONS)}; {expected}")
        if values is None:
            continue
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {key}: expected options and their values, got {values!r}")
        found[key] = values
    return found


def section(
    name: str,
    kind: type[Kind],
    sections: Mapping[str, Mapping[str, Any]],
    path: Path | None,
    given: Mapping[str, Any] | None = None,
) -> Kind:
    """Check one section.

    Parameters
    ----------
    name
        Of the section.
    kind
        Its class.
    sections
        From `read_config`.
    path
        The file that they are from, for messages.
    given
        What the command line says; where it is not None it counts more than the file.

    Returns
    -------
    BaseModel
        The settings, of the class asked for.

    Raises
    ------
    ConfigError
        If an option is wrong; names it and the nearest valid one.
    """
    said = {key: value for key, value in (given or {}).items() if value is not None}
    try:
        return kind.model_validate({**sections.get(name, {}), **said})
    except ValidationError as exc:
        error = exc.errors()[0]
        key = ".".join([name, *(str(part) for part in error["loc"])])
        place = "" if path is None or (error["loc"] and error["loc"][0] in said) else f"{path}: "
        if error["type"] == "extra_forbidden":
            hint = _nearest(error["loc"][-1], list(kind.model_fields))
            raise ConfigError(f"{place}{key}: unknown option{hint}") from exc
        raise ConfigError(f"{place}{key}: {error['msg']}, got {error['input']!r}") from exc


def _nearest(key: object, valid: Sequence[str]) -> str:
    """Suggest a valid key."""
    found = difflib.get_close_matches(str(key), valid, n=1)
    return f"; did you mean {found[0]}?" if found else ""
