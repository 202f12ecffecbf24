"""Bulk data between jobs: compact columnar blobs for the job store's additional store named `data`."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from ase import Atoms
from monty.json import MSONable

from csp.state import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobflow import JobStore

# Stored formats outlive the code that wrote them: raise the number when the layout changes.
BATCH_FORMAT = 1


class StructureBatch(MSONable):
    """Many crystals as a few arrays.

    Not a dataclass: pydantic would take those apart instead of asking ``as_dict``.

    A pymatgen structure costs about 4 kB and a millisecond in a document; as columns the same costs 300 bytes.

    Parameters
    ----------
    numbers
        Atomic numbers of all structures one after the other, shape (n_atoms,).
    positions
        Cartesian positions, shape (n_atoms, 3), Å.
    cells
        Cells, rows are lattice vectors, shape (n_structures, 3, 3), Å.
    counts
        Atoms of each structure, shape (n_structures,).
    columns
        Per-structure data by name, each of shape (n_structures,): floats, integers, booleans or strings.
    """

    def __init__(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        cells: np.ndarray,
        counts: np.ndarray,
        columns: dict[str, np.ndarray] | None = None,
    ) -> None:
        self.numbers = numbers
        self.positions = positions
        self.cells = cells
        self.counts = counts
        self.columns = columns or {}

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self.counts)

    @classmethod
    def from_atoms(cls, frames: Sequence[Atoms], columns: dict[str, Sequence[Any]] | None = None) -> Self:
        """Pack structures; with ``columns`` None, the scalars that every ``atoms.info`` has become the columns."""
        data = _common_info(frames) if columns is None else columns
        return cls(
            numbers=_concatenate([a.numbers for a in frames], (0,), np.int16),
            positions=_concatenate([a.positions for a in frames], (0, 3), np.float64),
            cells=np.array([a.cell.array for a in frames], dtype=np.float64).reshape(-1, 3, 3),
            counts=np.array([len(a) for a in frames], dtype=np.int32),
            columns={name: np.asarray(values) for name, values in data.items()},
        )

    def to_atoms(self) -> list[Atoms]:
        """Unpack into periodic structures whose ``info`` holds the columns."""
        ends = np.cumsum(self.counts)
        frames = []
        for i, (end, count) in enumerate(zip(ends, self.counts, strict=True)):
            part = slice(end - count, end)
            info = {name: values[i].item() for name, values in self.columns.items()}
            frames.append(
                Atoms(self.numbers[part], positions=self.positions[part], cell=self.cells[i], pbc=True, info=info)
            )
        return frames

    def part(self, first: int, last: int) -> Self:
        """Return the structures from the first to the one before the last."""
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        atoms = slice(int(ends[first]), int(ends[min(last, len(self))]))
        return type(self)(
            self.numbers[atoms],
            self.positions[atoms],
            self.cells[first:last],
            self.counts[first:last],
            {name: values[first:last] for name, values in self.columns.items()},
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the batch as one compressed text field."""
        arrays = {"numbers": self.numbers, "positions": self.positions, "cells": self.cells, "counts": self.counts}
        arrays |= {f"column:{name}": values for name, values in self.columns.items()}
        objects = [name for name, values in arrays.items() if values.dtype == object]
        if objects:
            raise ValueError(f"structure batch: expected numbers, truth values or texts, got objects in {objects}")
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # the stub takes columns for flags
        return {
            "@module": type(self).__module__,
            "@class": type(self).__name__,
            "format": BATCH_FORMAT,
            "n_structures": len(self),
            "npz": base64.b64encode(buffer.getvalue()).decode(),
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Self:
        """Read what ``as_dict`` wrote; nothing is unpickled."""
        if d["format"] > BATCH_FORMAT:
            msg = f"structure batch of format {d['format']}, this version reads up to {BATCH_FORMAT}: update hullseeker"
            raise ValueError(msg)
        with np.load(io.BytesIO(base64.b64decode(d["npz"])), allow_pickle=False) as arrays:
            columns = {k.removeprefix("column:"): arrays[k] for k in arrays.files if k.startswith("column:")}
            core = {k: arrays[k] for k in ("numbers", "positions", "cells", "counts")}
        return cls(**core, columns=columns)


class ModelBlob(MSONable):
    """A trained potential as the bytes of its checkpoint (safetensors, see :mod:`acnn.checkpoint`).

    Parameters
    ----------
    content
        The checkpoint.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def sha256(self) -> str:
        """Hash of the checkpoint: the identity of the model."""
        return hashlib.sha256(self.content).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Return the checkpoint as text with its hash."""
        return {
            "@module": type(self).__module__,
            "@class": type(self).__name__,
            "sha256": self.sha256,
            "content": base64.b64encode(self.content).decode(),
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Self:
        """Read what ``as_dict`` wrote and check its hash."""
        blob = cls(base64.b64decode(d["content"]))
        if blob.sha256 != d["sha256"]:
            msg = "the stored model is damaged: its hash does not match; train it again"
            raise ValueError(msg)
        return blob


class LedgerBlob(MSONable):
    """A ledger on its way through the job store.

    Parameters
    ----------
    ledger
        Attempts and finds.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "@module": type(self).__module__,
            "@class": type(self).__name__,
            "ledger": self.ledger.model_dump(mode="json"),
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Self:
        """Read what ``as_dict`` wrote."""
        return cls(Ledger.model_validate(d["ledger"]))


def write_blobs_first(store: JobStore) -> None:
    """Let a job store write the blobs of an output before the document that names them.

    Jobflow does it the other way round: a process that is killed in between leaves a document that looks like a
    finished job and names blobs that never come.

    Parameters
    ----------
    store
        Any; changed in place.
    """
    there: Any = store  # what stands in for its documents is no whole store

    def update(docs: object, key: object = None, save: object = None) -> None:
        documents, held = there.docs_store, _Held()
        there.docs_store = held
        try:
            type(there).update(there, docs, key, save)
        finally:
            there.docs_store = documents
        documents.update(held.docs, key=held.key)

    there.update = update


class _Held:
    """Stands for a store and keeps what it is given."""

    docs: list[dict[str, Any]]
    key: list[str] | str | None

    def update(self, docs: list[dict[str, Any]], key: list[str] | str | None = None) -> None:
        self.docs, self.key = docs, key


def _concatenate(arrays: Iterable[np.ndarray], empty: tuple[int, ...], dtype: type) -> np.ndarray:
    arrays = list(arrays)
    return np.concatenate(arrays).astype(dtype) if arrays else np.zeros(empty, dtype=dtype)


def _common_info(frames: Sequence[Atoms]) -> dict[str, Sequence[Any]]:
    scalars = (str, bool, int, float, np.number)
    names = set.intersection(*(set(a.info) for a in frames)) if frames else set()
    names = {n for n in names if all(isinstance(a.info[n], scalars) for a in frames)}
    return {name: [a.info[name] for a in frames] for name in sorted(names)}
