"""Every variant of the potential keeps the contract."""

import pytest
import torch
from ase import Atoms

from acnn.batch import Batch
from acnn.config import ModelConfig
from acnn.errors import ModelError
from acnn.neighbors import Neighbors
from acnn.nn.potential import Output, Potential
from acnn.testing import _Contract, assert_potential_contract

SMALL = {
    "n_radial": 6,
    "channels": 4,
    "mixed_channels": 4,
    "hidden": (8, 6),
    "radial_cutoff": 4.5,
    "angular_cutoff": 4.0,
}
VARIANTS = {
    "plain": {"members": 1},
    "committee": {"members": 3},
    "attention": {"members": 1, "attention_blocks": 1, "attention_width": 8, "attention_cutoff": 3.5},
    "attention twice, committee": {"members": 2, "attention_blocks": 2, "attention_width": 8, "attention_cutoff": 5.0},
    "linear": {"members": 2, "hidden": ()},
    "pairs only": {"members": 1, "max_factors": 1},
    "two factors": {"members": 1, "max_factors": 2, "l_max": 2},
    "three factors": {"members": 1, "max_factors": 3},
    "few element channels": {"members": 1, "element_channels": 1},
}


def potential(dtype: str, elements: tuple[str, ...] = ("H", "Mg", "Ca"), **options: object) -> Potential:
    made = Potential(ModelConfig(dtype=dtype, **(SMALL | options)), elements, seed=5)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        made.fitting.linear.add_(0.05 * torch.randn(made.fitting.linear.shape, generator=generator))
        made.reference.copy_(torch.arange(len(elements)) - 3.3)
        made.whitening.mean.add_(0.1)
    return made


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant, dtype):
    assert_potential_contract(potential(dtype, **VARIANTS[variant]), seed=1)


def test_contract_holds_for_one_element_and_the_default_shape():
    made = Potential(ModelConfig(), ["Si"], seed=3)
    assert_potential_contract(made, seed=2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_contract_on_cuda(variant, dtype):
    assert_potential_contract(potential(dtype, **VARIANTS[variant]).to("cuda"), seed=1)


def test_a_potential_made_without_gradients_is_refused():
    with torch.inference_mode():
        made = potential("float64", members=1)
    with pytest.raises(ModelError, match="inference_mode"):
        made.compute(Batch.from_atoms([Atoms("Mg", cell=[3, 3, 3], pbc=True)], torch.float64))


def test_a_wrong_force_is_found(monkeypatch):
    made = potential("float64", members=1)
    compute = made.compute

    def scaled(batch: Batch, neighbors: Neighbors | None = None, *, spread: bool = False) -> Output:
        output = compute(batch, neighbors, spread=spread)
        output.forces = output.forces * 1.001
        return output

    monkeypatch.setattr(made, "compute", scaled)
    with pytest.raises(AssertionError, match="forces are not"):
        assert_potential_contract(made)


def test_atoms_that_fall_into_each_other_are_found(monkeypatch):
    made = potential("float64", members=1)
    monkeypatch.setattr(type(made.repulsion), "forward", lambda _, distances, *__: -(1.0 / distances).sum(-1))
    monkeypatch.setattr("acnn.nn.potential.fused", lambda *_: None)
    with pytest.raises(AssertionError, match="not pushed apart"):
        _Contract(made, 0).collisions()
