"""Stage `train`: the potential learns from every label so far."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase.units import GPa

from acnn import checkpoint
from acnn.evaluate import evaluate, predict
from acnn.train import train
from csp.feedback import walk_forward_near_hull
from csp.hull import Hull, formula_of
from makers.blobs import ModelBlob
from makers.documents import LabelDoc, LabelSummary, TrainDoc, TrainSummary
from makers.labelling import read_labels, to_training_frames
from makers.outcomes import NEAR_HULL_ERROR
from makers.phases import enthalpy_per_atom
from makers.scratch import resumable
from makers.stage import Handle, Stage, StageMaker, current_store, seed_sequence, stage_job, stored_already

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
    pressure_gpa
        Pressure, GPa.
    near_hull_ev
        What counts as near the hull, eV/atom.
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
    pressure_gpa: float
    near_hull_ev: float
    seed: int
    settings: TrainConfig
    model: ModelConfig
    name: str = Stage.TRAIN

    @stage_job(TrainDoc)
    def make(self, generation: int, labelled: LabelSummary, previous: Handle | None = None) -> TrainDoc:
        """Train one model; a killed launch is gone on from, see `makers.scratch`.

        Of two launches the first to end counts: the next generation may use its model already, and a training that
        ``max_time`` ends does not give the same one again.

        Parameters
        ----------
        generation
            Number of the generation.
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
        if (done := stored_already(TrainDoc)) is not None:
            return done
        store = current_store()
        labels = read_labels(store, self.project, self.fingerprint, until=generation)
        before = checkpoint.loads(previous.fetch(store).content) if previous else None
        unseen = [label for label in labels if label.generation == generation]
        walk_forward = (
            walk_forward_errors(before, labels, unseen, self.pressure_gpa, self.near_hull_ev) if before else {}
        )
        frames = to_training_frames(labels)
        seed = int(seed_sequence(self.seed, generation, Stage.TRAIN).generate_state(1)[0])
        result = resumable(
            lambda folder: train(
                frames,
                model=self.model,
                settings=self.settings,
                seed=seed,
                previous=before,
                elements=self.elements,
                work_dir=folder,
                label_fingerprint=self.fingerprint,
            )
        )
        metrics = errors(result.potential, frames, self.settings)
        seconds = time.perf_counter() - start
        logger.info(
            "train %03d: %d labels, energy MAE %.1f meV/atom, force MAE %s eV/Å in %.1f s",
            generation,
            len(frames),
            metrics["energy_mae_mev_per_atom"],
            f"{metrics['force_mae_ev_per_a']:.3f}" if "force_mae_ev_per_a" in metrics else "-",
            seconds,
        )
        summary = TrainSummary(
            n_labels=len(frames),
            dropped=dict(result.dropped),
            metrics=metrics,
            walk_forward=walk_forward,
            seconds=seconds,
        )
        new = TrainDoc(model=ModelBlob(checkpoint.dumps(result.potential)), summary=summary)
        return stored_already(TrainDoc) or new


def walk_forward_errors(
    model: Potential, labels: list[LabelDoc], unseen: list[LabelDoc], pressure_gpa: float, near_hull_ev: float
) -> dict[str, float]:
    """Measure a model on labels that it has not seen: the honest error of a search.

    Parameters
    ----------
    model
        The model that chose them.
    labels
        All labels; their hull says which of the new ones are near it.
    unseen
        New labels.
    pressure_gpa
        Pressure, GPa.
    near_hull_ev
        New labels count as near the hull if first principles or the model put them within this distance, eV/atom: a
        minimum that only the model sees is the error that misleads a search most.

    Returns
    -------
    dict
        Errors over all new labels, and ``NEAR_HULL_ERROR`` for those near the hull; the unit is in each name. Empty
        without new labels.
    """
    frames = to_training_frames(unseen)
    if not frames:
        return {}
    counts = np.array([len(atoms) for atoms in frames])
    true = np.array([atoms.get_potential_energy() for atoms in frames]) / counts
    predicted = predict(model, frames).energies / counts
    formulas = [formula_of(atoms) for atoms in frames]
    enthalpies = [enthalpy_per_atom(label, pressure_gpa) for label in labels]
    hull = Hull.from_entries([label.formula for label in labels], enthalpies)
    work = pressure_gpa * GPa * np.array([atoms.get_volume() for atoms in frames]) / counts
    heights = hull.e_above_many(formulas, np.minimum(true, predicted) + work)
    near = walk_forward_near_hull(predicted, true, heights, near_hull_ev)
    return errors(model, frames) | {NEAR_HULL_ERROR: near}


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
