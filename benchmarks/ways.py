"""Time three ways to one call of energy, forces and stress of the same potential, on the same crystals.

    OMP_NUM_THREADS=1 python benchmarks/ways.py [--device cuda] [--out FILE]

``ours`` is C++ (CUDA on a GPU) with the gradient derived by hand; ``recorded`` is PyTorch, operation by operation, with
the gradient by autograd; ``compiled`` is the same through ``torch.compile``, which generates C++ (Triton on a GPU) for
both directions, but leaves the loop over elements in the network's first layer to PyTorch. Random Al-Cu crystals of 8
to 16 atoms with about 30 neighbours, none closer than 2 Å, the default shape of the potential, single precision;
neighbours are found before. All give the same energies, forces and stresses, which is asserted; compiling is timed
apart.

``committee`` compares the default committee of four, its spread of energies included, with one member alone, by our own
kernels: without and with the neighbour search; and where the spread of the forces is wanted too, for which each member
is pulled back by itself (on a GPU by PyTorch). The four are copies of the one, so that all energies, forces and
stresses must agree, which is asserted, as is that their spreads vanish.

``gradient`` is what a step of training needs of such a potential and a minibatch of about 256 atoms, on a CPU: energies
of the members, forces and virials, and the derivatives of a number made of all of them by all weights. The embedding's
part is our own code or PyTorch's, whose results must agree. Single precision gives the times, double the comparison.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from force_calls import CUTOFF
from relax import machine, random_crystals

from acnn.batch import Batch
from acnn.config import ModelConfig
from acnn.neighbors import build_neighbors
from acnn.nn import potential as potential_module
from acnn.nn.graph import Graph, pad_vectors
from acnn.nn.potential import Output, Potential

if TYPE_CHECKING:
    from collections.abc import Callable

STRUCTURES = {"cpu": 40, "cuda": 10_000}
MINIBATCH = 21  # structures
REPEATS = 9
ROUNDING = 1e-5  # of the largest
EXACT = 1e-9  # likewise, in double precision


def make_potential(device: str) -> Potential:
    """Make one with random weights."""
    potential = Potential(ModelConfig(), ["Al", "Cu"], seed=1)
    with torch.no_grad():
        potential.fitting.linear.normal_(generator=torch.Generator().manual_seed(0))
    return potential.to(device)


def seconds(call: Callable[[], object], device: str) -> float:
    """Give the time of a call: of the CPU, or until the GPU has done it."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def measure(device: str) -> dict[str, Any]:
    """Time the ways in turn."""
    potential, same = make_potential(device), make_potential(device)
    same.forward = torch.compile(same.forward, dynamic=True)  # type: ignore[method-assign]
    batch = Batch.from_atoms(random_crystals(0, STRUCTURES[device], (8, 16)), potential.dtype, device)
    neighbors = build_neighbors(batch, CUTOFF)

    def recorded(which: Potential) -> Output:
        kept, potential_module.fused = potential_module.fused, lambda *_: None
        try:
            return which.compute(batch, neighbors)
        finally:
            potential_module.fused = kept

    ways = {
        "ours": lambda: potential.compute(batch, neighbors),
        "recorded": lambda: recorded(potential),
        "compiled": lambda: recorded(same),
    }
    first = {name: seconds(way, device) for name, way in ways.items()}
    expected = ways["ours"]()
    for name, way in ways.items():
        found = way()
        for quantity in ("energy", "forces", "stress"):
            one, other = getattr(found, quantity), getattr(expected, quantity)
            gap = float((one - other).abs().max() / other.abs().max())
            assert gap < ROUNDING, f"{name}: {quantity} differ by {gap} of the largest"
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            times[name].append(seconds(way, device))
    per_atom = {name: 1e6 * float(np.median(found)) / batch.n_atoms for name, found in times.items()}
    return {
        "device": device,
        "atoms": batch.n_atoms,
        "neighbors_per_atom": float(neighbors.mask.sum() / batch.n_atoms),
        "us_per_atom": per_atom,
        "times_ours": {name: value / per_atom["ours"] for name, value in per_atom.items()},
        "first_call_s": first,
    }


def copies(one: Potential, members: int) -> Potential:
    """Make a committee of copies of one member."""
    many = Potential(one.config.model_copy(update={"members": members}), one.elements, seed=1)
    state = one.state_dict()
    wanted = many.state_dict()
    for name, tensor in state.items():
        shape = wanted[name].shape  # what differs is the dimension of the members, alone or before a layer's width
        state[name] = tensor.repeat([large // small for large, small in zip(shape, tensor.shape, strict=True)])
    many.load_state_dict(state)
    return many


def committee(device: str) -> dict[str, Any]:
    """Time a committee against one member."""
    one = Potential(ModelConfig(members=1), ["Al", "Cu"], seed=1).to(device)
    with torch.no_grad():
        one.fitting.linear.normal_(generator=torch.Generator().manual_seed(0))
    potentials = {"one": one, "four": copies(one, ModelConfig().members).to(device)}
    batch = Batch.from_atoms(random_crystals(0, STRUCTURES[device], (8, 16)), one.dtype, device)
    neighbors = build_neighbors(batch, CUTOFF)
    found = {name: potential.compute(batch, neighbors) for name, potential in potentials.items()}
    for quantity in ("energy", "forces", "stress"):
        mine, other = getattr(found["four"], quantity), getattr(found["one"], quantity)
        gap = float((mine - other).abs().max() / other.abs().max())
        assert gap < ROUNDING, f"committee: {quantity} differ by {gap} of the largest"
    assert float(found["four"].energy_spread.abs().max()) < ROUNDING * float(found["one"].energy.abs().max())
    apart = potentials["four"].compute(batch, neighbors, spread=True).force_spread
    assert apart is not None
    assert float(apart.max()) < ROUNDING * float(found["one"].forces.abs().max())
    report: dict[str, Any] = {}
    for case, given, spread in (
        ("neighbors_given", neighbors, False),
        ("neighbors_searched", None, False),
        ("neighbors_given_and_spread_of_forces", neighbors, True),
    ):
        calls = {
            "one": partial(potentials["one"].compute, batch, given),
            "four": partial(potentials["four"].compute, batch, given, spread=spread),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(4 * REPEATS):
            for name, call in calls.items():
                times[name].append(seconds(call, device))
        per_atom = {name: 1e6 * float(np.median(values)) / batch.n_atoms for name, values in times.items()}
        report[case] = {"us_per_atom": per_atom, "four_over_one": per_atom["four"] / per_atom["one"]}
    return report


def minibatch(dtype: str) -> tuple[Potential, Graph]:
    """Make a potential and what a step of training shows it."""
    potential = Potential(ModelConfig(dtype=dtype), ["Al", "Cu"], seed=1)
    batch = Batch.from_atoms(random_crystals(0, MINIBATCH, (8, 16)), torch.float64)
    neighbors = build_neighbors(batch, potential.cutoff)
    vectors = pad_vectors(neighbors.vectors(batch), neighbors.mask, potential.cutoff).to(potential.dtype)
    species = potential.species_of(batch.numbers)
    return potential, Graph(vectors, neighbors.index, species, batch.system, batch.n_systems)


def by_weights(potential: Potential, graph: Graph) -> list[torch.Tensor]:
    """Derive a number made of energies, forces and virials by all weights; the number comes first."""
    mixture = torch.full((graph.n_systems, potential.n_members), 1 / potential.n_members, dtype=potential.dtype)
    loss = torch.zeros((), dtype=potential.dtype)
    for found in potential.respond(graph, mixture, create_graph=True):
        loss = loss + found.square().mean()
    # the labels' Pulay stress is no part of what the potential says
    weights = [p for name, p in potential.named_parameters() if p.requires_grad and not name.startswith("pulay")]
    return [loss.detach(), *torch.autograd.grad(loss, weights)]


def by_weights_recorded(potential: Potential, graph: Graph) -> list[torch.Tensor]:
    """Do so by PyTorch alone."""
    kept, potential_module.derivatives = potential_module.derivatives, lambda *_: None
    try:
        return by_weights(potential, graph)
    finally:
        potential_module.derivatives = kept


def gradient() -> dict[str, Any]:
    """Time the derivatives that a training needs."""
    exact = minibatch("float64")
    assert potential_module.derivatives(*exact, potential_module.CLOSEST) is not None, "no C compiler here"
    for one, other in zip(by_weights(*exact), by_weights_recorded(*exact), strict=True):
        gap = float((one - other).abs().max() / other.abs().max())
        assert gap < EXACT, f"derivatives by the weights differ by {gap} of the largest"
    given = minibatch("float32")
    ways = {"ours": lambda: by_weights(*given), "recorded": lambda: by_weights_recorded(*given)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(4 * REPEATS):
        for name, way in ways.items():
            times[name].append(seconds(way, "cpu"))
    ms = {name: 1e3 * float(np.median(values)) for name, values in times.items()}
    return {"atoms": given[1].n_atoms, "ms": ms, "recorded_over_ours": ms["recorded"] / ms["ours"]}


def main() -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(STRUCTURES), default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = {"machine": machine(), "committee": committee(args.device), **measure(args.device)}
    if args.device == "cpu":
        report["gradient"] = gradient()
    print(json.dumps(report, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
