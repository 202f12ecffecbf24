"""What runs on a GPU gives what the CPU gives: compiled functions, PyTorch's way, whole relaxations."""

from __future__ import annotations

from enum import IntEnum
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from acnn import cuda
from acnn import neighbors as neighbors_module
from acnn.batch import Batch
from acnn.config import ModelConfig, RelaxConfig
from acnn.cuda import compile_once
from acnn.evaluate import predict
from acnn.neighbors import Neighbors, build_neighbors
from acnn.nn import gpu, native
from acnn.nn import potential as potential_module
from acnn.nn.fused import fused
from acnn.nn.potential import CLOSEST, Output, Potential
from acnn.relax import lbfgs, relax
from acnn.relax.guard import closest_ratio, distance_table
from acnn.relax.lbfgs import History

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}  # of the largest value, rounding

SHAPES = {
    "default": {},
    "linear, one member": {"hidden": (), "members": 1},
    "two factors": {"max_factors": 2},
    "three factors": {"l_max": 2, "max_factors": 3},
    "odd": {"l_max": 3, "n_radial": 7, "channels": 5, "mixed_channels": 3, "element_channels": 1, "hidden": (8,)},
}


def crystals(n: int = 8, closest: float = 0.0) -> list[Atoms]:
    """Random cells; without a closest distance some atoms are so near that they repel."""
    rng = np.random.default_rng(5)
    made: list[Atoms] = []
    while len(made) < n:
        size = int(rng.integers(1, 20))
        cell = np.eye(3) * (14.0 * size) ** (1 / 3) + rng.normal(0, 0.4, (3, 3))
        atoms = Atoms("Al" * size, cell=cell, scaled_positions=rng.random((size, 3)), pbc=True)
        atoms.numbers[rng.integers(0, 2, size) == 1] = 29
        distances = atoms.get_all_distances(mic=True)[np.triu_indices(size, 1)]
        if not (distances < closest).any():
            made.append(atoms)
    return made


def potential(dtype: str, **shape: object) -> Potential:
    made = Potential(ModelConfig(dtype=dtype, **shape), ["Al", "Cu"], seed=3)
    with torch.no_grad():
        made.fitting.linear.normal_(generator=torch.Generator().manual_seed(0))
        made.scale.fill_(1.7)
    return made


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.cpu(), other.cpu()
    return float((one - other).abs().max() / other.abs().max().clamp(min=1.0))


def assert_alike(one: Output, other: Output, tolerance: float) -> None:
    for name in ("energy", "forces", "stress", "atomic_energy", "energy_spread"):
        assert distance(getattr(one, name), getattr(other, name)) < tolerance, name


def rows(neighbors: Neighbors) -> list[list[tuple[int, ...]]]:
    index, shift, mask = neighbors.index.tolist(), neighbors.shift.int().tolist(), neighbors.mask.tolist()
    return [
        sorted((j, *s) for j, s, real in zip(*row, strict=True) if real) for row in zip(index, shift, mask, strict=True)
    ]


def test_the_sources_are_what_a_gpu_understands_and_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("cuda.bindings.nvrtc")
    shape = native.Shape(torch.float32, 6, 2, 3, 4, 4, 4, 2, (8,))
    constants = {"closest": 1e-3, "wall": 1.0, "clamp": 0.5, "zbl_weights": (1.0,), "zbl_rates": (1.0,)}
    for sources, defines in (
        (gpu.SOURCES, shape.defines(constants)),
        (neighbors_module.SOURCES, []),
        (lbfgs.SOURCES, []),
    ):
        texts = {Path(name).name: resources.files("acnn").joinpath(name).read_text() for name in sources}
        try:
            code = compile_once(texts, ("--gpu-architecture=sm_80", *defines), tmp_path)
        except RuntimeError as error:
            if "DynamicLib" not in type(error).__name__:
                raise
            pytest.skip("no NVRTC here")
        assert len(code) > 1000
        with monkeypatch.context() as patch:
            patch.setattr(cuda, "compile_cuda", None)
            assert compile_once(texts, ("--gpu-architecture=sm_80", *defines), tmp_path) == code
    assert len(list(tmp_path.iterdir())) == 3


def test_want_of_memory_is_told_from_other_errors():
    class Result(IntEnum):
        CUDA_SUCCESS = 0
        CUDA_ERROR_OUT_OF_MEMORY = 2
        CUDA_ERROR_LAUNCH_FAILED = 719

    assert cuda._check((Result.CUDA_SUCCESS, 7)) == 7
    with pytest.raises(torch.OutOfMemoryError):
        cuda._succeed((Result.CUDA_ERROR_OUT_OF_MEMORY,))
    with pytest.raises(RuntimeError, match="LAUNCH_FAILED") as found:
        cuda._succeed((Result.CUDA_ERROR_LAUNCH_FAILED,))
    assert not isinstance(found.value, torch.OutOfMemoryError)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_compiled_on_a_gpu_and_recorded_on_a_cpu_agree(shape: str, dtype: str, monkeypatch: pytest.MonkeyPatch):
    made = potential(dtype, **SHAPES[shape])
    batch = Batch.from_atoms(crystals(), made.dtype)
    with monkeypatch.context() as patch:
        patch.setattr(potential_module, "fused", lambda *_: None)
        slow = made.compute(batch)
    made = made.to(CUDA)
    assert fused(made, CLOSEST) is not None
    on_gpu = Batch.from_atoms(crystals(), made.dtype, CUDA)
    assert_alike(made.compute(on_gpu), slow, TOLERANCE[dtype])
    monkeypatch.setattr(potential_module, "fused", lambda *_: None)
    assert_alike(made.compute(on_gpu), slow, TOLERANCE[dtype])


@pytest.mark.gpu
def test_more_atoms_than_threads_each_get_their_turn():
    made = potential("float32")
    frames = crystals(50, closest=1.5)
    one = made.compute(Batch.from_atoms(frames, made.dtype))
    made = made.to(CUDA)
    many = made.compute(Batch.from_atoms(frames * 800, made.dtype, CUDA))
    assert len(many.forces) > 1 << 16
    assert distance(many.energy, one.energy.repeat(800)) < TOLERANCE["float32"]
    assert distance(many.forces, one.forces.repeat(800, 1)) < TOLERANCE["float32"]


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["compiled", "torch"])
def test_neighbors_and_distances_are_those_of_the_cpu(way: str, monkeypatch: pytest.MonkeyPatch):
    frames, table = crystals(), torch.as_tensor(distance_table(None))
    batch, on_gpu = (Batch.from_atoms(frames, torch.float64, device) for device in (CPU, CUDA))
    expected = build_neighbors(batch, 5.0)
    ratio = closest_ratio(batch, expected, table)
    if way == "torch":
        monkeypatch.setattr(neighbors_module, "load_library", lambda *_: None)
        monkeypatch.setattr("acnn.relax.guard.load_library", lambda *_: None)
    found = build_neighbors(on_gpu, 5.0)
    assert rows(found) == rows(expected)
    assert torch.allclose(closest_ratio(on_gpu, found, table.to(CUDA)).cpu(), ratio)


@pytest.mark.gpu
def test_predictions_with_pulay_stress_are_those_of_the_cpu():
    made, frames = potential("float64"), crystals(closest=1.5)
    with torch.no_grad():
        made.pulay.share.copy_(torch.tensor([0.01, -0.03]))
    one, other = (predict(made.to(device), frames, spread=True) for device in (CPU, CUDA))
    assert made.pulay.by_element(made.elements, made.scale) == pytest.approx({"Al": 0.068, "Cu": -0.204})
    for name in ("energies", "stresses", "pulay", "labelled_stresses", "energy_spreads"):
        assert np.allclose(getattr(other, name), getattr(one, name), rtol=1e-9, atol=1e-12), name
        assert np.abs(getattr(one, name)).max() > 1e-6, name
    for name in ("forces", "force_spreads"):
        assert np.allclose(np.concatenate(getattr(other, name)), np.concatenate(getattr(one, name)), rtol=1e-9), name


@pytest.mark.gpu
def test_directions_are_those_of_the_cpu():
    generator = torch.Generator().manual_seed(1)
    histories = [History(300, 4, 6, device) for device in (CPU, CUDA)]
    for _ in range(7):
        step = torch.randn((300, 6), dtype=torch.float64, generator=generator)
        chosen = torch.nonzero(torch.rand(300, generator=generator) < 0.7)[:, 0]
        for history, device in zip(histories, (CPU, CUDA), strict=True):
            history.add(chosen.to(device), step[chosen].to(device), 3.0 * step[chosen].to(device))
    gradient = torch.randn((300, 6), dtype=torch.float64, generator=generator)
    one, other = (
        history.direction(torch.arange(300, device=device), gradient.to(device), 0.1)
        for history, device in zip(histories, (CPU, CUDA), strict=True)
    )
    assert distance(other, one) < 1e-12


@pytest.mark.gpu
def test_relaxations_end_in_the_minima_of_the_cpu():
    made = potential("float64", hidden=(), members=1)
    frames, settings = crystals(40, closest=2.0), RelaxConfig(max_steps=60)
    one = list(relax(frames, made, settings, pressure_gpa=20.0))
    other = list(relax(frames, made.to(CUDA), settings, pressure_gpa=20.0))
    same = [
        a.status is b.status and abs(a.enthalpy - b.enthalpy) < 1e-3 * len(a.atoms)
        for a, b in zip(one, other, strict=True)
    ]
    assert np.mean(same) > 0.9, same  # rounding may lead one over another ridge
