"""Training learns, is deterministic, goes on after a kill, warm-starts, and says what it set aside."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, GPa, Hartree

from acnn import checkpoint
from acnn.config import ModelConfig, TrainConfig
from acnn.errors import ConfigError, DataError, ModelError, NumericalError
from acnn.evaluate import evaluate, predict
from acnn.neighbors import build_neighbors
from acnn.nn.potential import Potential
from acnn.train import history_csv, loop, train
from acnn.train.dataset import Dataset, Targets
from acnn.train.labels import digests_of, fit_references, read_labels
from acnn.train.loop import LOOKS, _Run
from acnn.train.loss import Misfits, RobustLoss, Weights, doubted, energy_trust, random_mixture, residuals
from acnn.train.metrics import calibration_factors, measure, thinned
from acnn.train.schedule import TRUSTING, WARM_FROM, default_steps, loss_weights, moment, rate_factor
from acnn.train.split import family_blocks, ownership, split_families, unlearned
from acnn.train.units import other_scale

SHAPE = {"n_radial": 6, "channels": 4, "mixed_channels": 4, "hidden": (16,), "l_max": 3, "members": 2}
MODEL = ModelConfig(**SHAPE)
QUICK = TrainConfig(max_steps=30, evaluate_every=10)
NEW = torch.zeros(40, dtype=torch.bool)  # no label was learned before


@pytest.fixture(scope="module")
def trained(alloys):
    return train(alloys, model=MODEL, settings=TrainConfig(max_steps=250), seed=0)


def test_learns_unseen_structures(trained, other_alloys):
    metrics = evaluate(trained.potential, other_alloys)
    spread_of_labels = np.std([a.get_potential_energy() / len(a) for a in other_alloys]) * 1e3
    assert metrics.energy_mae_mev_per_atom < 0.25 * spread_of_labels
    assert metrics.n_structures == 20
    assert metrics.spread_mean_mev_per_atom > 0


def test_history_has_units_and_is_in_the_checkpoint(trained):
    table = history_csv(trained.history)
    assert table.splitlines()[0].startswith("step,seconds,loss,energy_mae_ev_per_atom,force_mae_ev_per_a")
    loaded = checkpoint.loads(checkpoint.dumps(trained.potential))
    record = loaded.metadata["trainings"][0]
    assert record["n_train"] + record["n_held_out"] == 40
    assert record["held_out"]["energy_mae_ev_per_atom"] > 0


def test_same_seed_same_bits(alloys):
    first, second = (train(alloys, model=MODEL, settings=QUICK, seed=3).potential for _ in range(2))
    assert checkpoint.dumps(first) == checkpoint.dumps(second)
    other = train(alloys, model=MODEL, settings=QUICK, seed=4).potential
    assert checkpoint.dumps(first) != checkpoint.dumps(other)


def test_the_cores_of_the_machine_change_nothing(alloys, monkeypatch):
    used = []
    step = _Run._step
    monkeypatch.setattr(_Run, "_step", lambda *given: (used.append(torch.get_num_threads()), step(*given)))
    saved = []
    for cores in (1, 3):
        torch.set_num_threads(cores)
        saved.append(checkpoint.dumps(train(alloys, model=MODEL, settings=QUICK, seed=3).potential))
        assert torch.get_num_threads() == cores
    assert saved[0] == saved[1]
    assert set(used) == {1}


@contextmanager
def killed_at(stop: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a training that saves its state after every step be interrupted before one of them."""
    step = _Run._step

    def killed(run: _Run, progress: float) -> None:
        if run.state.step == stop:
            raise KeyboardInterrupt
        step(run, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "SAVE_SECONDS", 0.0)
        patch.setattr(_Run, "_step", killed)
        yield


@pytest.mark.parametrize(
    ("settings", "stop", "warm"),
    [
        (QUICK, 17, False),
        (TrainConfig(max_steps=50, evaluate_every=1), 45, False),
        (TrainConfig(max_steps=50, evaluate_every=1, patience=3), 4, False),
        (QUICK, 17, True),
        (TrainConfig(max_steps=50, evaluate_every=1, patience=3), 22, True),
        (QUICK, 9, "new labels"),
    ],
    ids=[
        "before it settles",
        "while it settles",
        "while it settles before its time",
        "warm",
        "warm, while it settles before its time",
        "warm, with new labels",
    ],
)
@pytest.mark.usefixtures("rising_scores")
def test_goes_on_exactly_after_a_kill(trained, alloys, other_alloys, tmp_path, monkeypatch, settings, stop, warm):
    previous = trained.potential if warm else None
    alloys = [*alloys, *other_alloys] if warm == "new labels" else alloys
    train = partial(loop.train, previous=previous)
    whole = train(alloys, model=MODEL, settings=settings, seed=3).potential
    with killed_at(stop, monkeypatch), pytest.raises(KeyboardInterrupt):
        train(alloys, model=MODEL, settings=settings, seed=3, work_dir=tmp_path)
    resumed = train(alloys, model=MODEL, settings=settings, seed=3, work_dir=tmp_path).potential
    before, after = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_full_disk_costs_nothing_but_the_checkpoint(alloys, tmp_path, monkeypatch, full_disk, caplog):
    monkeypatch.setattr("acnn.train.loop.SAVE_SECONDS", -1.0)
    whole = train(alloys, model=MODEL, settings=QUICK, seed=3).potential
    found = train(alloys, model=MODEL, settings=QUICK, seed=3, work_dir=tmp_path / "kept").potential
    assert checkpoint.dumps(found) == checkpoint.dumps(whole)
    assert sum("No space left" in record.message for record in caplog.records) == 1
    full_disk.undo()
    again = train(alloys, model=MODEL, settings=QUICK, seed=3, work_dir=tmp_path / "kept").potential
    assert checkpoint.dumps(again) == checkpoint.dumps(whole)


def test_a_state_of_another_run_is_refused(alloys, tmp_path):
    train(alloys, model=MODEL, settings=QUICK, seed=3, work_dir=tmp_path)
    with pytest.raises(ModelError, match="belongs to another training"):
        train(alloys[:-1], model=MODEL, settings=QUICK, seed=3, work_dir=tmp_path)
    with pytest.raises(ModelError, match="belongs to another training"):
        train(alloys, model=MODEL, settings=QUICK, seed=4, work_dir=tmp_path)
    for change in ("forces", "stress", "family"):
        other = [atoms.copy() for atoms in alloys]
        for atoms, known in zip(other, alloys, strict=True):
            results = dict(known.calc.results)
            atoms.calc = SinglePointCalculator(atoms, **results)
        if change == "family":
            other[3].info["family"] = "another"
        else:
            other[3].calc.results[change] = -other[3].calc.results[change]
        with pytest.raises(ModelError, match="belongs to another training"):
            train(other, model=MODEL, settings=QUICK, seed=3, work_dir=tmp_path)
    (tmp_path / "train-state.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="damaged"):
        train(alloys, model=MODEL, settings=QUICK, seed=3, work_dir=tmp_path)


def test_a_warm_start_keeps_what_was_known(trained, alloys, other_alloys):
    settings = TrainConfig(max_steps=100)
    before = evaluate(trained.potential, alloys)
    kept = checkpoint.dumps(trained.potential)
    warm = train([*alloys, *other_alloys], model=MODEL, settings=settings, seed=0, previous=trained.potential)
    after = evaluate(warm.potential, alloys)
    assert after.force_mae_ev_per_a < 1.1 * before.force_mae_ev_per_a
    new = evaluate(trained.potential, other_alloys), evaluate(warm.potential, other_alloys)
    assert new[1].force_mae_ev_per_a < new[0].force_mae_ev_per_a
    assert checkpoint.dumps(trained.potential) == kept
    assert len(warm.potential.metadata["trainings"]) == 2


def test_new_whitening_does_not_change_the_function(trained, alloys, other_alloys):
    settings = TrainConfig(max_steps=1, warm_learning_rate=1e-12)
    warm = train([*alloys, *other_alloys], model=MODEL, settings=settings, seed=0, previous=trained.potential)
    one, two = (predict(p, alloys).energies for p in (trained.potential, warm.potential))
    np.testing.assert_allclose(one, two, atol=2e-3)
    assert not torch.equal(trained.potential.whitening.mean, warm.potential.whitening.mean)


def test_a_warm_start_sees_inputs_whitened_as_if_it_were_from_scratch(trained, alloys):
    settings = TrainConfig(max_steps=1, validation_fraction=0)
    potentials = [
        train(alloys[5:], model=MODEL, settings=settings, seed=0, previous=previous, elements=["Cu", "Au"]).potential
        for previous in (None, trained.potential)
    ]
    scratch, warm = (x.whitening for x in potentials)
    torch.testing.assert_close(warm.mean, scratch.mean)
    torch.testing.assert_close(warm.matrix, scratch.matrix)
    assert not torch.equal(trained.potential.whitening.mean, warm.mean)


def test_the_weights_of_a_long_warm_start_are_pulled_back(trained, alloys, monkeypatch):
    untrained = Potential(MODEL, trained.potential.elements, trained.potential.metadata["trainings"][0]["seed"])

    def parts(previous: Potential, steps: int, **limits: float) -> dict[str, float]:
        """Say how far each weight is from the untrained one, in units of where the previous potential is."""
        settings = TrainConfig(max_steps=steps, **limits)
        found, potential = read_labels(alloys, settings), deepcopy(previous)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "set_whitening", Mock())  # it turns the layers
            run = _Run(found, potential, settings, 0, warm=True)
        names = [name for name, _ in potential.named_parameters()]
        quads = zip(names, run.parameters, previous.parameters(), untrained.parameters(), strict=True)
        return {name: ((now - start).norm() / (was - start).norm()).item() for name, now, was, start in quads}

    long = parts(trained.potential, 1900)
    assert {name.split(".")[0] for name in long} == {"embedding", "fitting", "pulay"}
    assert long == pytest.approx({name: 0.6 if name.startswith("fitting") else 1.0 for name in long}, rel=1e-4)
    assert set(parts(trained.potential, 1899).values()) == {1.0}
    assert set(parts(trained.potential, 1900, max_time=60.0).values()) == {1.0}
    unknown = deepcopy(trained.potential)
    unknown.metadata["trainings"] = []
    assert set(parts(unknown, 1900).values()) == {1.0}
    unknown.metadata["trainings"] = trained.potential.metadata["trainings"]
    unknown.metadata["learned_elements"] = ["Cu"]
    assert set(parts(unknown, 1900).values()) == {1.0}


def test_a_potential_of_unknown_origin_is_whitened_as_it_is(trained, alloys):
    settings = TrainConfig(max_steps=1, validation_fraction=0, warm_learning_rate=1e-12)
    origins: list[list[dict[str, object]]] = [
        [],
        [{"seed": 0, "warm": True}],
        [{"n_train": 38}],
        [{"seed": 0, "warm": False}],
    ]
    matrices = []
    for trainings in origins:
        previous = deepcopy(trained.potential)
        previous.metadata["trainings"] = trainings
        matrices.append(
            train(alloys, model=MODEL, settings=settings, seed=0, previous=previous).potential.whitening.matrix
        )
    assert all(torch.equal(matrix, matrices[0]) for matrix in matrices[:3])
    assert not torch.allclose(matrices[3], matrices[0])


def test_what_only_moving_atoms_change_is_not_blown_up(label):
    """Perfect crystals of many volumes tell nothing of the invariants that vanish by symmetry."""
    perfect = [bulk("Cu", "fcc", a).repeat(2) for a in np.linspace(3.4, 3.9, 40)]
    moved = [atoms.copy() for atoms in perfect]
    for atoms in moved:
        atoms.rattle(0.1, seed=1)
    labels = [[label(atoms) for atoms in frames] for frames in (perfect, moved)]
    potential = train(labels[0], model=MODEL, settings=TrainConfig(max_steps=1), seed=0).potential
    graph, _ = Dataset(read_labels(labels[1], QUICK).labels, potential).batch(torch.arange(len(moved)))
    with torch.no_grad():
        white = (potential.invariants(graph)[0] - potential.whitening.mean[0]) @ potential.whitening.matrix[0]
    assert float(white.std(0).max()) < 1.5


def test_a_previous_potential_that_does_not_fit_is_refused(trained, alloys):
    with pytest.raises(ModelError, match="another shape"):
        train(alloys, model=ModelConfig(), settings=QUICK, seed=0, previous=trained.potential)
    with pytest.raises(ModelError, match="other settings"):
        train(alloys, model=MODEL, settings=QUICK, seed=0, previous=trained.potential, label_fingerprint="PBE 520")
    silver = alloys[0].copy()
    silver.numbers[:] = 47
    silver.calc = SinglePointCalculator(silver, energy=1.0)
    with pytest.raises(ModelError, match="frame 40: holds Ag, but the potential knows Cu, Au"):
        train([*alloys, silver], model=MODEL, settings=QUICK, seed=0, previous=trained.potential)


@pytest.mark.parametrize("attention", [0, 1], ids=["plain", "attention"])
def test_an_element_first_seen_in_a_warm_start_is_fitted_then(alloys, attention):
    model = MODEL.model_copy(update={"attention_blocks": attention, "attention_width": 4})
    copper = [atoms for atoms in alloys if set(atoms.symbols) == {"Cu"}]
    settings = TrainConfig(max_steps=1, warm_learning_rate=1e-12)
    first = train(copper, model=model, settings=settings, seed=0, elements=["Cu", "Au"]).potential
    assert first.metadata["learned_elements"] == ["Cu"]
    warm = train(alloys, model=model, settings=settings, seed=0, previous=first).potential
    assert warm.metadata["learned_elements"] == ["Au", "Cu"]
    assert warm.reference[0] == first.reference[0]
    gold = [atoms for atoms in alloys if set(atoms.symbols) == {"Au"}]
    expected = np.median([atoms.get_potential_energy() / len(atoms) for atoms in gold])
    assert abs(float(warm.reference[1]) - expected) < 0.5 < abs(float(first.reference[1]) - expected)
    assert (first.whitening.matrix[1] == torch.eye(len(first.whitening.matrix[1]))).all()
    assert not torch.equal(first.whitening.matrix[1], warm.whitening.matrix[1])
    one, two = (predict(potential, copper).energies for potential in (first, warm))
    np.testing.assert_allclose(one, two, atol=2e-3)
    again = train(alloys, model=model, settings=settings, seed=0, previous=warm).potential
    assert torch.equal(again.reference, warm.reference)


def test_patience_ends_the_training_and_the_best_weights_are_kept(alloys):
    settings = TrainConfig(max_steps=400, evaluate_every=1, patience=3, learning_rate=0.2)
    result = train(alloys, model=MODEL, settings=settings, seed=0)
    assert result.history[-1]["step"] < 400
    forces = [record["force_mae_ev_per_a"] for record in result.history]
    energies = [record["energy_mae_ev_per_atom"] for record in result.history]
    kept = result.errors["force_mae_ev_per_a"], result.errors["energy_mae_ev_per_atom"]
    best = int(np.argmin(np.array(forces) + 5 * np.array(energies)))
    assert best < len(forces) - 3
    assert kept == pytest.approx((forces[best], energies[best]), rel=1e-5)
    assert result.potential.metadata["trainings"][-1]["held_out"] == result.errors


def test_the_rate_rises_where_the_optimizer_begins_anew(alloys):
    settings = TrainConfig(max_steps=1000)
    run = _Run(read_labels(alloys, settings), Potential(MODEL, ["Cu", "Au"], 0), settings, 0, warm=False)
    run.state.step = run.optimizer.steps = 800
    settled = run._learning_rate(0.8)
    run.optimizer.reset()
    assert run._learning_rate(0.8) == pytest.approx(settled / 30)
    run.optimizer.steps = 29
    assert run._learning_rate(0.8) == pytest.approx(settled)


@pytest.mark.usefixtures("rising_scores")
def test_the_best_weights_are_those_of_a_low_learning_rate(alloys):
    result = train(alloys, model=MODEL, settings=TrainConfig(max_steps=50, evaluate_every=1), seed=0)
    settled = result.history[39]
    assert settled["step"] == 40
    assert result.errors == pytest.approx({name: settled[name] for name in result.errors}, rel=1e-5)


def test_what_counts_when():
    settings = TrainConfig(energy_weight=30.0, force_weight=2.0, virial_weight=3.0)
    weights = [loss_weights(when, settings) for when in (0.0, 0.35, 0.5, 0.75, 1.0)]
    assert [x.energy for x in weights] == pytest.approx([1.0, 30**0.5, 30 ** (5 / 7), 30.0, 30.0])
    assert {(x.force, x.virial) for x in weights} == {(2.0, 3.0)}
    assert [x.wild_force for x in weights] == pytest.approx([4.0, 4.0, 4.0, 160**0.5, 40.0])
    assert LOOKS[-1] <= TRUSTING  # labels in other units are looked for before they are learned


def test_a_warm_start_leaves_out_the_beginning_of_the_schedule():
    assert [moment(progress, warm=False) for progress in (0.0, 0.3, 1.0)] == [0.0, 0.3, 1.0]
    begin, middle, end = (moment(progress, warm=True) for progress in (0.0, 0.5, 1.0))
    assert 0.0 < begin < middle < end == 1.0
    assert middle == pytest.approx((begin + end) / 2)
    assert [moment(look, warm=True) <= TRUSTING for look in LOOKS] == [True, True, True, False]
    assert [rate_factor(when) for when in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5025, 0.005])


def test_a_warm_training_follows_its_part_of_the_schedule(trained, alloys, monkeypatch):
    seen = []

    def spy(when: float, settings: TrainConfig) -> Weights:
        seen.append(when)
        return loss_weights(when, settings)

    monkeypatch.setattr(loop, "loss_weights", spy)
    settings = TrainConfig(max_steps=8, warm_learning_rate=1e-3)
    run = _Run(read_labels(alloys, settings), deepcopy(trained.potential), settings, 0, warm=True)
    run.optimizer.steps = 1000  # the rate has risen
    assert run._learning_rate(0.0) == pytest.approx(run.top_rate * rate_factor(WARM_FROM))
    train(alloys, model=MODEL, settings=settings, seed=0, previous=trained.potential)
    assert seen == pytest.approx([WARM_FROM + (1 - WARM_FROM) * step / 8 for step in range(8)])


@pytest.mark.usefixtures("rising_scores")
def test_what_a_warm_start_unlearns_at_first_spends_no_patience(trained, alloys):
    settings = TrainConfig(max_steps=50, evaluate_every=1, patience=3)
    result = train(alloys, model=MODEL, settings=settings, seed=0, previous=trained.potential)
    # the first score of the second half of the schedule, three waits, the first settled one, three waits
    assert result.history[-1]["step"] == 24 + 3 + 1 + 3
    assert moment(23 / 50, warm=True) < TRUSTING <= moment(24 / 50, warm=True)
    settled = result.history[27]
    assert result.errors == pytest.approx({name: settled[name] for name in result.errors}, rel=1e-5)


def test_the_loss_follows_the_typical_misfit_and_trusts_wild_forces_when_told():
    def loss(force: float, misfit: float, typical: float = 0.1, *, known: bool = False, **weights: float) -> float:
        forces, virial = torch.tensor([[force, 0, 0], [0, 0, 0]]), torch.zeros(1, 3, 3)
        targets = Targets(torch.zeros(1), forces, virial, torch.full((1,), 2.0), torch.zeros(1, dtype=torch.int64))
        misfits = Misfits(torch.zeros(1, 1), torch.tensor([[misfit, 0, 0], [0.1, 0, 0]]), torch.zeros(1, 3, 3))
        robust = RobustLoss(torch.ones(1), 1.0, torch.tensor([known]))
        robust.typical.fill_(typical)
        return float(robust(misfits, targets, Weights(0.0, 1.0, 0.0, **weights), torch.ones(1, 1)))

    small, large = (loss(0.0, misfit, typical=50.0) for misfit in (1.0, 2.0))
    assert large / small == pytest.approx(4.01 / 1.01, rel=2e-3)  # quadratic
    assert loss(0.0, 2.0) < 0.7 * large
    trusted = loss(20.0, 1.0, wild_force=40.0)
    assert loss(20.0, 1.0, wild_force=4.0) < 0.3 * trusted
    assert loss(20.0, 1.0, wild_force=4.0, known=True) == trusted  # a previous potential has learned it


def test_what_was_learned_before_is_trusted_label_by_label():
    known = torch.tensor([True, False])
    forces = torch.tensor([[8.0, 0, 0], [0, 0, 0], [0, 8.0, 0]])
    virial = torch.stack([16.0 * torch.eye(3), 8.0 * torch.eye(3)])
    targets = Targets(torch.zeros(2), forces, virial, torch.tensor([2.0, 1.0]), torch.tensor([1, 0]))

    def share(place: int, kind: str) -> float:
        force, stress = torch.zeros(3, 3), torch.zeros(2, 3, 3)
        (force if kind == "force" else stress)[place] = 1.0
        robust = RobustLoss(torch.ones(2), 1.0, known)
        robust.typical.fill_(100.0)  # quadratic
        weights = Weights(0.0, float(kind == "force"), float(kind != "force"))
        return float(robust(Misfits(torch.zeros(2, 1), force, stress), targets, weights, torch.ones(2, 1)))

    # the first structure, of two atoms, is the label that is new: there 8 typical forces count 1 / (1 + (8 / 4)^2)
    new, old = 1 / (1 + (8 / 4) ** 2), 1 / (1 + (8 / 40) ** 2)
    assert share(0, "force") / share(2, "force") == pytest.approx(new / old, rel=1e-3)
    assert share(1, "force") / share(2, "force") == pytest.approx(1.0 / old, rel=1e-3)
    size = 3**0.5  # of the virial per atom, in units of 8
    new, old = 1 / (1 + (8 * size / 4) ** 2), 1 / (1 + (8 * size / 40) ** 2)
    assert share(0, "virial") / share(1, "virial") == pytest.approx(new / old, rel=1e-3)


def test_energies_that_were_learned_before_may_lie_higher():
    excess = torch.tensor([0.0] * 10 + [3.0, 3.0])
    known = torch.tensor([False] * 11 + [True])
    assert energy_trust(excess, known).tolist() == pytest.approx([1.0] * 10 + [0.1, 0.5])


def test_a_warm_start_trusts_the_labels_that_were_learned_before(trained, alloys, other_alloys):
    found = read_labels([*alloys, *other_alloys[:5]], QUICK)
    run = _Run(found, deepcopy(trained.potential), QUICK, 0, warm=True)
    held_out = len(alloys) - trained.n_train
    assert held_out > 0  # what the potential was only judged by is as new as what it never saw
    assert run.loss.known.sum() == trained.n_train
    assert not run.loss.known[len(alloys) :].any()
    excess = run.data.energy / run.data.counts
    assert torch.equal(run.loss.trust_energy, energy_trust(excess, run.loss.known))
    assert not torch.equal(run.loss.trust_energy, energy_trust(excess, torch.zeros_like(run.loss.known)))
    start = _Run(read_labels(alloys, QUICK), Potential(MODEL, ["Cu", "Au"], seed=3), QUICK, 0, warm=False)
    assert not start.loss.known.any()


def test_the_virial_of_a_large_structure_counts_less_beside_its_forces():
    def loss(n_atoms: int, force_weight: float = 1.0, known: float = 0.0) -> float:
        forces, counts = torch.full((n_atoms, 3), known), torch.full((1,), n_atoms)
        targets = Targets(torch.zeros(1), forces, torch.zeros(1, 3, 3), counts, torch.zeros(1, dtype=torch.int64))
        misfits = Misfits(torch.zeros(1, 1), torch.zeros(n_atoms, 3), torch.full((1, 3, 3), 0.2))
        weights = Weights(0.0, force_weight, 1.0)
        return float(RobustLoss(torch.ones(1), 1.0, NEW[:1])(misfits, targets, weights, torch.ones(1, 1)))

    assert loss(1) == loss(8) > 0
    assert loss(64) == pytest.approx(loss(8) / 8)
    assert loss(64, force_weight=0.0) == loss(64, known=np.nan) == loss(8)


def test_the_first_of_equal_groups_in_other_units_is_kept(alloys, monkeypatch, caplog):
    found = iter([([3, 4], 51.0), ([3, 4], 40.0), ([3], 30.0), ([3, 4, 5], 20.0), ([3, 4, 5], 10.0)])

    def looked(*_: object) -> dict[str, tuple[np.ndarray, float]]:
        numbers, factor = next(found)
        return {"forces": (np.array(numbers), factor)}

    monkeypatch.setattr(loop, "find_other_units", looked)
    train(alloys, model=MODEL, settings=TrainConfig(max_steps=50), seed=0)
    assert "about 20 times" in caplog.text


def test_atoms_far_away_are_set_aside(alloys):
    far = alloys[0].copy()
    far.positions[0, 0] = 2e6
    far.calc = alloys[0].calc
    assert read_labels([far, *alloys], QUICK).dropped == {"positions beyond 1e+06 Å": 1}


@pytest.mark.usefixtures("rising_scores")
def test_without_patience_the_weights_still_settle(alloys):
    settings = TrainConfig(max_steps=100, evaluate_every=1, patience=3)
    result = train(alloys, model=MODEL, settings=settings, seed=0)
    assert result.history[-1]["step"] == 8  # the first is the best, three waits, the first settled one, three waits
    settled = result.history[4]
    assert result.errors == pytest.approx({name: settled[name] for name in result.errors}, rel=1e-5)


@pytest.mark.usefixtures("rising_scores")
def test_by_default_only_the_second_half_spends_patience(alloys, monkeypatch):
    monkeypatch.setattr(loop, "default_patience", lambda *_: 3)
    result = train(alloys, model=MODEL, settings=TrainConfig(max_steps=100, evaluate_every=1), seed=0)
    assert result.history[-1]["step"] == 49 + 3 + 1 + 3


def test_elements_can_be_wider_than_the_labels(alloys):
    result = train(alloys, model=MODEL, settings=TrainConfig(max_steps=2), seed=0, elements=["Cu", "Ag", "Au"])
    assert result.potential.elements == ("Cu", "Ag", "Au")


def wild(energy: float, **results: object) -> Atoms:
    atoms = Atoms("Cu", cell=2.6 * np.eye(3), pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, **results)
    return atoms


def test_wild_labels_are_counted_and_do_not_hurt(alloys, other_alloys):
    nan = np.full((1, 3), np.nan)
    bad = [
        wild(900.0),
        wild(1.0, forces=np.full((1, 3), 80.0)),
        wild(1.0, forces=nan),
        wild(1.0, stress=np.full(6, 1e3)),
        wild(np.nan),
    ]
    result = train([*alloys, *bad], model=MODEL, settings=TrainConfig(max_steps=100), seed=0)
    assert sum(result.dropped.values()) == 5
    assert len(result.dropped) == 4
    clean = train(alloys, model=MODEL, settings=TrainConfig(max_steps=100), seed=0)
    errors = [evaluate(r.potential, other_alloys).force_mae_ev_per_a for r in (result, clean)]
    assert errors[0] < 1.5 * errors[1]


def test_slabs_are_set_aside(alloys):
    slab = alloys[0].copy()
    slab.pbc = [True, True, False]
    slab.calc = alloys[0].calc
    found = read_labels([slab, *alloys], QUICK)
    assert found.dropped == {"periodic in some directions only": 1}
    assert [label.frame for label in found.labels] == list(range(1, 41))


def test_labels_that_count_less_are_counted(alloys):
    labels = read_labels(alloys, QUICK).labels
    labels[3].forces = np.full((len(labels[3].atoms), 3), 40.0)
    labels[4].forces = None
    largest = sorted(0.0 if x.forces is None else np.linalg.norm(x.forces, axis=1).max() for x in labels)
    scale = 0.5 * (largest[-1] + largest[-2]) / 4
    found = doubted(labels, RobustLoss(torch.tensor([0.4, 0.1] + 38 * [0.9]), scale, NEW))
    assert found == {"energy far above the lowest": 2, f"a force above {4 * scale:.3g} eV/Å": 1}
    assert doubted(labels, RobustLoss(torch.ones(40), 100.0, NEW)) == {}
    assert doubted(labels, RobustLoss(torch.ones(40), scale, ~NEW)) == {}  # learned before
    far = f"a force above {4 * scale:.3g} eV/Å in a label learned before"
    assert doubted(labels, RobustLoss(torch.ones(40), scale / 10, torch.arange(40) < 4))[far] == 1
    some = doubted(labels, RobustLoss(torch.ones(40), scale / 10, torch.arange(40) >= 4))
    wild = sum(size > 0.4 * scale for size in largest)
    assert 1 < sum(some.values()) < wild  # the largest is new; of those learned before none is wild
    assert set(some) == {f"a force above {0.4 * scale:.3g} eV/Å"}
    result = train(alloys, model=MODEL, settings=QUICK, seed=0)
    assert result.potential.metadata["trainings"][-1]["counting_less"] == dict(result.doubted)


def test_mixed_units_are_noticed(alloys, caplog):
    def moved(number: int, unit: float) -> Atoms:
        atoms = alloys[number].copy()
        energy = alloys[number].get_potential_energy() - 18.0 * len(atoms)
        atoms.calc = SinglePointCalculator(atoms, energy=energy * unit)
        return atoms

    read_labels([moved(number, 1.0) for number in range(40)], QUICK)
    assert "units" not in caplog.text
    mixed = [moved(number, 1 / Hartree if number % 4 == 0 else 1.0) for number in range(40)]
    read_labels([wild(np.nan), *mixed], QUICK)
    assert "10 labels (frames 1, 5, 9, 13, 17, ...) lie" in caplog.text
    assert "do all have the same units (eV) and settings?" in caplog.text


def rattled(atoms: Atoms, size: float) -> Atoms:
    """Return a larger cell with its atoms displaced."""
    larger = atoms.repeat(2)
    larger.rattle(size, seed=1)
    return larger


def alloy(one: str, other: str) -> Atoms:
    """Return a perfect lattice that two elements share without order."""
    atoms = bulk(one, "fcc", a=3.8, cubic=True).repeat(2)
    atoms.symbols[::3] = other
    return atoms


def shaken(factors: dict[str, float]) -> list[Atoms]:
    """Return sixty labelled cells of an alloy; every fourth has forces or stresses times a factor."""
    rng, frames = np.random.default_rng(0), []
    for number in range(60):
        atoms = bulk("Cu", a=rng.uniform(3.7, 4.1), cubic=True)
        atoms.symbols = rng.permutation(["Cu", "Cu", "Au", "Au"])
        atoms.positions += rng.normal(0, 0.1, (4, 3))
        atoms.calc = EMT()
        results = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": atoms.get_stress(voigt=False),
        }
        for name, factor in factors.items() if number % 4 == 0 else ():
            results[name] = results[name] * factor
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


OTHER_UNITS = {
    "hartree": ({"forces": Bohr / Hartree}, r"the forces of 1\d of 60 labels \(frames .*\) are about 0.0\d+ times"),
    "bohr": ({"forces": Hartree / Bohr}, r"the forces of [4-7] of 50 labels \(frames .*\) are about 5\d.* times"),
    "sign": ({"stress": -1.0}, r"the stress of \d+ of 60 labels \(frames 0, .*\) are about -[01].\d+ times"),
    "GPa": ({"stress": 1 / GPa}, r"the stress of \d+ of \d+ labels \(frames .*\) are about 1\d\d times"),
}


@pytest.mark.parametrize("name", OTHER_UNITS)
def test_forces_and_stresses_in_other_units_are_noticed(caplog, name):
    factors, words = OTHER_UNITS[name]
    settings = TrainConfig(max_steps=250, max_pressure_gpa=1e5)
    result = train(shaken(factors), model=MODEL, settings=settings, seed=0)
    assert re.search(words, caplog.text), caplog.text
    (what,) = factors
    left = result.lacking[f"{what} (there are some, not learned: of another unit or sign)"]
    assert result.potential.metadata["trainings"][-1]["lacking"] == result.lacking
    assert left >= 4


def test_what_is_set_aside_stays_so_after_a_kill(tmp_path, monkeypatch):
    frames, settings = shaken({"stress": 1 / GPa}), TrainConfig(max_steps=100, max_pressure_gpa=1e5)
    whole = train(frames, model=MODEL, settings=settings, seed=0)
    with killed_at(60, monkeypatch), pytest.raises(KeyboardInterrupt):
        train(frames, model=MODEL, settings=settings, seed=0, work_dir=tmp_path)
    resumed = train(frames, model=MODEL, settings=settings, seed=0, work_dir=tmp_path)
    assert whole.lacking.total() > 10
    assert resumed.lacking == whole.lacking
    before, after = whole.potential.state_dict(), resumed.potential.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["forces", "stress"])
def test_what_is_set_aside_is_not_learned(name):
    frames = shaken({})
    data = _Run(read_labels(frames, QUICK), Potential(MODEL, ["Cu", "Au"], 0), QUICK, 0, warm=False).data
    _, targets = data.batch(torch.tensor([3, 7, 5]))
    targets.leave_out(name, [5, 7])
    told = torch.isfinite(targets.forces).view(3, 4, 3), torch.isfinite(targets.virial)
    left, other = told if name == "forces" else told[::-1]
    assert left.flatten(1).any(1).tolist() == [True, False, False]
    assert left[0].all()
    assert other.all()
    assert torch.isfinite(data.forces).all()
    assert torch.isfinite(data.virial).all()


def test_what_is_set_aside_does_not_judge():
    settings = TrainConfig(max_steps=250, validation_fraction=0.2, max_force=1e4)
    result = train(shaken({"forces": Hartree / Bohr}), model=MODEL, settings=settings, seed=0)
    assert result.lacking["forces (there are some, not learned: of another unit or sign)"] == 15
    true = evaluate(result.potential, shaken({})).force_mae_ev_per_a
    assert result.errors["force_mae_ev_per_a"] < 3 * true
    assert result.history[-1]["force_mae_ev_per_a"] < 3 * true


def test_labels_without_what_they_said_neither_measure_nor_calibrate():
    frames, numbers = shaken({}), torch.arange(20)
    run = _Run(read_labels(frames, QUICK), Potential(MODEL, ["Cu", "Au"], 0), QUICK, 0, warm=False)
    whole, second = (measure(run.potential, run.data, chosen, 64) for chosen in (numbers, numbers[10:]))
    energy, _ = calibration_factors(run.potential, run.data, numbers, 64)
    _, force = calibration_factors(run.potential, run.data, numbers[10:], 64)
    run.data.set_aside = {"forces": list(range(10)), "stress": list(range(20))}
    part = measure(run.potential, run.data, numbers, 64)
    assert part["energy_mae_ev_per_atom"] == whole["energy_mae_ev_per_atom"]
    assert part["force_mae_ev_per_a"] == pytest.approx(second["force_mae_ev_per_a"], rel=1e-5)
    assert part["force_mae_ev_per_a"] != whole["force_mae_ev_per_a"]
    assert "virial_mae_ev_per_atom" not in part
    assert calibration_factors(run.potential, run.data, numbers, 64) == (energy, pytest.approx(force, rel=1e-5))


def test_new_labels_set_aside_do_not_calibrate():
    frames = shaken({"forces": Hartree / Bohr})
    settings = TrainConfig(max_steps=250, max_force=1e4)
    first = train([a for n, a in enumerate(frames) if n % 4], model=MODEL, settings=settings, seed=0)
    result = train(frames, model=MODEL, settings=settings, seed=0, previous=first.potential)
    assert result.n_held_out < 8
    assert result.lacking["forces (there are some, not learned: of another unit or sign)"] == 15
    assert result.potential.calibration[1] == first.potential.calibration[1]


def test_a_table_of_errors_without_what_was_set_aside_later():
    history = [{"step": 1.0, "force_mae_ev_per_a": 2.0, "seconds": 1.0}, {"step": 2.0, "seconds": 2.0}]
    assert history_csv(history).splitlines()[1:] == ["1,1,2", "2,2,nan"]
    assert thinned(history) == {"step": [1.0, 2.0], "force_mae_ev_per_a": [2.0, None]}


@pytest.mark.parametrize(
    "shape",
    [
        {"max_factors": 1},
        {"max_factors": 1, "attention_blocks": 1, "attention_width": 4},
        {"max_factors": 2},
        {"max_factors": 3},
        {"l_max": 0},
        {"hidden": ()},
        {"members": 1},
        {"radial_cutoff": 4.0, "angular_cutoff": 3.0},
    ],
)
def test_every_shape_learns(shape, alloys):
    settings = TrainConfig(max_steps=60, evaluate_every=5, validation_fraction=0.2)
    history = train(alloys[:40], model=ModelConfig(**{**SHAPE, **shape}), settings=settings, seed=0).history
    assert history[-1]["step"] == 60
    assert history[-1]["force_mae_ev_per_a"] < 0.9 * history[0]["force_mae_ev_per_a"]


@pytest.mark.parametrize("every", [4, 1])
@pytest.mark.parametrize(("name", "factor"), [("forces", Hartree / Bohr), ("forces", -1.0), ("stress", 1 / GPa)])
def test_an_evaluation_notices_other_units(caplog, name, factor, every):
    potential, frames = Potential(MODEL, ["Cu", "Au"], seed=0), shaken({})
    found = predict(potential, frames)
    for number, atoms in enumerate(frames):
        results = {"energy": found.energies[number], "forces": found.forces[number], "stress": found.stresses[number]}
        if number % every == 0:
            results[name] = results[name] * factor
        atoms.calc = SinglePointCalculator(atoms, **results)
    evaluate(potential, [wild(np.nan), *frames])
    first = ", ".join(str(1 + every * number) for number in range(5))
    assert f"{60 // every} of 60 labels (frames {first}, ...) are about {factor:.3g} times" in caplog.text
    caplog.clear()
    if every > 1:
        evaluate(potential, [atoms for number, atoms in enumerate(frames) if number % every])
        assert not caplog.text


@pytest.mark.parametrize(
    ("factor", "n_other", "n_silent", "n_beyond", "noticed"),
    [
        (51.0, 8, 0, 0, True),
        (51.0, 7, 0, 0, False),
        (51.0, 7, 0, 7, True),
        (51.0, 3, 0, 100, False),
        (0.02, 7, 0, 7, False),
        (51.0, 19, 0, 0, True),
        (51.0, 20, 0, 0, False),
        (51.0, 12, 28, 0, False),
        (-1.0, 40, 0, 0, False),
    ],
)
def test_other_units_are_those_of_a_group_smaller_than_the_rest(factor, n_other, n_silent, n_beyond, noticed):
    factors = np.ones(40)
    factors[:n_other] = factor
    factors[40 - n_silent :] = np.nan
    found = other_scale(factors**2, np.ones(40), factors, n_beyond)
    assert (found is not None) == noticed
    if found is not None:
        assert found[0].tolist() == list(range(n_other))
        assert found[1] == pytest.approx(factor)


@pytest.mark.parametrize(("n_agreed", "n_silent", "noticed"), [(20, 0, True), (19, 0, False), (12, 16, True)])
def test_who_has_not_learned_the_rest_accuses_no_group(n_agreed, n_silent, noticed):
    factors = np.full(40, 4.0)
    factors[:n_agreed], factors[30:] = 1.0, 51.0
    factors[n_agreed : n_agreed + n_silent] = 1e-9
    found = other_scale(factors**2, np.where(factors > 1e-6, 1.0, 1e-12), np.where(factors > 1e-6, factors, 0.0))
    assert (found is not None) == noticed


def test_signs_of_forces_below_the_typical_misfit_are_chance():
    labelled, learned = np.ones(40), np.full(40, 1.2)
    labelled[:10] = learned[:10] = 0.05
    product = np.array([-1.0] * 10 + [1.0] * 30)
    assert other_scale(labelled**2, learned**2, labelled * learned * product) is None
    labelled[:10] = learned[:10] = 1.0
    found = other_scale(labelled**2, learned**2, labelled * learned * product)
    assert found is not None
    assert found[0].tolist() == list(range(10))


@pytest.mark.parametrize(("size", "noticed"), [(1e-14, False), (1.0, True)])
@pytest.mark.parametrize(("n_silent", "most"), [(10, 0.5), (10, np.inf), (40, np.inf)])
def test_the_size_of_forces_that_vanish_by_symmetry_is_chance(size, noticed, n_silent, most):
    labelled, learned = np.ones(40), np.ones(40)
    labelled[:n_silent], learned[:n_silent] = 51.0 * size, size
    assert (other_scale(labelled**2, learned**2, labelled * learned, most=most) is not None) == noticed


def test_an_evaluation_without_stresses_and_forces_says_nothing(alloys, caplog):
    frames = [atoms.copy() for atoms in alloys]
    for atoms, told in zip(frames, alloys, strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=told.get_potential_energy())
    assert evaluate(Potential(MODEL, ["Cu", "Au"], seed=0), frames).force_mae_ev_per_a is None
    assert "units" not in caplog.text


@pytest.mark.parametrize("n_steps", [5, 250])
def test_labels_of_one_unit_are_left_in_peace(caplog, n_steps):
    train(shaken({}), model=MODEL, settings=TrainConfig(max_steps=n_steps), seed=0)
    assert "units" not in caplog.text


@pytest.mark.parametrize(("edge", "usable"), [(0.4, False), (0.66, False), (0.68, True)])
def test_cells_without_room_are_set_aside(edge, usable):
    dense = Atoms("H", cell=edge * np.eye(3), pbc=True)
    dense.calc = SinglePointCalculator(dense, energy=1.0)
    found = read_labels([dense, wild(1.0)], QUICK)
    assert found.dropped == ({} if usable else {"flat or empty cell, or less than 0.3 Å^3 per atom": 1})


@pytest.mark.parametrize("distance", [0.0, 0.05])
def test_atoms_on_top_of_each_other_are_set_aside(alloys, distance, monkeypatch):
    monkeypatch.setattr("acnn.train.distances.SEARCH_ATOMS", 3 * len(alloys[0]))  # searched in several pieces
    bad = Atoms("Cu2", positions=[[0, 0, 0], [distance, 0, 0]], cell=[4, 4, 4], pbc=True)
    bad.calc = SinglePointCalculator(bad, energy=-1.0)
    found = read_labels([*alloys[:5], bad, *alloys[5:], bad], QUICK)
    assert found.dropped == {"atoms closer than 0.3 Å": 2}
    assert [label.frame for label in found.labels] == [*range(5), *range(6, len(alloys) + 1)]


def test_a_cell_as_thin_as_a_needle_is_searched_alone(alloys, monkeypatch):
    searched = []
    monkeypatch.setattr(
        "acnn.train.distances.build_neighbors",
        lambda batch, cutoff: searched.append(batch) or build_neighbors(batch, cutoff),
    )
    needle = Atoms("Cu", cell=[1e-3, 20, 20], pbc=True)
    needle.calc = SinglePointCalculator(needle, energy=-1.0)
    found = read_labels([needle, *alloys], QUICK)
    assert found.dropped == {"atoms closer than 0.3 Å": 1}
    assert len(found.labels) == len(alloys)
    assert [batch.n_systems for batch in searched] == [len(alloys), 1]


def test_labels_of_near_atoms_leave_the_repulsion_in_place(alloys):
    near = Atoms("Cu2", positions=[[0, 0, 0], [0.35, 0, 0]], cell=[6, 6, 6], pbc=True)
    near.calc = SinglePointCalculator(near, energy=0.0, forces=np.full((2, 3), 1e-6))
    potential = train([*alloys, near], model=MODEL, settings=QUICK, seed=0).potential
    force = predict(potential, [near]).forces[0]
    assert force[1, 0] > 10.0
    assert force[0, 0] < -10.0


def test_what_labels_do_not_say_does_not_weaken_the_rest(alloys):
    run = _Run(read_labels(alloys, QUICK), Potential(MODEL, ["Cu", "Au"], seed=3), QUICK, 0, warm=False)
    graph, targets = run.data.batch(torch.arange(8))
    misfits = residuals(run.potential, graph, targets, None, training=False)
    owned = torch.ones(8, MODEL.members)
    weights = Weights(0.0, 0.0, 1.0)
    _, few = run.data.batch(torch.arange(8))
    few.virial[2:] = torch.nan
    some = residuals(run.potential, graph, few, None, training=False)
    two, alone = run.data.batch(torch.arange(2))
    pair = residuals(run.potential, two, alone, None, training=False)
    whole, part, same = (
        RobustLoss(torch.ones(40), run.loss.force, NEW)(*terms, weights, owned[: len(terms[1].counts)]).item()
        for terms in ((misfits, targets), (some, few), (pair, alone))
    )
    assert part == pytest.approx(same, rel=1e-3)
    assert whole != pytest.approx(same, rel=1e-2)
    loss = RobustLoss(torch.ones(40), run.loss.force, NEW)
    loss(misfits, targets, weights, owned)
    before = loss.typical.clone()
    few.virial[:] = torch.nan
    loss(residuals(run.potential, graph, few, None, training=False), few, weights, owned)
    assert loss.typical[2] == before[2]


def test_labels_without_forces_or_stress_are_learned(alloys):
    frames = []
    for number, atoms in enumerate(alloys):
        copy = atoms.copy()
        results = {"energy": atoms.get_potential_energy()}
        if number % 2:
            results["forces"] = atoms.get_forces()
        copy.calc = SinglePointCalculator(copy, **results)
        frames.append(copy)
    result = train(frames, model=MODEL, settings=QUICK, seed=0)
    assert np.isfinite(result.history[-1]["force_mae_ev_per_a"])
    assert evaluate(result.potential, frames).stress_mae_gpa is None


def test_what_labels_lack_is_counted(alloys, caplog):
    caplog.set_level("INFO", "acnn")
    frames = [atoms.copy() for atoms in alloys]
    for atoms, known in zip(frames, alloys, strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=known.get_potential_energy())
    for atoms in frames[:3]:
        atoms.calc.results["stress"] = np.full(6, 0.01)
    frames[0].pbc = False
    frames[4].info["virial"] = frames[1].info["virial"] = np.zeros((3, 3))
    bad = [wild(np.nan), wild(1.0, forces=np.full((1, 3), 80.0)), wild(1.0, stress=np.full(6, 1e3))]
    found = read_labels([*frames, *bad], QUICK)
    expected = {
        "forces": 40,
        "stress": 36,
        "stress (there is one, which is not used: not periodic in all directions)": 1,
        "stress (there is a virial, which is not read: give the stress in eV/Å^3)": 1,
    }
    assert found.lacking == expected
    assert found.beyond == {"forces": 1, "stress": 1}
    assert ("WARNING", "40 of 40 labels lack forces") in [(r.levelname, r.message) for r in caplog.records]
    assert ("INFO", "36 of 40 labels lack stress") in [(r.levelname, r.message) for r in caplog.records]
    caplog.clear()
    assert read_labels([*frames, alloys[0]], QUICK).lacking["forces"] == 40
    assert "WARNING" not in [record.levelname for record in caplog.records]
    result = train(frames, model=MODEL, settings=TrainConfig(max_steps=1), seed=0)
    assert result.lacking == expected
    assert result.potential.metadata["trainings"][-1]["lacking"] == expected


def test_zeros_that_stand_for_nothing_are_not_learned(alloys, caplog, monkeypatch):
    monkeypatch.setattr("acnn.train.distances.SEARCH_ATOMS", 9)  # searched in several pieces
    frames = [labelled(atoms, forces=np.zeros((4, 3))) for atoms in shaken({})[:8]]
    frames += [labelled(atoms, stress=np.zeros((3, 3))) for atoms in alloys[8:12]] + alloys[12:20]
    found = read_labels(frames, QUICK)
    forces = "forces (all are zero, which no symmetry asks for: taken as not calculated)"
    stress = "stress (it is zero, though atoms are near each other: taken as not calculated)"
    assert found.lacking == {forces: 8, stress: 4}
    assert f"8 of 20 labels lack {forces}" in caplog.text
    assert [label.forces is None for label in found.labels] == [True] * 8 + [False] * 12
    assert [label.stress is None for label in found.labels] == [False] * 8 + [True] * 4 + [False] * 8


@pytest.mark.parametrize(
    ("atoms", "lost"),
    [
        (bulk("Cu"), ""),
        (bulk("Si"), ""),
        (bulk("Ti"), ""),
        (bulk("NaCl", "rocksalt", a=5.64, cubic=True), ""),
        (rattled(bulk("Si", cubic=True), 1e-4), ""),
        (rattled(bulk("Cu", cubic=True), 0.1), "forces"),
        (rattled(bulk("K", cubic=True), 0.1), "forces"),
        (rattled(bulk("Cs", cubic=True), 0.2), "forces"),
        (alloy("Cu", "Ni"), "forces"),
        (alloy("Al", "Mg"), "forces"),
        (Atoms("Cu2", [[0, 0, 0], [0, 0, 6]], cell=[12, 12, 12], pbc=True), ""),
        (Atoms("C2", [[0, 0, 0], [0, 0, 3.5]], cell=[12, 12, 12], pbc=True), ""),
        (Atoms("U2", [[0, 0, 0], [0, 0, 3.0]], cell=[12, 12, 12], pbc=True), "forces"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], cell=[12, 12, 12], pbc=True), "forces"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 0.8]]), "forces"),
        (Atoms("H", cell=[9, 9, 9], pbc=True), ""),
        (Atoms("H"), ""),
    ],
)
def test_zeros_that_symmetry_asks_for_are_learned(atoms, lost):
    others = [bulk("Au", cubic=True).repeat(2), bulk("Li")]  # what else a file holds makes no difference
    frames = [labelled(x, forces=np.zeros((len(x), 3))) for x in [atoms, *others]]
    first, *others = read_labels(frames, TrainConfig(max_energy=1e6)).labels
    assert (first.forces is None) == (lost == "forces")
    assert all(label.forces is not None for label in others)


@pytest.mark.parametrize(
    ("atoms", "lost"),
    [
        (bulk("Cu"), True),
        (bulk("Cs"), True),
        (bulk("Si"), True),
        (Atoms("Cu", cell=[9, 9, 9], pbc=True), False),
        (Atoms("H2O", [[0, 0, 0], [0, 0, 1], [0, 1, 0]], cell=[10, 10, 10], pbc=True), False),
    ],
)
def test_a_stress_is_zero_only_of_atoms_far_from_each_other(atoms, lost):
    frames = [labelled(x, stress=np.zeros((3, 3))) for x in (atoms, Atoms("H", cell=[9, 9, 9], pbc=True))]
    first, alone = read_labels(frames, TrainConfig(max_energy=1e6)).labels
    assert (first.stress is None) == lost
    assert alone.stress is not None


def labelled(atoms: Atoms, **results: np.ndarray) -> Atoms:
    """Return a copy with some results in place of the true ones."""
    known = dict(atoms.calc.results) if atoms.calc is not None else {"energy": -1.0 * len(atoms)}
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, **{**known, **results})
    return copy


def test_what_has_another_name_is_named(alloys):
    atoms = alloys[0].copy()
    atoms.calc = SinglePointCalculator(atoms, energy=1.0)
    atoms.arrays["REF_forces"] = np.ones((len(atoms), 3))
    atoms.info["DFT_stress"] = np.ones(6)
    assert read_labels([atoms], QUICK).lacking == {
        "forces (there is REF_forces: what is to be read must be named forces)": 1,
        "stress (there is DFT_stress: what is to be read must be named stress)": 1,
    }
    del atoms.info["DFT_stress"]
    atoms.pbc = False
    assert "stress (there is a cell, which is not used: not periodic)" in read_labels([atoms], QUICK).lacking
    atoms.calc.results = {"forces": np.ones((len(atoms), 3))}
    atoms.info |= {"REF_energy": 1.0, "energy_unit": "eV", "stress_unit": "GPa"}
    with pytest.raises(DataError, match="frame 0: expected an energy, got forces; there is REF_energy: what is to be"):
        read_labels([atoms], QUICK)


def test_an_absurd_energy_takes_no_other_with_it(alloys):
    frames = [*alloys[:3], labelled(alloys[3], energy=1e20), *alloys[4:20]]
    found = read_labels(frames, QUICK)
    assert found.dropped == {"energy beyond 1e+07 eV/atom": 1}
    assert len(found.labels) == 19


@pytest.mark.parametrize("n", [1, 3])
def test_very_few_labels(alloys, n):
    result = train(alloys[:n], model=MODEL, settings=QUICK, seed=0)
    assert result.n_held_out == 0
    assert np.isfinite(predict(result.potential, alloys[:n]).energies).all()


def test_frames_that_cannot_be_learned_are_named(alloys):
    with pytest.raises(DataError, match="frame 1: expected an energy, got nothing"):
        read_labels([alloys[0], alloys[1].copy()], QUICK)
    with pytest.raises(DataError, match="no usable label among 1 frames"):
        read_labels([wild(1.0, forces=np.full((1, 3), 80.0))], QUICK)
    with pytest.raises(DataError, match="no usable label among 0 frames"):
        read_labels([], QUICK)
    short = wild(1.0)
    short.calc.results["forces"] = np.zeros((2, 3))
    with pytest.raises(DataError, match="frame 0: expected forces of shape"):
        read_labels([short], QUICK)


@pytest.mark.parametrize("energy", ["abc", True, np.bool_(1), np.zeros(2), [1.0]])
def test_an_energy_is_one_number(alloys, energy):
    with pytest.raises(DataError, match="frame 1: expected an energy as one number, got "):
        read_labels([alloys[0], wild(energy)], QUICK)
    same = [wild(value) for value in (1, np.float32(1.0), np.array(1.0), np.array([1.0]))]
    assert [label.energy for label in read_labels(same, QUICK).labels] == 4 * [1.0]


@pytest.mark.parametrize("z", [-1, 0, 119, 120])
def test_atomic_numbers_are_those_of_elements(alloys, z):
    odd = wild(1.0)
    odd.numbers[0] = z
    with pytest.raises(DataError, match=f"frame 1: expected atomic numbers from 1 to 118, got {z}"):
        read_labels([alloys[0], odd], QUICK)


def test_all_weights_zero_is_refused(alloys):
    settings = TrainConfig(energy_weight=0, force_weight=0, virial_weight=0)
    with pytest.raises(ConfigError, match="all weights are zero"):
        train(alloys, model=MODEL, settings=settings, seed=0)


def test_families_are_never_divided(alloys):
    labels = read_labels(alloys, QUICK).labels
    kept, held = split_families(labels, 0.2, np.random.default_rng(0))
    assert sorted(kept + held) == list(range(40))
    assert not {labels[n].family for n in kept} & {labels[n].family for n in held}
    assert 6 <= len(held) <= 8


@pytest.mark.parametrize(("n", "n_held"), [(40, 4), (120, 8), (400, 20)])
def test_of_few_labels_more_are_held_out_until_spreads_can_be_calibrated(n, n_held, alloys):
    labels = read_labels(_simulation(alloys[0], 4), QUICK).labels
    singles = [replace(labels[0], family=str(number)) for number in range(n)]
    assert len(split_families(singles, 0.05, np.random.default_rng(0))[1]) == n_held
    assert split_families(singles, 0.0, np.random.default_rng(0))[1] == []


def test_a_dominant_family_is_divided_into_runs(alloys):
    labels = read_labels(_simulation(alloys[0], 200), QUICK).labels
    _, blocks = np.unique(family_blocks(labels), return_inverse=True)
    assert np.bincount(blocks).tolist() == [4] * 50
    for seed in range(20):
        held = split_families(labels, 0.1, np.random.default_rng(seed))[1]
        assert len(held) == 20
        for block in np.unique(blocks[held]):
            assert set(np.flatnonzero(blocks == block)) <= set(held)


def test_a_warm_start_never_holds_out_most_of_what_is_new(alloys):
    labels = read_labels(_simulation(alloys[0], 60), QUICK).labels
    for number, label in enumerate(labels):
        label.energy += number  # digests of their own
    for n_new in range(1, 9):
        learned = {label.digest for label in labels[:-n_new]}
        for seed in range(10):
            held = split_families(labels, 0.1, np.random.default_rng(seed), learned)[1]
            assert len(held) <= 0.2 * n_new + 0.5


def test_what_a_member_did_not_learn_it_does_not_learn_later(alloys):
    few, many = (read_labels(_simulation(alloys[0], n), QUICK).labels for n in (100, 300))
    before, after = ownership(few, 4), ownership(many, 4)
    assert (before == after[:100]).all()
    assert after.any(1).all()
    assert 0.7 < after.mean() < 0.9
    assert len({tuple(member) for member in after.T}) == 4
    assert ownership(few[:4], 4).any(0).all()


def test_only_what_is_new_is_held_out(alloys, other_alloys):
    first = train(alloys, model=MODEL, settings=QUICK, seed=0).potential
    seen = {label.digest for label in read_labels(alloys, QUICK).labels}
    learned = digests_of(first.metadata["learned"])
    assert len(learned) == 40 - 4
    assert learned < seen
    labels = read_labels([*alloys, *other_alloys], QUICK).labels
    for seed in range(5):
        kept, held = split_families(labels, 0.1, np.random.default_rng(seed), learned)
        assert held
        assert not {labels[n].digest for n in held} & learned
        assert sorted(kept + held) == list(range(len(labels)))
    again = train(alloys, model=MODEL, settings=QUICK, seed=0, previous=first)
    assert again.n_held_out <= 1
    assert again.potential.calibration.tolist() == first.calibration.tolist()


def _simulation(atoms: Atoms, n: int) -> list[Atoms]:
    """Make labels of which nine in ten share a family."""
    frames = [atoms.copy() for _ in range(n)]
    for number, frame in enumerate(frames):
        frame.info["family"] = "md" if number % 40 < 36 else f"small-{number // 4}"
        frame.calc = atoms.calc
    return frames


def test_spreads_are_calibrated_on_what_was_held_out(alloys):
    run = _Run(read_labels(alloys, QUICK), Potential(MODEL, ["Cu", "Au"], seed=3), QUICK, 0, warm=False)
    wide = calibration_factors(run.potential, run.data, torch.arange(40), 64)
    energy, force = [], []
    for label in run.labels:
        found = predict(run.potential, [label.atoms], spread=True)
        energy.append(np.array([abs(found.energies[0] - label.energy) / len(label.atoms), found.energy_spreads[0]]))
        lengths = np.linalg.norm(found.forces[0] - label.forces, axis=1)
        if len(label.atoms) > 1:  # an atom alone in its cell feels no force
            force.append(np.stack([lengths, found.force_spreads[0]], axis=1))
    ratios = [np.quantile(np.vstack(pairs), 0.5, axis=0, method="lower") for pairs in (energy, force)]
    # a normal distribution: half of the sizes are below 0.6745 standard deviations, in three dimensions below 0.888
    expected = [float(error / spread / half) for (error, spread), half in zip(ratios, (0.6745, 0.888), strict=True)]
    assert all(0.2 < value < 20 for value in expected)
    np.testing.assert_allclose(wide, expected, rtol=0.01)
    assert calibration_factors(run.potential, run.data, torch.arange(5), 64) is None


def test_a_warm_start_is_calibrated_by_how_well_its_labels_were_foreseen(alloys, label):
    shaken = []
    for number in range(20):
        atoms = bulk("Cu", cubic=True)
        atoms.numbers[0] = 79
        atoms.rattle(0.1, seed=number)
        shaken.append(label(atoms))
    first = train(alloys, model=MODEL, settings=QUICK, seed=0).potential
    assert first.calibration.tolist() == [1.0, 1.0]  # four labels held out are too few
    labels = read_labels([*alloys, *shaken], QUICK).labels
    numbers = unlearned(labels, digests_of(first.metadata["learned"]))
    assert len(numbers) == 4 + 20
    expected = calibration_factors(first, Dataset(labels, first), torch.tensor(numbers), QUICK.batch_atoms)
    assert all(0.2 < factor < 20 and abs(factor - 1) > 0.1 for factor in expected)
    again = train([*alloys, *shaken], model=MODEL, settings=QUICK, seed=0, previous=first)
    assert 0 < again.n_held_out < 8
    assert again.potential.calibration.tolist() == pytest.approx(expected)
    few = train([*alloys, *shaken[:3]], model=MODEL, settings=QUICK, seed=0, previous=first)
    assert few.potential.calibration.tolist() == [1.0, 1.0]


def test_what_too_few_labels_tell_does_not_change_the_calibration(trained, alloys, other_alloys):
    silent = [atoms.copy() for atoms in other_alloys]
    for atoms, known in zip(silent, other_alloys, strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=known.get_potential_energy())
    previous = deepcopy(trained.potential)
    previous.calibration[:] = torch.tensor([3.0, 4.0])
    settings = TrainConfig(max_steps=5, validation_fraction=0)
    again = train([*alloys, *silent], model=MODEL, settings=settings, seed=0, previous=previous)
    energy, force = again.potential.calibration.tolist()
    assert energy != 3.0
    assert force == 4.0  # of the labels that were held out before, fewer than eight


def test_labels_of_elements_not_learned_yet_tell_nothing_of_the_calibration(alloys):
    copper = [atoms for atoms in alloys if set(atoms.symbols) == {"Cu"}]
    others = [atoms for atoms in alloys if set(atoms.symbols) != {"Cu"}]
    assert len(others) > 8
    settings = TrainConfig(max_steps=5, validation_fraction=0)
    first = train(copper, model=MODEL, settings=settings, seed=0, elements=["Cu", "Au"]).potential
    first.calibration[:] = torch.tensor([3.0, 4.0])
    run = _Run(read_labels([*copper, *others], settings), deepcopy(first), settings, 0, warm=True)
    assert len(unlearned(run.labels, run.seen)) == len(others)
    assert run.potential.calibration.tolist() == [3.0, 4.0]


def test_nobody_knows_what_is_new_to_a_potential_that_does_not_say_what_it_learned(trained, alloys, other_alloys):
    previous = deepcopy(trained.potential)
    previous.calibration[:] = torch.tensor([3.0, 4.0])
    del previous.metadata["learned"]
    settings = TrainConfig(max_steps=5, validation_fraction=0)
    run = _Run(read_labels([*alloys, *other_alloys], settings), previous, settings, 0, warm=True)
    assert run.potential.calibration.tolist() == [3.0, 4.0]


def test_references_ignore_wild_labels(alloys):
    labels = read_labels(alloys, QUICK).labels
    clean = fit_references(labels, [29, 79])
    labels[0].energy += 500.0
    np.testing.assert_allclose(fit_references(labels, [29, 79]), clean, atol=0.3)


def test_an_exploded_loss_is_taken_back(alloys, monkeypatch, caplog):
    measured = RobustLoss.__call__
    bad_calls = {5}

    def exploding(loss: RobustLoss, *arguments: object) -> torch.Tensor:
        value = measured(loss, *arguments)
        exploding.calls += 1
        return value * torch.inf if exploding.calls in bad_calls else value

    exploding.calls = 0
    monkeypatch.setattr(RobustLoss, "__call__", exploding)
    result = train(alloys, model=MODEL, settings=QUICK, seed=0)
    assert "going back to the best weights" in caplog.text
    assert np.isfinite(predict(result.potential, alloys).energies).all()
    bad_calls.update(range(1000))
    with pytest.raises(NumericalError, match="is one of the labels wrong"):
        train(alloys, model=MODEL, settings=QUICK, seed=0)


def test_a_long_training_learns_at_a_lower_rate(alloys):
    found = read_labels(alloys, QUICK)
    rates = [
        _Run(found, Potential(MODEL, ["Cu", "Au"], 0), TrainConfig(max_steps=steps), 0, warm=False).top_rate
        for steps in (1000, 16000)
    ]
    assert rates[1] == pytest.approx(rates[0] / 2)


def test_a_warm_start_takes_a_third_of_the_steps_and_of_few_labels_half():
    pairs = [
        [default_steps(n_labels, 8 * n_labels, TrainConfig(), warm=warm) for warm in (False, True)]
        for n_labels in (60, 320, 1000, 100_000)
    ]
    assert pairs == [[1299, 649], [pairs[1][0], 1800], [pairs[2][0], round(0.32 * pairs[2][0])], [80_000, 25_600]]


def test_time_limit_ends_the_training(alloys):
    result = train(alloys, model=MODEL, settings=TrainConfig(max_steps=10**6, max_time=1.0), seed=0)
    assert 0.5 < result.seconds < 5.0


def test_a_limit_of_time_that_is_far_away_changes_nothing(alloys, monkeypatch):
    ticks = itertools.count(step=0.01)
    monkeypatch.setattr(loop, "time", Mock(monotonic=lambda: next(ticks)))
    limited = QUICK.model_copy(update={"max_time": 1000.0})
    free, held = (train(alloys, model=MODEL, settings=s, seed=0).potential.state_dict() for s in (QUICK, limited))
    assert all(torch.equal(free[name], held[name]) for name in free)
    assert next(ticks) > 0.3


def test_mixtures_keep_to_the_owners():
    owned = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    drawn = torch.stack([random_mixture(owned, torch.Generator().manual_seed(seed)) for seed in range(200)])
    assert not drawn[:, owned == 0].any()
    torch.testing.assert_close(drawn.sum(2), torch.ones(200, 2))
    assert abs(float(drawn[:, 0, 0].mean()) - 0.5) < 0.1
