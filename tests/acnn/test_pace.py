"""Scale of the energies, learning rate and optimiser: how fast a training goes, and a state of another version."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from acnn.config import ModelConfig, TrainConfig
from acnn.errors import StateError
from acnn.nn.potential import Potential
from acnn.train import restart
from acnn.train.labels import read_labels
from acnn.train.loop import _Run
from acnn.train.optimizer import Soap
from acnn.train.prepare import energy_scale
from acnn.train.restart import load_state, save_state
from acnn.train.schedule import MOST_STRUCTURES, default_patience, n_batches, top_learning_rate

SETTINGS = TrainConfig(batch_atoms=256, learning_rate=0.01, warm_learning_rate=0.005)
REFERENCES = {13: -3.0}


def labels(energies: list[float], force: float = 1.0) -> list:
    """Label cells of four atoms with energies per atom above the references and forces of one size."""
    frames = []
    for number, energy in enumerate(energies):
        atoms = bulk("Al", a=4.0 + 0.001 * number, cubic=True)
        forces = np.full((4, 3), force)
        atoms.calc = SinglePointCalculator(
            atoms, energy=4 * (energy + REFERENCES[13]), forces=forces, stress=np.zeros(6)
        )
        frames.append(atoms)
    return read_labels(frames, SETTINGS).labels


def test_the_network_gives_energies_in_units_of_their_spread():
    assert energy_scale(labels([0.0, 0.5, 1.0, 1.5]), REFERENCES) == pytest.approx(np.std([0.0, 0.5, 1.0, 1.5]))


def test_wild_and_equal_energies_are_bounded_by_the_forces():
    assert energy_scale(labels([0.0, 19.0], force=0.5), REFERENCES) == pytest.approx(5.0)
    assert energy_scale(labels([0.2, 0.2, 0.2], force=0.5), REFERENCES) == pytest.approx(0.05)
    assert energy_scale(labels([0.2], force=0.5), REFERENCES) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("n_labels", "n_atoms", "together"),
    [(100, 2560, 10.0), (25, 2560, 2.5), (10, 10000, 1.0), (512, 512, MOST_STRUCTURES)],
)
def test_the_rate_goes_with_the_root_of_the_structures_in_a_minibatch(n_labels: int, n_atoms: int, together: float):
    for warm, rate in ((False, 0.01), (True, 0.005)):
        found = top_learning_rate(n_labels, n_atoms, 1000, SETTINGS, warm=warm)
        assert found == pytest.approx(rate * np.sqrt(together / 10))


@pytest.mark.parametrize(("steps", "part"), [(150, 1.0), (1000, 1.0), (16000, 0.5), (81000, 1 / 3)])
def test_the_rate_falls_with_the_fourth_root_of_a_long_training(steps: int, part: float):
    for warm, rate in ((False, 0.01), (True, 0.005)):
        assert top_learning_rate(100, 2560, steps, SETTINGS, warm=warm) == pytest.approx(rate * part)


@pytest.mark.parametrize(("steps", "waits"), [(800, 50), (12500, 50), (80000, 320)])
def test_patience_grows_with_the_training(steps: int, waits: int):
    assert default_patience(steps, TrainConfig(evaluate_every=50)) == waits
    found = read_labels([label.atoms for label in labels([0.1, 0.2, 0.3])], SETTINGS)

    def patience(settings: TrainConfig) -> int:
        model = ModelConfig(members=1, hidden=(4,))
        return _Run(found, Potential(model, ["Al"], seed=0), settings, 0, warm=False).patience

    assert patience(TrainConfig(max_steps=steps)) == waits
    assert patience(TrainConfig(max_steps=steps, patience=7)) == 7


def test_no_structure_is_cut_into_minibatches():
    assert n_batches(10, 10000, SETTINGS) == 10
    assert n_batches(100, 2560, SETTINGS) == 10
    assert n_batches(3, 12, SETTINGS) == 1


def bowl(parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """Derive an ill-conditioned quadratic of each matrix."""
    with torch.enable_grad():
        leaves = [p.detach().requires_grad_() for p in parameters]
        tilt = torch.diag(torch.logspace(0, 2, parameters[0].shape[-2], dtype=torch.float64))
        loss = sum(((tilt @ p).square().sum(-1) * (n + 1)).sum() for n, p in enumerate(leaves))
        return list(torch.autograd.grad(loss, leaves))


def test_tensors_of_one_shape_move_as_each_would_alone():
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(4, 4, generator=draw, dtype=torch.float64) for _ in range(2)]  # of full rank
    together, alone = [p.clone() for p in start], [p.clone() for p in start]
    both = Soap(together, 0.0, [False, False])
    assert len(both.state) == 1
    singles = [Soap([p], 0.0, [False]) for p in alone]
    for _ in range(25):
        gradients = bowl(together)
        both.step(gradients, 0.05)
        for single, gradient in zip(singles, bowl(alone), strict=True):
            single.step([gradient], 0.05)
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-9)
    assert float(together[0].abs().max()) < 0.5 * float(start[0].abs().max())


def test_members_share_the_basis_of_their_inputs():
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(2, 4, 7, 3, generator=draw, dtype=torch.float64)  # elements, members, inputs, outputs
    optimizer = Soap([first], 0.0, [False])
    for _ in range(12):
        optimizer.step([torch.randn(first.shape, generator=draw, dtype=torch.float64)], 0.01)
    assert optimizer.state[0]["left_axes"].shape == (1, 2, 1, 7, 7)
    assert optimizer.state[0]["right_axes"].shape == (1, 2, 4, 3, 3)
    assert torch.isfinite(first).all()


def test_a_state_of_another_version_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch):
    found = read_labels([label.atoms for label in labels([0.1, 0.2, 0.3])], SETTINGS)

    def run() -> _Run:
        return _Run(found, Potential(ModelConfig(members=1, hidden=(4,)), ["Al"], seed=0), SETTINGS, 0, warm=False)

    one = run()
    one._step(0.1)
    monkeypatch.setattr(restart, "VERSION", restart.VERSION - 1)
    save_state(tmp_path, one)
    assert load_state(tmp_path, run())
    monkeypatch.undo()
    with pytest.raises(StateError, match="version"):
        load_state(tmp_path, run())
