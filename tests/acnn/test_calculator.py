"""The potential through ASE and TorchSim gives what the potential gives."""

import importlib
import sys

import numpy as np
import pytest
import torch
from ase import Atom, Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator

from acnn import checkpoint
from acnn.batch import Batch
from acnn.calculator import ACNNCalculator
from acnn.config import ModelConfig
from acnn.errors import ConfigError, DataError
from acnn.evaluate import evaluate, predict
from acnn.nn.potential import Potential


@pytest.fixture(scope="module")
def potential() -> Potential:
    return Potential(ModelConfig(n_radial=5, channels=3, mixed_channels=3, hidden=(6,), members=3), ["Cu", "Au"])


def test_ase(potential, alloys, tmp_path):
    atoms = next(a for a in alloys if len(a) > 2).copy()
    path = tmp_path / "a.acnn"
    checkpoint.save(potential, path)
    atoms.calc = ACNNCalculator(path, force_spread=True)
    output = potential.compute(Batch.from_atoms([atoms], torch.float64), spread=True)
    assert atoms.get_potential_energy() == float(output.energy[0])
    np.testing.assert_array_equal(atoms.get_forces(), output.forces.numpy())
    np.testing.assert_allclose(atoms.get_stress(voigt=False), output.stress[0].numpy(), atol=1e-12)
    assert abs(atoms.get_potential_energies().sum() - atoms.get_potential_energy()) < 1e-9
    assert atoms.calc.results["energy_spread"] > 0
    assert atoms.calc.results["force_spread"].shape == (len(atoms),)


def test_ase_gives_no_stress_of_a_molecule(potential):
    atoms = Atoms("CuAu", [[0, 0, 0], [0, 0, 2.5]], cell=[10, 10, 10])
    atoms.calc = ACNNCalculator(potential)
    alone = atoms.get_potential_energy()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    atoms.pbc = True
    assert atoms.get_potential_energy() == pytest.approx(alone, abs=1e-6)
    assert atoms.get_stress().shape == (6,)


def test_ase_follows_every_change(potential):
    atoms = bulk("Cu", cubic=True)
    atoms.calc = ACNNCalculator(potential)
    atoms.get_potential_energy()
    for change in (
        lambda: atoms.set_cell(1.05 * atoms.cell.array, scale_atoms=True),
        lambda: atoms.rattle(0.05, seed=1),
        lambda: atoms.append(Atom("Au", [1.0, 1.0, 0.5])),
        lambda: atoms.set_pbc(False),
    ):
        change()
        expected = predict(potential, [atoms])
        assert atoms.get_potential_energy() == pytest.approx(expected.energies[0], abs=1e-9)
        np.testing.assert_allclose(atoms.get_forces(), expected.forces[0], atol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_atoms_that_are_nowhere_are_refused(potential, value):
    atoms = bulk("Cu", cubic=True)
    atoms.positions[1, 2] = value
    with pytest.raises(DataError, match="structure 1: expected finite positions"):
        predict(potential, [bulk("Cu"), atoms])
    atoms.calc = ACNNCalculator(potential)
    with pytest.raises(DataError):
        atoms.get_forces()


@pytest.mark.parametrize("number", [-90, 0, 119])
def test_atoms_of_no_element_are_refused(potential, number):
    with pytest.raises(DataError, match="no element"):
        predict(potential, [Atoms([number], cell=[3, 3, 3], pbc=True)])


def test_device_that_is_not_there(potential):
    with pytest.raises(ConfigError, match="device: foo"):
        ACNNCalculator(potential, device="foo")


def test_torchsim(potential, alloys):
    torch_sim = pytest.importorskip("torch_sim")
    model = importlib.import_module("acnn.torchsim").ACNNModel(potential)
    state = torch_sim.io.atoms_to_state([a.copy() for a in alloys[:3]], torch.device("cpu"), torch.float64)
    results = model.forward(state)
    expected = predict(potential, alloys[:3])
    np.testing.assert_allclose(results["energy"].numpy(), expected.energies)
    np.testing.assert_allclose(results["stress"].numpy(), expected.stresses)


def test_predictions_keep_the_order(potential, alloys):
    found = predict(potential, alloys, spread=True)
    single = predict(potential, [alloys[7]], spread=True)
    assert abs(found.energies[7] - single.energies[0]) < 1e-4
    np.testing.assert_allclose(found.force_spreads[7], single.force_spreads[0], rtol=1e-2, atol=1e-4)
    assert predict(potential, []).energies.shape == (0,)


def test_evaluation_of_one_member_has_no_calibration(alloys):
    single = Potential(ModelConfig(members=1, n_radial=4, channels=2), ["Cu", "Au"])
    metrics = evaluate(single, alloys)
    assert metrics.spread_rank_correlation is None
    assert metrics.force_spread_rank_correlation is None
    assert metrics.spread_mean_mev_per_atom == 0


def test_evaluation_counts_errors_within_the_spread(alloys):
    committee = Potential(ModelConfig(members=3, n_radial=4, channels=2), ["Cu", "Au"], seed=1)
    exact = predict(committee, alloys, spread=True)
    frames = []
    for number, atoms in enumerate(alloys):  # errors of twice the spread in every fourth structure, else of half
        size = 2.0 if number % 4 == 0 else 0.5
        frame = atoms.copy()
        energy = exact.energies[number] + size * len(atoms) * exact.energy_spreads[number]
        push = np.zeros((len(atoms), 3))
        push[:, 1] = size * exact.force_spreads[number]
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=exact.forces[number] + push)
        frames.append(frame)
    metrics = evaluate(committee, frames)
    assert metrics.spread_within == 0.75
    sizes = np.array([len(atoms) if len(atoms) > 1 else 0 for atoms in alloys])  # one atom feels no force
    assert abs(metrics.force_spread_within - 1 + sizes[::4].sum() / sizes.sum()) < 1e-9
    assert metrics.force_spread_rank_correlation > 0.3


def test_torchsim_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_sim.models.interface", None)
    monkeypatch.delitem(sys.modules, "acnn.torchsim", raising=False)
    with pytest.raises(ConfigError, match="needs TorchSim: pip install"):
        importlib.import_module("acnn.torchsim")
