"""The state of a training on disk: a killed run goes on exactly where it was."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from acnn.checkpoint import content_hash
from acnn.errors import StateError
from acnn.keep import aiding
from acnn.output import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from acnn.nn.potential import Potential

FILE_NAME = "train-state.safetensors"
VERSION = 11  # of what is kept and how fast it goes: other ones mean something else by the same names
KEY = "acnn-train-state"


@dataclass(slots=True)
class RunState:
    """Where a training stands.

    Parameters
    ----------
    step
        Optimiser steps done.
    seconds
        Time spent, over all restarts.
    loss
        Of the last minibatch.
    best_score
        Lowest score on the held-out part.
    waited
        Evaluations since then.
    stopped
        Whether the patience is spent, the weights being settled.
    skipped
        The part of the schedule that was passed over, when the patience was spent before.
    rewinds
        How often the loss has exploded.
    best
        The weights of the lowest score.
    queue
        Minibatches left of this epoch.
    history
        One record per evaluation.
    settling
        Whether the learning rate is at most a tenth of its highest: the best score and its weights are of since then.
    looks
        How often labels in other units were looked for.
    other_units
        The largest groups of them so far: numbers of the labels and their factor, by what they are of.
    set_aside
        Numbers of those that were found again: their forces or stresses are not learned any more.
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    best_score: float = math.inf
    waited: int = 0
    stopped: bool = False
    skipped: float = 0.0
    rewinds: int = 0
    best: list[torch.Tensor] = field(default_factory=list)
    queue: list[torch.Tensor] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    settling: bool = False
    looks: int = 0
    other_units: dict[str, tuple[list[int], float]] = field(default_factory=dict)
    set_aside: dict[str, list[int]] = field(default_factory=dict)


PLAIN = [x.name for x in fields(RunState) if x.name not in ("best_score", "best", "queue")]
"""What JSON can hold as it is."""


def identity(run: Any) -> dict[str, Any]:  # noqa: ANN401 - the loop's own class, which imports this module
    """Say what a state belongs to: settings, labels, shape, seed and the weights that it started from."""
    digest = hashlib.blake2b(digest_size=16)
    for label in run.labels:
        digest.update(f"{label.digest} {label.family} {label.forces is None} {label.stress is None}".encode())
        for array in (label.forces, label.stress):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "settings": run.settings.model_dump(mode="json"),
        "model": run.potential.config.model_dump(mode="json"),
        "elements": list(run.potential.elements),
        "labels": digest.hexdigest(),
        "start": run.start,
        "version": VERSION,
    }


def fingerprint(potential: Potential, seed: int) -> str:
    """Tell the start of one training from that of another.

    Parameters
    ----------
    potential
        As it is before anything is set from data.
    seed
        Of the training.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(str(seed).encode(), digest_size=16)
    for tensor in potential.state_dict().values():
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def save_state(folder: Path, run: Any) -> None:  # noqa: ANN401
    """Write the state of a run; the file appears whole or not at all, and a full disk ends nothing.

    Parameters
    ----------
    folder
        Where; made if it does not exist.
    run
        The running training.
    """
    state: RunState = run.state
    tensors: dict[str, torch.Tensor] = {"generator": run.generator.get_state(), "typical": run.loss.typical}
    for name, group in (("weight", run.parameters), ("average", run.average), ("best", state.best)):
        tensors.update({f"{name}.{i}": tensor.detach().clone() for i, tensor in enumerate(group)})
    for i, entry in enumerate(run.optimizer.state):
        tensors.update({f"optimizer.{i}.{key}": value.clone() for key, value in entry.items()})
    tensors.update({f"queue.{i}": chosen.clone() for i, chosen in enumerate(state.queue)})
    tensors.update({f"buffer.{key}": value.clone() for key, value in run.potential.named_buffers()})
    head = {key: getattr(state, key) for key in PLAIN}
    head |= {"identity": identity(run), "best_score": state.best_score if math.isfinite(state.best_score) else None}
    head |= {"optimizer_steps": run.optimizer.steps}
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    head["hash"] = content_hash(head, tensors)
    data = safetensors.torch.save(tensors, metadata={KEY: json.dumps(head, sort_keys=True)})
    with aiding(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / FILE_NAME, data)


def load_state(folder: Path, run: Any) -> bool:  # noqa: ANN401
    """Continue from a folder, if it holds a state of this very run.

    Parameters
    ----------
    folder
        Where `save_state` wrote.
    run
        The new training, as it is before its first step.

    Returns
    -------
    bool
        Whether there was a state.

    Raises
    ------
    StateError
        If the state is damaged or belongs to another training; names the file.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return False
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise StateError(f"{path}: cannot be read: {exc.strerror}") from exc
    try:
        size = int.from_bytes(data[:8], "little")
        head = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][KEY])
        tensors = safetensors.torch.load(data)
        intact = head.pop("hash") == content_hash(head, tensors)
        same = head["identity"] == identity(run)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise StateError(f"{path}: damaged, or of another version; delete it to start again") from exc
    if not intact:
        raise StateError(f"{path}: damaged (its content is not what was written); delete it to start again")
    if not same:
        raise StateError(
            f"{path}: belongs to another training (settings, labels, seed, start or version); delete it or choose "
            "another folder"
        )
    _restore(run, head, tensors)
    return True


def _restore(run: Any, head: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:  # noqa: ANN401
    """Put everything back in place."""
    state: RunState = run.state
    for key in PLAIN:
        setattr(state, key, head[key])
    state.best_score = math.inf if head["best_score"] is None else head["best_score"]
    with torch.no_grad():
        for i, parameter in enumerate(run.parameters):
            parameter.copy_(tensors[f"weight.{i}"])
            run.average[i].copy_(tensors[f"average.{i}"])
        for key, value in run.potential.named_buffers():
            value.copy_(tensors[f"buffer.{key}"])
    state.best = [tensors[f"best.{i}"] for i in range(len(run.parameters)) if f"best.{i}" in tensors]
    state.queue = [tensors[key] for key in sorted((k for k in tensors if k.startswith("queue.")), key=_rank)]
    run.generator.set_state(tensors["generator"])
    run.loss.typical = tensors["typical"]
    run.optimizer.steps = head["optimizer_steps"]
    for i, entry in enumerate(run.optimizer.state):
        prefix = f"optimizer.{i}."
        entry.update({key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)})


def _rank(key: str) -> int:
    """Read the number at the end of a key."""
    return int(key.rsplit(".", 1)[1])
