"""What makes a label the same label: the structure, the settings, and the kind of calculation."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from makers.config import AseLabelConfig, Atomate2LabelConfig
from makers.documents import LabelKind

if TYPE_CHECKING:
    from ase import Atoms

HASH_LENGTH = 32
ROUNDING = 1e-5  # Å: far below what any label resolves, far above what storage loses


def structure_hash(atoms: Atoms) -> str:
    """Return the identity of a crystal as it is written down.

    Parameters
    ----------
    atoms
        Structure; numbers, cell and positions count, rounded to 1e-5 Å.

    Returns
    -------
    str
        Hexadecimal, the same on every machine. A rotated or re-indexed crystal has another one.
    """
    digest = hashlib.sha256(np.asarray(atoms.numbers, dtype="<i8").tobytes())
    for array in (atoms.cell.array, atoms.positions):
        digest.update(np.rint(array / ROUNDING).astype("<i8").tobytes())
    return digest.hexdigest()[:HASH_LENGTH]


def settings_fingerprint(config: AseLabelConfig | Atomate2LabelConfig) -> str:
    """Return the identity of the physics: labels of different fingerprints never mix.

    Numbers of workers, time limits and thresholds do not count; calculator or maker and their settings do.

    Parameters
    ----------
    config
        The `label` section.

    Returns
    -------
    str
        Hexadecimal.
    """
    if isinstance(config, AseLabelConfig):
        physics = {"door": config.door, "calculator": config.calculator, "settings": config.settings}
    else:
        physics = {"door": config.door, "maker": config.maker, "incar": config.full_incar}
    return _hash(physics)


def label_id(structure: str, config: AseLabelConfig | Atomate2LabelConfig, kind: LabelKind, pressure_gpa: float) -> str:
    """Return the identity of a label.

    Parameters
    ----------
    structure
        Hash of the structure, see `structure_hash`.
    config
        The `label` section.
    kind
        What is calculated.
    pressure_gpa
        Pressure, GPa; counts for relaxations only.

    Returns
    -------
    str
        Hexadecimal.
    """
    parts: dict[str, Any] = {
        "structure": structure,
        "fingerprint": settings_fingerprint(config),
        "kind": str(kind),
    }
    if kind == LabelKind.RELAXATION:
        parts |= {"pressure_gpa": pressure_gpa, "fmax": config.relax_fmax, "max_steps": config.relax_max_steps}
        if isinstance(config, Atomate2LabelConfig):
            parts["relax_maker"] = config.relax_maker
    return _hash(parts)


def _hash(content: Any) -> str:  # noqa: ANN401 - settings are whatever the calculator takes
    text = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


def _canonical(content: Any) -> Any:  # noqa: ANN401 - settings are whatever the calculator takes
    # 2 and 2.0 are the same cutoff, however YAML or JSON wrote it
    if isinstance(content, dict):
        return {str(key): _canonical(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_canonical(value) for value in content]
    if isinstance(content, int | float) and not isinstance(content, bool):
        return float(content)
    return content if content is None or isinstance(content, bool) else str(content)
