"""Files that a command writes: checked before any work, and there whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from acnn.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, which appears whole or not at all; devices such as /dev/stdout are written to.

    Parameters
    ----------
    path
        The file; its folder must exist.
    content
        All of it.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    partial = _partial(path)
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_output(option: str, path: Path, read: Mapping[str, Path | None]) -> None:
    """Refuse a file that cannot be written, or that would take the place of one that the command reads.

    Parameters
    ----------
    option
        That names the file, for messages.
    path
        The file.
    read
        Other files of the command, by what they are called; None: not given.

    Raises
    ------
    ConfigError
        Says what is wrong with the file.
    """
    if path.is_dir() or not path.name:
        raise ConfigError(f"{option}: expected a file to write to, {path} is a folder")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"{option}: the folder of {path} does not exist")
    partial = _partial(path)
    for name, other in read.items():
        if other is not None and other.resolve() in (path.resolve(), partial.resolve()):
            raise ConfigError(f"{option}: {path} would overwrite {name}; choose another name")
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"{option}: {path} cannot be written: it is read-only")
    if path.exists() and not path.is_file():
        return
    try:
        partial.open("xb").close()
        partial.unlink()
    except FileExistsError:  # left by a killed command, or being written by another
        pass
    except OSError as exc:
        raise ConfigError(f"{option}: {path} cannot be written: {exc.strerror}") from exc


def _partial(path: Path) -> Path:
    """Name the file while it is written."""
    return path.with_name(path.name + ".partial")
