"""A pressure that stresses hold and energies do not is told apart, and never moves an atom."""

import io
import json
from contextlib import redirect_stderr

import numpy as np
import pytest
import safetensors.torch
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.units import GPa

from acnn import checkpoint
from acnn.calculator import ACNNCalculator
from acnn.cli import main
from acnn.config import ModelConfig, TrainConfig
from acnn.evaluate import evaluate, predict
from acnn.nn.potential import Potential
from acnn.train import train
from acnn.train.units import warn_of_pulay_stress

MODEL = ModelConfig(n_radial=6, channels=4, mixed_channels=4, hidden=(16,), l_max=3, members=2)
OWN = {"Cu": 0.6, "Au": 0.2}  # eV that each atom adds to the virial


def with_pulay_stress(frames):
    """Let the stresses of labels hold what their energies do not tell."""
    changed = []
    for atoms in frames:
        copy, stress = atoms.copy(), atoms.get_stress()
        stress[:3] += sum(OWN[symbol] for symbol in atoms.symbols) / atoms.get_volume()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": stress}
        copy.calc = SinglePointCalculator(copy, **results)
        changed.append(copy)
    return changed


def learned(potential):
    """Give what each element was found to add to virials, eV."""
    species = torch.arange(len(potential.elements))
    virials = potential.pulay(species, species, len(species), potential.scale)
    assert torch.equal(virials, torch.diag_embed(torch.diagonal(virials, dim1=1, dim2=2)))
    return dict(zip(potential.elements, virials[:, 0, 0].tolist(), strict=True))


@pytest.fixture(scope="module")
def told_and_fitted(alloys, tmp_path_factory):
    """Train by the command line; give what it says, and the potential."""
    folder = tmp_path_factory.mktemp("pulay")
    write(folder / "labels.extxyz", with_pulay_stress(alloys))
    config = {"model": MODEL.model_dump(mode="json"), "train": {"max_steps": 800}}
    (folder / "config.json").write_text(json.dumps(config))
    with redirect_stderr(io.StringIO()) as told:
        files = [str(folder / name) for name in ("labels.extxyz", "config.json", "cu-au.acnn")]
        assert main(["train", files[0], "--config", files[1], "--out", files[2], "--threads", "1"]) == 0
    return told.getvalue(), checkpoint.load(files[2])


@pytest.fixture(scope="module")
def fitted(told_and_fitted):
    return told_and_fitted[1]


def test_a_large_one_is_told(told_and_fitted):
    told, potential = told_and_fitted
    assert f"a virial of {learned(potential)['Cu']:.2f} eV per atom of Cu that their energies do not tell" in told
    assert "a higher cutoff" in told


def test_what_each_element_adds_is_found(fitted):
    assert learned(fitted) == pytest.approx(OWN, abs=0.05)
    assert fitted.metadata["trainings"][0]["pulay_virial_ev"] == pytest.approx(learned(fitted), rel=1e-6)


@pytest.mark.usefixtures("rising_scores")
def test_it_is_found_where_the_training_ends_early(alloys):
    settings = TrainConfig(max_steps=800, evaluate_every=10, patience=45)
    result = train(with_pulay_stress(alloys), model=MODEL, settings=settings, seed=0)
    assert result.history[-1]["step"] < 700
    assert learned(result.potential) == pytest.approx(OWN, abs=0.1)


def test_a_warm_start_keeps_what_was_found(fitted, alloys):
    settings = TrainConfig(max_steps=100)
    warm = train(with_pulay_stress(alloys), model=MODEL, settings=settings, seed=0, previous=fitted).potential
    assert learned(warm) == pytest.approx(OWN, abs=0.05)


@pytest.mark.parametrize(("virial", "told"), [(0.3, ["Au", "cutoff"]), (-0.3, ["Au", "same settings"]), (0.1, [])])
def test_what_is_larger_than_errors_is_told(caplog, virial, told):
    warn_of_pulay_stress({"Cu": 0.04, "Au": virial}, 0.2)
    assert len(caplog.records) == bool(told)
    assert all(word in caplog.text for word in told)


def test_without_one_none_is_found(alloys):
    potential = train(alloys, model=MODEL, settings=TrainConfig(max_steps=800), seed=0).potential
    assert learned(potential) == pytest.approx({"Cu": 0.0, "Au": 0.0}, abs=0.05)


def test_the_potential_is_compared_with_labels_by_both_and_moves_atoms_by_its_energy(fitted, other_alloys):
    labels = with_pulay_stress(other_alloys)
    found, metrics = predict(fitted, labels), evaluate(fitted, labels)
    volumes = [atoms.get_volume() for atoms in labels]
    own = [sum(learned(fitted)[s] for s in atoms.symbols) / v for atoms, v in zip(labels, volumes, strict=True)]
    assert found.pulay == pytest.approx(np.array([x * np.eye(3) for x in own]), rel=1e-5)
    assert metrics.pulay_stress_gpa == pytest.approx(np.mean(own) / GPa, rel=1e-5)
    known = np.array([atoms.get_stress(voigt=False) for atoms in labels])
    upper = np.triu_indices(3)
    for stresses, error in (
        (found.labelled_stresses, metrics.stress_mae_gpa),
        (found.stresses, metrics.stress_mae_without_pulay_gpa),
    ):
        assert error == pytest.approx(np.abs(stresses - known)[:, *upper].mean() / GPa, rel=1e-5)
    atoms = labels[0].copy()
    atoms.calc = ACNNCalculator(fitted)
    assert atoms.get_stress(voigt=False) == pytest.approx(found.stresses[0], rel=1e-4, abs=1e-6)


def test_labels_of_one_volume_keep_their_pressure(label):
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(40):
        atoms = bulk("Cu", "fcc", a=3.45, cubic=True)
        atoms.positions += rng.normal(0.0, 0.12, (4, 3))
        frames.append(label(atoms))
    assert np.mean([atoms.get_stress()[:3].mean() for atoms in frames]) < -30.0 * GPa
    potential = train(frames, model=MODEL, settings=TrainConfig(max_steps=800), seed=0).potential
    assert abs(evaluate(potential, frames).pulay_stress_gpa) < 0.5  # 1.1 if it were learned from the beginning


def test_without_stresses_there_is_none(alloys):
    frames = []
    for atoms in alloys:
        copy = atoms.copy()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        copy.calc = SinglePointCalculator(copy, **results)
        frames.append(copy)
    potential = train(frames, model=MODEL, settings=TrainConfig(max_steps=60), seed=0).potential
    assert learned(potential) == {"Cu": 0.0, "Au": 0.0}
    metrics = evaluate(potential, frames)
    assert metrics.pulay_stress_gpa is None
    assert metrics.stress_mae_without_pulay_gpa is None


def test_a_model_of_before_has_none(fitted):
    tensors = fitted.state_dict()
    del tensors["pulay.share"]
    header = {"version": 3, "config": MODEL.model_dump(mode="json"), "elements": list(fitted.elements)}
    header["hash"] = checkpoint.content_hash(header, tensors)
    loaded = checkpoint.loads(safetensors.torch.save(tensors, metadata={checkpoint.FORMAT: json.dumps(header)}))
    assert learned(loaded) == {"Au": 0.0, "Cu": 0.0}
    assert learned(checkpoint.loads(checkpoint.dumps(fitted))) == learned(fitted)
    assert learned(Potential(MODEL, ["Mg"])) == {"Mg": 0.0}
