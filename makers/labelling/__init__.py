"""First-principles labels as plain functions: identity, calculation in worker processes, validation, storage."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from makers.labelling.identity import settings_fingerprint
    from makers.labelling.records import read_labels, to_training_frames

__all__ = ["read_labels", "settings_fingerprint", "to_training_frames"]

_HOME = {
    "read_labels": "makers.labelling.records",
    "settings_fingerprint": "makers.labelling.identity",
    "to_training_frames": "makers.labelling.records",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    # imported when asked for: the worker processes need neither jobflow nor maggma, and start twice as fast without
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
