"""Stage `train`: the potential learns from every label so far."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from acnn import checkpoint
from acnn.evaluate import evaluate
from acnn.train import train
from makers.blobs import ModelBlob
from makers.documents import LabelDoc, LabelSummary, TrainDoc, TrainSummary
from makers.labelling import read_labels, to_training_frames
from makers.stage import Handle, Stage, StageMaker, current_store, seed_sequence, stage_job

if TYPE_CHECKING:
    from ase import Atoms

    from acnn.config import ModelConfig, TrainConfig
    from acnn.nn.potential import Potential

logger = logging.getLogger(__name__)


@dataclass
class TrainMaker(StageMaker):
    """Train the committee on all labels, starting from the model of the generation before.

    Parameters
    ----------
    project
        The search, whose labels are read.
    fingerprint
        Label settings; labels of other settings never mix in.
    elements
        Chemical symbols of the system.
    seed
        Seed of the search.
    settings
        The `train` section of the search file.
    model
        Its `model` section: the architecture.
    name
        Job name.
    """

    project: str
    fingerprint: str
    elements: tuple[str, ...]
    seed: int
    settings: TrainConfig
    model: ModelConfig
    name: str = Stage.TRAIN

    @stage_job(TrainDoc)
    def make(
        self, generation: int, near_hull: list[str], labelled: LabelSummary, previous: Handle | None = None
    ) -> TrainDoc:
        """Train one model.

        Parameters
        ----------
        generation
            Number of the generation.
        near_hull
            Label reasons whose walk-forward error counts as the error near the hull.
        labelled
            Outcome of the label stage; training waits for it.
        previous
            Model of the generation before; None trains from scratch.

        Returns
        -------
        TrainDoc
            The checkpoint, its errors, and the walk-forward errors of the model before.
        """
        del labelled  # the labels themselves are read from their collection
        start = time.perf_counter()
        store = current_store()
        labels = read_labels(store, self.project, self.fingerprint)
        before = checkpoint.loads(previous.fetch(store).content) if previous else None
        unseen = [label for label in labels if label.generation == generation]
        walk_forward = walk_forward_errors(before, unseen, near_hull) if before else {}
        frames = to_training_frames(labels)
        seed = int(seed_sequence(self.seed, generation, Stage.TRAIN).generate_state(1)[0])
        result = train(
            frames,
            model=self.model,
            settings=self.settings,
            seed=seed,
            previous=before,
            elements=self.elements,
            label_fingerprint=self.fingerprint,
        )
        metrics = errors(result.potential, frames, self.settings)
        seconds = time.perf_counter() - start
        logger.info(
            "train %03d: %d labels, energy MAE %.1f meV/atom, force MAE %.3f eV/Å in %.1f s",
            generation,
            len(frames),
            metrics["energy_mae_mev_per_atom"],
            metrics["force_mae_ev_per_a"],
            seconds,
        )
        summary = TrainSummary(
            n_labels=len(frames),
            dropped=dict(result.dropped),
            metrics=metrics,
            walk_forward=walk_forward,
            seconds=seconds,
        )
        return TrainDoc(model=ModelBlob(checkpoint.dumps(result.potential)), summary=summary)


def walk_forward_errors(model: Potential, labels: list[LabelDoc], near_hull: list[str]) -> dict[str, float]:
    """Measure a model on labels that it has not seen: the honest error of a search.

    Parameters
    ----------
    model
        The model that chose them.
    labels
        New labels.
    near_hull
        Label reasons that count as near the hull.

    Returns
    -------
    dict
        Errors over all new labels, and over those near the hull with the prefix ``near_hull_``; the unit is in the
        name. Empty groups are absent.
    """
    found: dict[str, float] = {}
    groups: dict[str, list[LabelDoc]] = {"": labels, "near_hull_": [x for x in labels if x.reason in near_hull]}
    for prefix, group in groups.items():
        frames = to_training_frames(group)
        if frames:
            found |= {prefix + name: value for name, value in errors(model, frames).items()}
    return found


def errors(model: Potential, frames: list[Atoms], settings: TrainConfig | None = None) -> dict[str, float]:
    """Measure a model on labels.

    Parameters
    ----------
    model
        The potential.
    frames
        Labelled structures.
    settings
        Limits beyond which labels do not count; None counts all.

    Returns
    -------
    dict
        Errors, the unit in each name; what the labels do not say is absent.
    """
    metrics = evaluate(model, frames, settings=settings).model_dump()
    return {name: float(value) for name, value in metrics.items() if value is not None}
