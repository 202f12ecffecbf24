"""Read files of structures: one reader for training, evaluation and relaxation."""

from __future__ import annotations

from io import StringIO
from itertools import chain, islice
from typing import TYPE_CHECKING

from ase.io import iread
from ase.io.formats import filetype, get_compression, open_with_compression

from acnn.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ase import Atoms


PORTION = 64
"""Structures of a file that are held as text."""


def read_frames(path: Path) -> list[Atoms]:
    """Read all structures of a file.

    Parameters
    ----------
    path
        Any format that ASE reads; extxyz by preference.

    Returns
    -------
    list
        At least one structure.

    Raises
    ------
    DataError
        If the file cannot be read or holds nothing; names it and the structure.
    """
    return list(read_stream(path))


def read_stream(path: Path) -> Iterator[Atoms]:
    """Read structures one by one.

    Parameters
    ----------
    path
        Any format that ASE reads; extxyz is read as a stream.

    Yields
    ------
    Atoms
        A structure, with a calculator that holds what the file says of it.

    Raises
    ------
    DataError
        If the file cannot be read or holds nothing; names it and the structure, from zero.
    """
    if path.is_dir():
        raise DataError(f"{path}: expected a file to read, this is a folder")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    n_read = 0
    try:
        for atoms in _structures(path) if path.stat().st_size else ():
            yield atoms
            n_read += 1
    except DataError:
        raise
    except Exception as error:  # the readers of ASE raise whatever their parsers do
        raise DataError(f"{path}: structure {n_read} cannot be read: {_words(error)}") from error
    if n_read == 0:
        raise DataError(f"{path}: holds no structure")


def _structures(path: Path) -> Iterator[Atoms]:
    """Read by ASE's readers, extxyz piece by piece."""
    name = str(path)
    kind = "extxyz" if get_compression(name)[0].endswith((".xyz", ".extxyz")) else filetype(name)
    if kind != "extxyz":
        yield from iread(name, index=":", format=kind, do_not_split_by_at_sign=True)
        return
    for portion in _portions(path):
        yield from iread(portion, index=":", format=kind)


def _portions(path: Path) -> Iterator[StringIO]:
    """Cut an extxyz file into pieces; ASE would note the place of every structure before it reads the first."""
    with open_with_compression(str(path)) as file:
        frames = _texts(path, file)
        while lines := list(chain.from_iterable(islice(frames, PORTION))):
            yield StringIO("".join(lines))


def _texts(path: Path, file: Iterator[str]) -> Iterator[list[str]]:
    """Give the lines of each structure of an extxyz file; lines between them may be blank, where ASE would end."""
    line = frame = 0
    lines: list[str] = []
    for first in file:
        line += 1
        if lines and first.startswith("VEC"):  # lattice vectors below the atoms
            lines.append(first)
            continue
        if lines:
            yield lines
            lines = []
        if not first.strip():
            continue
        if not first.strip().isdecimal():
            found = first.strip()[:40]
            raise DataError(f"{path}: line {line}: expected the number of atoms of structure {frame}, got {found}")
        lines = [first, *islice(file, int(first) + 1)]
        line += len(lines) - 1
        frame += 1
    if lines:
        yield lines


def _words(error: Exception) -> str:
    """Say what an error means where its own words are none, a key alone, or of how ASE is made."""
    if isinstance(error.__cause__, StopIteration):
        return "it ends too early"
    text = str(error)
    return text if " " in text else f"{type(error).__name__} {text}".strip()
