"""The search files to start from, and the LaunchPad's."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from makers.errors import ConfigError


def write_template(folder: Path, template: str) -> Path:
    """Write an annotated search file.

    Parameters
    ----------
    folder
        Where; made here.
    template
        Name of a file in ``workflows/configs``, without suffix.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        If there is no such template, the file exists or cannot be written.
    """
    known = {Path(entry.name).stem: entry for entry in files("workflows").joinpath("configs").iterdir()}
    if template not in known:
        raise ConfigError(f"--template: expected one of {', '.join(sorted(known))}, got {template!r}")
    path = folder / "search.yaml"
    if path.exists():
        raise ConfigError(f"{path}: exists already; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(known[template].read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: expected a folder that can be written, got: {error.strerror}") from error
    return path
