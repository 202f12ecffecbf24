"""Which worker and which queue settings each stage asks for: a fact of the machine, never of the search file."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from makers.errors import ConfigError
from makers.stage import Stage

if TYPE_CHECKING:
    from makers.resources import Resources

VARIABLE = "HULLSEEKER_RESOURCES"
"""Names the file of resources."""

WORKERS: Resources = {
    "generate": {"_category": "light"},
    "relax": {"_category": "ml"},
    "select": {"_category": "light"},
    "label": {"_category": "dft"},
    "train": {"_category": "ml"},
    "advance": {"_category": "light"},
    "report": {"_category": "light"},
}
"""What each stage asks for where no file says otherwise: the category of its worker."""


def configured_resources() -> Resources:
    """Return what each stage asks for on this machine.

    Returns
    -------
    Resources
        Of the file that the variable ``HULLSEEKER_RESOURCES`` names, or ``WORKERS``.

    Raises
    ------
    ConfigError
        If there is no such file, or it is wrong.
    """
    path = os.environ.get(VARIABLE)
    return load_resources(Path(path)) if path else WORKERS


def load_resources(path: Path) -> Resources:
    """Read and check a file of resources.

    Parameters
    ----------
    path
        YAML: by stage, keys that FireWorks looks for in the spec of a job, such as ``_category`` and ``_queueadapter``.

    Returns
    -------
    Resources
        For every stage.

    Raises
    ------
    ConfigError
        If the file is missing or not YAML, or a stage or key is unknown or missing.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} (named by {VARIABLE}): cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    stages = [str(stage) for stage in Stage]
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: expected the stages {', '.join(stages)}, got {type(content).__name__}")
    for name in content:
        if name not in stages:
            near = difflib.get_close_matches(str(name), stages, n=1)
            raise ConfigError(
                f"{path}: {name}: no such stage; " + (f"did you mean `{near[0]}`?" if near else str(stages))
            )
    if missing := [stage for stage in stages if stage not in content]:
        raise ConfigError(f"{path}: expected every stage, got none of {', '.join(missing)}")
    return {stage: _checked(path, stage, content[stage]) for stage in stages}


def _checked(path: Path, stage: str, settings: object) -> dict[str, Any]:
    settings = {} if settings is None else settings
    if not isinstance(settings, dict) or any(not str(key).startswith("_") for key in settings):
        raise ConfigError(
            f"{path}: {stage}: expected keys as `_category` and `_queueadapter` (of FireWorks), got {settings!r}"
        )
    if not isinstance(settings.get("_queueadapter", {}), dict):
        raise ConfigError(f"{path}: {stage}._queueadapter: expected keys and values, got {settings['_queueadapter']!r}")
    return settings
