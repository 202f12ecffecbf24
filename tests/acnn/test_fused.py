"""The compiled evaluation against the recorded one."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from ase import Atoms

from acnn import compiled
from acnn.batch import Batch
from acnn.config import ModelConfig
from acnn.neighbors import build_neighbors
from acnn.nn import potential as potential_module
from acnn.nn.derivatives import derivatives
from acnn.nn.fused import fused
from acnn.nn.potential import CLOSEST, Output, Potential

if TYPE_CHECKING:
    from acnn.nn.graph import Graph

TOLERANCE = {"float64": 1e-11, "float32": 1e-5}  # of the largest value, rounding

SHAPES = {
    "default": {},
    "one member": {"members": 1},
    "linear": {"hidden": ()},
    "two factors": {"max_factors": 2},
    "three factors": {"l_max": 2, "max_factors": 3},
    "scalars": {"l_max": 0},
    "many elements": {"element_channels": 3, "members": 2, "hidden": (5, 9)},
    "odd": {"l_max": 3, "n_radial": 7, "channels": 5, "mixed_channels": 3, "element_channels": 1, "hidden": (8,)},
}

ELEMENTS = {"many elements": ["Mg", "Cu", "Si", "Al", "Au"]}

needs_compiler = pytest.mark.skipif(
    fused(Potential(ModelConfig(members=1), ["Al"]), CLOSEST) is None, reason="no C compiler here"
)


def frames() -> list[Atoms]:
    """Random cells, some with atoms so close that they repel."""
    rng = np.random.default_rng(5)
    made = []
    for n in (1, 2, 5, 9, 20):
        cell = np.eye(3) * (14.0 * n) ** (1 / 3) + rng.normal(0, 0.4, (3, 3))
        kinds = [("Al", "Cu")[k] for k in rng.integers(0, 2, n)]
        made.append(Atoms(kinds, cell=cell, scaled_positions=rng.random((n, 3)), pbc=True))
    return made


def crystals(dtype: torch.dtype) -> Batch:
    return Batch.from_atoms(frames(), dtype, "cpu")


def recorded(potential: Potential, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Output:
    with monkeypatch.context() as patch:
        patch.setattr(potential_module, "fused", lambda *_: None)
        return potential.compute(batch, spread=True)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp(min=1.0))


@needs_compiler
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_compiled_and_recorded_gradients_agree(shape: str, dtype: str, monkeypatch: pytest.MonkeyPatch):
    potential = Potential(ModelConfig(dtype=dtype, **SHAPES[shape]), ELEMENTS.get(shape, ["Al", "Cu"]), seed=3)
    with torch.no_grad():
        potential.fitting.linear.normal_(generator=torch.Generator().manual_seed(0))
        potential.scale.fill_(1.7)
    batch = crystals(potential.dtype)
    slow = recorded(potential, batch, monkeypatch)
    apart = potential.compute(batch, spread=True)
    for fast in (potential.compute(batch), apart):
        for name in ("energy", "forces", "stress", "atomic_energy", "energy_spread"):
            assert distance(getattr(fast, name), getattr(slow, name)) < TOLERANCE[dtype], name
    # a difference of large forces, and rounded as they are
    gap = (apart.force_spread - slow.force_spread).abs().max()
    assert float(gap) < TOLERANCE[dtype] * float(slow.forces.abs().max())
    assert bool(apart.force_spread.any()) == (potential.n_members > 1)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_atom_depends_on_the_rest_of_its_batch(dtype: str):
    potential = Potential(ModelConfig(dtype=dtype), ["Al", "Cu"], seed=3)
    together = potential.compute(crystals(potential.dtype))
    for k, atoms in enumerate(frames()):
        alone = potential.compute(Batch.from_atoms([atoms], potential.dtype))
        chosen = crystals(potential.dtype).system == k
        apart = potential.compute(Batch.from_atoms([atoms], potential.dtype), spread=True)
        assert torch.equal(alone.atomic_energy, together.atomic_energy[chosen])
        assert torch.equal(alone.atomic_energy, apart.atomic_energy)
        assert distance(apart.forces, alone.forces) < TOLERANCE[dtype]
        assert distance(alone.forces, together.forces[chosen]) < TOLERANCE[dtype]
        assert distance(alone.stress[0], together.stress[k]) < TOLERANCE[dtype]


def neighborhoods(potential: Potential) -> Graph:
    batch = crystals(torch.float64)
    species = potential.species_of(batch.numbers)
    neighbors = build_neighbors(batch, potential.cutoff)
    return potential._graph(batch, neighbors, species, slice(0, batch.n_atoms), slice(0, batch.n_systems))


def learning(potential: Potential, *, native: bool = True, move: float = 0.0) -> list[torch.Tensor]:
    """Compute what a training needs; the weights move by so much first, along a fixed direction."""
    draw = torch.Generator().manual_seed(1)
    weights = [p for p in potential.parameters() if p.requires_grad]
    with torch.no_grad():
        for weight in weights:
            weight.add_(torch.randn(weight.shape, generator=draw, dtype=torch.float64).to(weight), alpha=move)
    graph = neighborhoods(potential)
    mixture = torch.rand((graph.n_systems, potential.n_members), generator=draw, dtype=torch.float64)
    mixture = (mixture / mixture.sum(1, keepdim=True)).to(potential.dtype)
    assert derivatives(potential, graph, CLOSEST) is not None
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(potential_module, "derivatives", lambda *_: None)
        found = potential.respond(graph, mixture, create_graph=True)
    # of the bounded parts of forces and virials: some atoms nearly touch
    loss = sum(
        (torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x) * torch.tanh(0.1 * x)).sum() for x in found
    )
    gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
    return [loss.detach(), *(x.detach() for x in found), *gradients]


@needs_compiler
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_compiled_and_recorded_derivatives_by_the_weights_agree(shape: str, dtype: str):
    potential = Potential(ModelConfig(dtype=dtype, **SHAPES[shape]), ELEMENTS.get(shape, ["Al", "Cu"]), seed=3)
    with torch.no_grad():
        potential.fitting.linear.normal_(generator=torch.Generator().manual_seed(0))
    fast, slow = learning(potential), learning(potential, native=False)
    assert max(float(x.abs().max()) for x in fast[4:]) > 0.01
    for one, other in zip(fast, slow, strict=True):
        assert distance(one, other) < (1e-10 if dtype == "float64" else 1e-3)  # near atoms: large numbers cancel


@needs_compiler
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_kernel_reads_vectors_as_well_as_positions(dtype: str, monkeypatch: pytest.MonkeyPatch):
    potential = Potential(ModelConfig(dtype=dtype), ["Al", "Cu"], seed=3)
    graph = neighborhoods(potential)
    fast = potential.respond(graph)
    monkeypatch.setattr(potential_module, "fused", lambda *_: None)
    monkeypatch.setattr(potential_module, "derivatives", lambda *_: None)
    for one, other in zip(fast, potential.respond(graph), strict=True):
        assert distance(one, other.detach()) < 10 * TOLERANCE[dtype]


@needs_compiler
def test_derivatives_by_the_weights_are_those_of_the_loss():
    potential = Potential(ModelConfig(dtype="float64"), ["Al", "Cu"], seed=3)
    gradients = learning(potential)[4:]
    draw = torch.Generator().manual_seed(1)
    weights = [p for p in potential.parameters() if p.requires_grad]
    slope = sum(
        (torch.randn(w.shape, generator=draw, dtype=torch.float64) * g).sum()
        for w, g in zip(weights, gradients, strict=True)
    )
    small = 1e-6
    more, less = learning(potential, move=small)[0], learning(potential, move=-2 * small)[0]
    assert float((more - less) / (2 * small)) == pytest.approx(float(slope), rel=1e-6)


@needs_compiler
def test_derivatives_by_the_weights_do_not_depend_on_threads():
    potential = Potential(ModelConfig(dtype="float64"), ["Al", "Cu"], seed=3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = learning(potential)
        torch.set_num_threads(3)
        three = learning(potential)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, three, strict=True):
        assert distance(a, b) < TOLERANCE["float64"]


@needs_compiler
def test_changed_weights_are_seen(monkeypatch: pytest.MonkeyPatch):
    potential = Potential(ModelConfig(members=1, dtype="float64"), ["Al", "Cu"], seed=3)
    batch = crystals(potential.dtype)
    before = potential.compute(batch)
    with torch.no_grad():
        potential.embedding.mixing[1].mul_(1.1)
    after = potential.compute(batch)
    assert distance(after.energy, before.energy) > 1e-6
    assert distance(after.energy, recorded(potential, batch, monkeypatch).energy) < TOLERANCE["float64"]


def test_a_potential_that_was_used_survives_pickling():
    potential = Potential(ModelConfig(members=1, dtype="float64"), ["Al", "Cu"], seed=3)
    batch = crystals(potential.dtype)
    energy = potential.compute(batch).energy
    again = pickle.loads(pickle.dumps(potential))  # noqa: S301 - made on the line
    assert torch.equal(again.compute(batch).energy, energy)


def test_what_the_kernel_cannot_do_is_left_to_torch():
    assert fused(Potential(ModelConfig(members=1, attention_blocks=1), ["Al"]), CLOSEST) is None
    assert fused(Potential(ModelConfig(members=1, max_factors=1), ["Al"]), CLOSEST) is None
    assert fused(Potential(ModelConfig(members=1, radial_cutoff=6.0), ["Al"]), CLOSEST) is None
    assert fused(Potential(ModelConfig(members=1, l_max=0, hidden=(4096,)), ["Al"]), CLOSEST) is None


def test_no_compiler_no_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    compiled._load.cache_clear()
    try:
        potential = Potential(ModelConfig(members=1, dtype="float64"), ["Al", "Cu"], seed=3)
        assert fused(potential, CLOSEST) is None
        assert torch.isfinite(potential.compute(crystals(potential.dtype)).forces).all()
    finally:
        compiled._load.cache_clear()


@needs_compiler
def test_a_compiler_that_fails_is_told_and_replaced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("CC", "false")
    compiled._load.cache_clear()
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
        potential = Potential(ModelConfig(members=1, dtype="float64"), ["Al", "Cu"], seed=3)
        assert fused(potential, CLOSEST) is None
        assert "PyTorch does its work" in caplog.text
    finally:
        compiled._load.cache_clear()


@needs_compiler
def test_subnormal_numbers_of_the_process_are_left_alone():
    program = (
        "import torch\n"
        "import numpy; from acnn.compiled import load_library; from acnn.neighbors import SOURCES\n"
        "assert load_library(SOURCES, torch.device('cpu')) is not None\n"
        "assert numpy.float64(1e-310) * 0.5 > 0"
    )
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603 - our own program
