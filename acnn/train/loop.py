"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.data import chemical_symbols
from tqdm import tqdm

from acnn.errors import ModelError, NumericalError
from acnn.threads import torch_threads
from acnn.train.dataset import Dataset
from acnn.train.labels import LabelSet, digests_of, read_labels, text_of
from acnn.train.loss import RobustLoss, doubted, energy_trust, random_mixture, residuals
from acnn.train.metrics import FEWEST_TO_CALIBRATE, calibrate, find_other_units, measure, thinned
from acnn.train.optimizer import Soap
from acnn.train.prepare import pull_back, set_onsets, set_references, set_whitening, start_potential, typical_force
from acnn.train.restart import RunState, fingerprint, load_state, save_state
from acnn.train.schedule import (
    TRUSTING,
    check_settings,
    default_patience,
    default_steps,
    loss_weights,
    moment,
    rate_factor,
    rise,
    top_learning_rate,
)
from acnn.train.split import ownership, split_families, unlearned
from acnn.train.units import warn_of_other_scale, warn_of_pulay_stress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ase import Atoms

    from acnn.config import ModelConfig, TrainConfig
    from acnn.nn.potential import Potential
    from acnn.train.label import Label

logger = logging.getLogger(__name__)

LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # parts of the training after which labels in other units are looked for
SETTLING = 0.8  # of the training; from here on, at a tenth of the highest rate and less, the best weights are chosen
EXPLODED = 1e6  # a loss that no training recovers from; it starts between a hundredth and a hundred
MOST_REWINDS = 4
SAVE_SECONDS = 30.0
CLOCK_FROM = 0.02  # of the time allowed; before, the first steps would make even a limit that is far away count


@dataclass(slots=True)
class TrainResult:
    """What a training gives.

    Parameters
    ----------
    potential
        With its history in ``metadata``.
    history
        One record per evaluation; units are in the names.
    dropped
        Labels set aside, by reason.
    lacking
        Labels that do not say all that can be learned, by what they lack.
    doubted
        Labels that count less than half, by reason; of forces, where one atom's does: of new ones until all count.
    n_train
        Labels learned.
    n_held_out
        Labels held out.
    errors
        Mean absolute errors of the kept weights on the labels held out, or on the first ones learned if there are
        none; units are in the names; without what no label holds.
    seconds
        Time spent, over all restarts.
    """

    potential: Potential
    history: list[dict[str, float]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    lacking: Counter[str] = field(default_factory=Counter)
    doubted: Counter[str] = field(default_factory=Counter)
    n_train: int = 0
    n_held_out: int = 0
    errors: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def train(
    frames: Sequence[Atoms],
    *,
    model: ModelConfig,
    settings: TrainConfig,
    seed: int,
    previous: Potential | None = None,
    elements: Sequence[str] | None = None,
    work_dir: Path | None = None,
    label_fingerprint: str = "",
) -> TrainResult:
    """Fit a potential to labels.

    Parameters
    ----------
    frames
        Structures with a calculator that holds energy (eV), forces (eV/Å) and stress (eV/Å^3, ASE's sign); forces and
        stress may be absent.
    model
        Shape of the potential; that of ``previous`` must be the same.
    settings
        How to fit.
    seed
        Decides initial weights, held-out part and order; the same seed and ``threads`` give the same bits on the same
        machine as long as ``max_time`` does not end or shape the training.
    previous
        Potential to start from; it is not changed. All its labels should be among ``frames``, or it forgets them.
    elements
        Symbols that the potential must know; None: those of the frames (and of ``previous``).
    work_dir
        Folder for the state of the run; a killed training that finds its state there goes on exactly where it was.
    label_fingerprint
        What identifies the settings of the calculations; a ``previous`` of other settings is refused.

    Returns
    -------
    TrainResult
        The potential on the CPU, and what happened.

    Raises
    ------
    ModelError
        If ``previous`` does not fit.
    NumericalError
        If the loss is not finite.
    """
    check_settings(settings)
    if previous is not None and previous.metadata.get("label_fingerprint", "") != label_fingerprint:
        raise ModelError("the previous potential learned labels of other settings; start from scratch")
    with torch_threads(settings.threads):
        found = read_labels(frames, settings)
        potential = start_potential(found.labels, model, seed, previous, elements)
        run = _Run(found, potential, settings, seed, warm=previous is not None)
        run.fit(work_dir)
        return run.finish(label_fingerprint)


class _Run:
    """One training: data, potential, optimiser and where it stands."""

    def __init__(self, found: LabelSet, potential: Potential, settings: TrainConfig, seed: int, *, warm: bool) -> None:
        self.settings, self.potential, self.warm, self.dropped = settings, potential, warm, found.dropped
        self.lacking, self.beyond = found.lacking, found.beyond
        self.start, self.seed = fingerprint(potential, seed), seed
        self.labels: list[Label] = found.labels
        self.seen = digests_of(potential.metadata.get("learned", ""))
        kept, held = split_families(self.labels, settings.validation_fraction, np.random.default_rng(seed), self.seen)
        self.kept, self.held = torch.tensor(kept), torch.tensor(held, dtype=torch.int64)
        # a potential that does not say what it learned is of before this was noted
        self.learned = set(potential.metadata.get("learned_elements", potential.elements)) if warm else set[str]()
        set_references(potential, [self.labels[number] for number in kept], self.learned)
        self.data = Dataset(self.labels, potential)
        self.calibration = potential.calibration.clone()
        if len(held) < FEWEST_TO_CALIBRATE:  # too few at the end: what the previous potential foresaw of the new labels
            told = unlearned(self.labels, self.seen, self.learned)
            calibrate(potential, self.data, torch.tensor(told, dtype=torch.int64), settings.batch_atoms)
        set_onsets(potential, self.data)
        self.generator = torch.Generator().manual_seed(seed)
        order = self.kept[torch.randperm(len(self.kept), generator=self.generator)]
        set_whitening(potential, self.data, order, settings.batch_atoms, self.learned)
        size = len(self.kept), int(self.data.counts[self.kept].sum())
        self.max_steps = settings.max_steps or default_steps(*size, settings, warm=warm)
        pull_back(potential, self.data, self.learned, 0 if settings.max_time else self.max_steps)
        self.owned = torch.as_tensor(ownership(self.labels, potential.n_members), dtype=potential.dtype)
        excess = self.data.energy / self.data.counts
        known = torch.tensor([label.digest in self.seen for label in self.labels])
        force = typical_force([self.labels[number] for number in kept])
        self.loss = RobustLoss(energy_trust(excess, known), force, known)
        self.doubted = doubted(self.labels, self.loss)
        named = [(name, p) for name, p in potential.named_parameters() if p.requires_grad]
        self.parameters: list[torch.Tensor] = [p for _, p in named]
        decayed = [name.startswith(("fitting.first", "fitting.weights", "attention")) for name, _ in named]
        self.optimizer = Soap(self.parameters, settings.weight_decay, decayed)
        self.average = [p.detach().clone() for p in self.parameters]
        self.state = RunState(best=[p.detach().clone() for p in self.parameters])
        self.patience = settings.patience or default_patience(self.max_steps, settings)
        self.top_rate = top_learning_rate(*size, self.max_steps, settings, warm=warm)

    def fit(self, work_dir: Path | None) -> None:
        """Run until the schedule, the time or the patience ends."""
        if work_dir is not None:
            load_state(work_dir, self)
        state = self.state
        self.data.set_aside = state.set_aside
        began = saved = time.monotonic()
        bar = tqdm(total=self.max_steps, initial=state.step, desc="train", unit="step", disable=None, leave=False)
        with bar:
            while state.step < self.max_steps and not state.stopped:
                now = time.monotonic()
                state.seconds += now - began
                began = now
                progress = self._progress()
                if progress >= 1.0:
                    break
                self._step(progress)
                bar.update()
                if state.looks < len(LOOKS) and progress >= LOOKS[state.looks]:
                    state.looks += 1
                    self._swap()
                    self._look_for_other_units()
                    self._swap()
                if state.step % self.settings.evaluate_every == 0:
                    self._evaluate(bar)
                if work_dir is not None and now - saved > SAVE_SECONDS:
                    save_state(work_dir, self)
                    saved = now
        state.seconds += time.monotonic() - began
        self._evaluate(bar)
        if work_dir is not None:
            save_state(work_dir, self)

    def _progress(self) -> float:
        """Say what part of the training is done."""
        done = self.state.step / self.max_steps
        spent = self.state.seconds / self.settings.max_time if self.settings.max_time else 0.0
        if spent > CLOCK_FROM:
            done = max(done, spent)
        return done + self.state.skipped

    def _learning_rate(self, progress: float) -> float:
        """Rise, also where the optimiser begins anew, then fall as the schedule says."""
        top = self.top_rate * 0.3**self.state.rewinds * rise(self.optimizer.steps, self.max_steps)
        return top * rate_factor(moment(progress, warm=self.warm))

    def _step(self, progress: float) -> None:
        """Take one minibatch."""
        state = self.state
        if not state.queue:
            state.queue = self.data.epoch(self.kept, self.settings.batch_atoms, self.generator)
        graph, targets = self.data.batch(state.queue.pop())
        owned = self.owned[targets.number]
        weights = loss_weights(moment(progress, warm=self.warm), self.settings)
        mixture = random_mixture(owned, self.generator)
        misfits = residuals(self.potential, graph, targets, mixture, training=True, pulay=weights.pulay)
        loss = self.loss(misfits, targets, weights, owned)
        state.loss = float(loss.detach())
        if not abs(state.loss) < EXPLODED:
            self._rewind()
            return
        gradients = torch.autograd.grad(loss, self.parameters)
        self.optimizer.step(gradients, self._learning_rate(progress))
        state.step += 1
        decay = min(self.settings.ema_decay, state.step / (state.step + 10.0))
        with torch.no_grad():
            for average, parameter in zip(self.average, self.parameters, strict=True):
                average.lerp_(parameter, 1.0 - decay)

    def _rewind(self) -> None:
        """Go back to the best weights so far, with a smaller learning rate, after the loss has exploded."""
        state = self.state
        state.step += 1
        state.rewinds += 1
        logger.warning("step %d: the loss is %g; going back to the best weights", state.step, state.loss)
        if state.rewinds > MOST_REWINDS:
            raise NumericalError(f"step {state.step}: the loss is {state.loss}; is one of the labels wrong?")
        self._back_to_best()

    def _swap(self) -> None:
        """Exchange the weights with their moving average."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                kept = parameter.clone()
                parameter.copy_(average)
                average.copy_(kept)

    def _judges(self) -> torch.Tensor:
        """Give the labels that tell the errors: those held out, or else the first ones learned."""
        return self.held if len(self.held) else self.kept[:16]

    def _evaluate(self, bar: Any) -> None:  # noqa: ANN401 - tqdm is generic
        """Measure the averaged weights on the held-out part, keep the best ones, count the patience."""
        state = self.state
        if state.history and state.history[-1]["step"] == state.step:  # the last step, or a finished run read back
            return
        self._swap()
        record = measure(self.potential, self.data, self._judges(), self.settings.batch_atoms)
        record = {"step": float(state.step), "seconds": round(state.seconds, 3), "loss": state.loss, **record}
        score = record.pop("score")
        state.history.append(record)
        if not state.settling and self._progress() >= SETTLING:
            state.settling, state.best_score = True, math.inf
        # a warm start unlearns something at first: the weights that it began with would be the best ones for long
        early = moment(self._progress(), warm=self.warm) < TRUSTING
        if not len(self.held) or (score < state.best_score and not (early and self.warm)):
            state.best_score, state.waited = score, 0
            state.best = [p.detach().clone() for p in self.parameters]
        elif not (early and (self.warm or self.settings.patience is None)):
            state.waited += 1
            if state.waited >= self.patience:
                self._end_early()
        self._swap()
        energy, force = record["energy_mae_ev_per_atom"], record.get("force_mae_ev_per_a", math.nan)
        bar.set_postfix({"E meV/atom": f"{1e3 * energy:.2f}", "F eV/Å": f"{force:.3f}"})

    def _end_early(self) -> None:
        """Stop where the weights have settled; where they have not, let the best ones settle."""
        state = self.state
        if state.settling:
            state.stopped = True
            return
        self._look_for_other_units()
        state.looks, state.waited = len(LOOKS), 0
        state.skipped += SETTLING - self._progress()
        # the labels' Pulay stress, which no score judges, goes on from where it is: no time is left to learn it again
        place = next(k for k, p in enumerate(self.parameters) if p is self.potential.pulay.share)
        state.best[place] = self.parameters[place].detach().clone()
        self._back_to_best()

    def _back_to_best(self) -> None:
        """Put the best weights so far in place of the present ones."""
        with torch.no_grad():
            for parameter, average, best in zip(self.parameters, self.average, self.state.best, strict=True):
                parameter.copy_(best)
                average.copy_(best)
        self.optimizer.reset()
        self.loss.typical.fill_(-1.0)

    def _look_for_other_units(self) -> None:
        """Keep the largest group of labels in other units, and set aside those found before: else they are learned."""
        state = self.state
        found = find_other_units(self.potential, self.data, self.settings.batch_atoms, self.beyond)
        for name, (numbers, factor) in found.items():
            largest, _ = state.other_units.get(name, ([], 1.0))
            if again := {*state.set_aside.get(name, []), *(set(largest) & set(numbers.tolist()))}:
                state.set_aside[name] = sorted(again)
            if len(numbers) > len(largest):
                state.other_units[name] = numbers.tolist(), factor

    def finish(self, label_fingerprint: str) -> TrainResult:
        """Put the best weights in place and write the history."""
        with torch.no_grad():
            for parameter, best in zip(self.parameters, self.state.best, strict=True):
                parameter.copy_(best)
        potential, state = self.potential, self.state
        if len(self.held) < FEWEST_TO_CALIBRATE and "forces" in state.set_aside:  # these told wrongly, at the start
            potential.calibration[1] = self.calibration[1]
        calibrate(potential, self.data, self.held, self.settings.batch_atoms)
        errors = measure(potential, self.data, self._judges(), self.settings.batch_atoms)
        del errors["score"]
        for name, numbers in state.set_aside.items():
            self.lacking[f"{name} (there are some, not learned: of another unit or sign)"] = len(numbers)
        self._look_for_other_units()
        for name, (numbers, factor) in sorted(state.other_units.items()):
            warn_of_other_scale(name, numbers, factor, [label.frame for label in self.labels])
        pulay = potential.pulay.by_element(potential.elements, potential.scale)
        warn_of_pulay_stress(pulay, errors.get("virial_mae_ev_per_atom", math.inf))
        for reason, count in sorted(self.doubted.items()):
            logger.info("%d of %d labels count less: %s", count, len(self.labels), reason)
        present = {chemical_symbols[z] for number in self.kept.tolist() for z in self.labels[number].atoms.numbers}
        learned = self.seen | {self.labels[number].digest for number in self.kept.tolist()}
        summary = {
            "n_train": len(self.kept),
            "n_held_out": len(self.held),
            "dropped": dict(self.dropped),
            "lacking": dict(self.lacking),
            "seed": self.seed,
            "steps": state.step,
            "warm": self.warm,
            "counting_less": dict(self.doubted),
            "pulay_virial_ev": pulay,
            "held_out": errors if len(self.held) else {},
        }
        potential.metadata = {
            **potential.metadata,
            "label_fingerprint": label_fingerprint,
            "train_config": self.settings.model_dump(mode="json"),
            "learned": text_of(learned),
            "learned_elements": sorted(self.learned | present),
            "trainings": [*potential.metadata.get("trainings", []), summary],
            "history": thinned(state.history),
        }
        logger.info("trained on %d labels in %.1f s, %d steps", len(self.kept), state.seconds, state.step)
        return TrainResult(
            potential=potential.eval(),
            history=state.history,
            dropped=self.dropped,
            lacking=self.lacking,
            doubted=self.doubted,
            n_train=len(self.kept),
            n_held_out=len(self.held),
            errors=errors,
            seconds=state.seconds,
        )
