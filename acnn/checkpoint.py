"""Potentials as bytes: safetensors with a JSON header; nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from acnn import __version__
from acnn.config import ModelConfig
from acnn.errors import ModelError
from acnn.nn.potential import Potential
from acnn.output import write_whole

FORMAT = "acnn-potential"
VERSION = 4
UNITS = {"length": "angstrom", "energy": "eV", "force": "eV/angstrom", "stress": "eV/angstrom^3"}


def dumps(potential: Potential) -> bytes:
    """Write a potential into bytes.

    Parameters
    ----------
    potential
        On any device; its ``metadata`` must be representable as JSON.

    Returns
    -------
    bytes
        A safetensors file; the same potential always gives the same bytes.
    """
    header = {
        "version": VERSION,
        "written_by": __version__,
        "config": potential.config.model_dump(mode="json"),
        "elements": list(potential.elements),
        "cutoff": potential.cutoff,
        "units": UNITS,
        "metadata": potential.metadata,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in potential.state_dict().items()}
    header["hash"] = content_hash(header, tensors)
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    return bytes(safetensors.torch.save(tensors, metadata={FORMAT: text}))


@torch.inference_mode(mode=False)  # its weights can be learned, and changes of them seen
def loads(data: bytes) -> Potential:
    """Read a potential from bytes.

    Parameters
    ----------
    data
        What `dumps` gave.

    Returns
    -------
    Potential
        On the CPU.

    Raises
    ------
    ModelError
        If the bytes are damaged, of another program or of a newer version.
    """
    header = read_header(data)
    try:
        tensors = safetensors.torch.load(data)
        if "hash" in header or header["version"] >= 3:  # older versions had none
            _check_hash(header, tensors)
        config = ModelConfig.model_validate(header["config"])
        potential = Potential(config, [str(symbol) for symbol in header["elements"]])
        if header["version"] == 1:  # one factor calibrated energies and forces alike
            tensors["calibration"] = tensors["calibration"].expand(2)
        if header["version"] <= 3:  # no Pulay stress was learned
            tensors["pulay.share"] = torch.zeros_like(potential.pulay.share)
        potential.load_state_dict(tensors)
        potential.metadata = dict(header.get("metadata", {}))
    except ModelError:
        raise
    except (SafetensorError, ValidationError, KeyError, TypeError, ValueError, RuntimeError) as exc:
        raise ModelError(f"the model is damaged: its content does not fit its header ({type(exc).__name__})") from exc
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ModelError("the model is damaged: it holds numbers that are not finite")
    return potential.eval()


def content_hash(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """Compute what changes with any bit of a header or of tensors.

    Parameters
    ----------
    header
        Anything that JSON can hold.
    tensors
        By name, on the CPU.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _check_hash(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Refuse content that is not what was written."""
    rest = {key: value for key, value in header.items() if key != "hash"}
    if header["hash"] != content_hash(rest, tensors):
        raise ModelError("the model is damaged: its content is not what was written (the hash differs); copy it again")


def read_header(data: bytes) -> dict[str, Any]:
    """Read what a model says about itself, without its weights.

    Parameters
    ----------
    data
        What `dumps` gave.

    Returns
    -------
    dict
        Version, configuration, elements, cutoff (Å), units, metadata.

    Raises
    ------
    ModelError
        If the bytes are damaged, of another program or of a newer version.
    """
    if len(data) < 8:
        raise ModelError("not a potential: expected a safetensors file written by acnn, got fewer than 8 bytes")
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ModelError("not a potential, or cut short: expected a safetensors file written by acnn")
    try:
        outer = json.loads(data[8 : 8 + length])
        header: dict[str, Any] = json.loads(outer["__metadata__"][FORMAT])
        version = int(header["version"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        raise ModelError("not a potential: expected a safetensors file written by acnn") from exc
    if version > VERSION:
        written_by = header.get("written_by", "unknown")
        raise ModelError(
            f"the model has format version {version} (written by acnn {written_by}), "
            f"this program reads up to {VERSION}; upgrade acnn"
        )
    return header


def save(potential: Potential, path: str | Path) -> None:
    """Write a potential to a file, which appears whole or not at all.

    Parameters
    ----------
    potential
        The potential.
    path
        The file; its folder must exist.
    """
    write_whole(Path(path), dumps(potential))


def load(path: str | Path) -> Potential:
    """Read a potential from a file.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Potential
        On the CPU.

    Raises
    ------
    ModelError
        If the file cannot be read, is damaged, of another program or of a newer version; names the file.
    """
    try:
        return loads(Path(path).read_bytes())
    except OSError as exc:
        raise ModelError(f"{path}: cannot be read: {exc.strerror}") from exc
    except ModelError as exc:
        raise ModelError(f"{path}: {exc}") from exc
