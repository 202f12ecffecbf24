"""Finished structures on disk, so that a killed relaxation continues where it was."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from acnn.errors import ConfigError, DataError
from acnn.keep import aiding
from acnn.relax.result import Relaxed, RelaxStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from acnn.relax.pool import Job

logger = logging.getLogger(__name__)

FLUSH_RESULTS = 500
"""Results after which a file is written."""

FLUSH_SECONDS = 30.0
"""Time after which a file is written, s."""

OPEN_PARTS = 128
"""Files held in memory while results are read back: neighbours in the input lie as far apart as they ended."""

FLOATS = ("fmax", "stress_residual_gpa", "energy", "enthalpy", "spread")


class Journal:
    """A folder of columnar files, each with the results of some structures.

    Parameters
    ----------
    folder
        Made with the first results.
    request
        What was asked for (settings, pressure, model); a folder serves one request only.

    Raises
    ------
    ConfigError
        If the folder holds results of another request.
    """

    def __init__(self, folder: Path, request: dict[str, Any]) -> None:
        self.folder = folder
        self._request = json.dumps(request, sort_keys=True, indent=1)
        self._stamp = folder / "request.json"
        found = self._stamp.read_text(errors="replace") if self._stamp.exists() else self._request
        if found != self._request:
            raise ConfigError(f"{folder}: holds results of other settings; expected {self._request}, got {found}")
        self._known: dict[int, tuple[Path, int]] = {}
        self._pending: list[tuple[str, Relaxed]] = []
        self._hashes: dict[int, str] = {}
        self._last = time.monotonic()
        self._part = lru_cache(OPEN_PARTS)(_columns)
        for path in sorted(folder.glob("part-*.npz")):
            try:
                indices = _columns(path)["index"]
            except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
                logger.warning("%s cannot be read, its structures are relaxed again: %s", path, error)
                continue
            self._known.update({int(index): (path, row) for row, index in enumerate(indices)})

    def __len__(self) -> int:
        """Count the structures that are done."""
        return len(self._known)

    def remaining(self, jobs: Iterator[Job]) -> Iterator[Job | Relaxed]:
        """Replace the structures that are done by their results.

        Parameters
        ----------
        jobs
            All structures of the request, in their order.

        Yields
        ------
        Job | Relaxed
            A structure to relax, or its result.

        Raises
        ------
        DataError
            If a result belongs to another structure than the one of the same number.
        """
        for job in jobs:
            place = self._known.get(job.index)
            mark = fingerprint(job)
            if place is None:
                self._hashes[job.index] = mark
                yield job
            else:
                yield self._load(job, mark, *place)

    def add(self, result: Relaxed) -> None:
        """Keep a result; it is on disk at the latest half a minute or 500 results later.

        Parameters
        ----------
        result
            A finished structure.
        """
        self._pending.append((self._hashes.pop(result.index), result))
        if len(self._pending) >= FLUSH_RESULTS or time.monotonic() - self._last > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet; what a full disk does not take is relaxed again after a kill."""
        self._last = time.monotonic()
        if self._pending:
            with aiding(self.folder):
                self._write_pending()
            self._pending.clear()

    def _write_pending(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self._stamp, self._request.encode())
        number = 1 + max((int(path.stem[5:]) for path in self.folder.glob("part-*.npz")), default=-1)
        path = self.folder / f"part-{number:06d}.npz"
        results = [result for _, result in self._pending]
        columns = {
            "fingerprint": np.array([mark for mark, _ in self._pending]),
            "index": np.array([r.index for r in results]),
            "n_atoms": np.array([len(r.atoms) for r in results]),
            "positions": np.concatenate([r.atoms.positions for r in results]),
            "cell": np.array([r.atoms.cell.array for r in results]),
            "status": np.array([r.status.value for r in results]),
            "reason": np.array([r.reason for r in results]),
            "n_steps": np.array([r.n_steps for r in results]),
            "has_safe": np.array([r.last_safe is not None for r in results]),
        }
        columns |= {name: np.array([getattr(r, name) for r in results]) for name in FLOATS}
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, **columns)  # type: ignore[arg-type]  # the stub takes the columns for allow_pickle
        temporary.replace(path)

    def _load(self, job: Job, mark: str, path: Path, row: int) -> Relaxed:
        """Read one result."""
        columns = self._part(path)
        if columns["fingerprint"][row] != mark:
            raise DataError(f"{path}: structure {job.index} is another one than before; expected the same input")
        end = int(columns["n_atoms"][: row + 1].sum())
        atoms = job.atoms.copy()
        atoms.set_cell(columns["cell"][row])
        atoms.set_positions(columns["positions"][end - len(atoms) : end], apply_constraint=False)
        return Relaxed(
            index=job.index,
            atoms=atoms,
            status=RelaxStatus(str(columns["status"][row])),
            reason=str(columns["reason"][row]),
            n_steps=int(columns["n_steps"][row]),
            **{name: float(columns[name][row]) for name in FLOATS},
            last_safe=atoms.copy() if columns["has_safe"][row] else None,
        )


def fingerprint(job: Job) -> str:
    """Hash a structure and its pressure.

    Parameters
    ----------
    job
        The structure.

    Returns
    -------
    str
        Sixteen hexadecimal digits.
    """
    digest = hashlib.sha256(job.atoms.numbers.astype("<i8").tobytes())
    for values in (job.atoms.cell.array, job.atoms.positions, job.pressure_gpa):
        digest.update(np.asarray(values, dtype="<f8").tobytes())
    return digest.hexdigest()[:16]


def _columns(path: Path) -> dict[str, np.ndarray]:
    """Read a part."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as part:
        return {name: part[name] for name in part.files}


def _write(path: Path, content: bytes) -> None:
    """Write a file in one stroke."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
