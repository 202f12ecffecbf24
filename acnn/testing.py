"""The contract that every potential keeps, as one call: `assert_potential_contract`."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii

from acnn import checkpoint
from acnn.batch import Batch
from acnn.neighbors import Neighbors, build_neighbors

if TYPE_CHECKING:
    from acnn.nn.potential import Output, Potential

STEP = 1e-4  # Å or strain; of central differences


class _Tolerance:
    """What equality means for a dtype: all relative to the largest force."""

    def __init__(self, dtype: torch.dtype) -> None:
        exact = dtype == torch.float64
        self.same = 1e-9 if exact else 2e-4  # two ways of computing one number: rounding only
        self.derivative = 1e-6 if exact else 3e-2  # central differences: rounding of the energy over the step
        self.rounding = 32 * torch.finfo(dtype).eps  # of a sum of many terms, relative to the number itself
        self.step = STEP if exact else 2e-2


def assert_potential_contract(potential: Potential, *, seed: int = 0) -> None:
    """Check everything that a search relies on.

    Forces and stress are the derivatives of the energy; the energy does not change under translation, rotation,
    permutation, another image of an atom, another cell of the same lattice, or a supercell; energy and forces are
    continuous when an atom passes the cutoff; colliding atoms are pushed apart; a lone atom feels nothing, and its
    energy does not depend on the cell; a batch gives what its structures give alone; one-atom, tiny and skewed cells
    agree with a brute-force sum; inputs are not touched; the same input gives the same bits, and the
    same numbers to a caller in inference mode; a saved and loaded potential gives the same numbers.

    Parameters
    ----------
    potential
        Any potential of this package, on any device.
    seed
        Of the random test structures; it is part of every message.

    Raises
    ------
    AssertionError
        Naming the broken promise, the seed and the numbers.
    """
    _Contract(potential, seed).check()


class _Contract:
    """The test structures and the comparisons."""

    def __init__(self, potential: Potential, seed: int) -> None:
        self.potential, self.seed = potential, seed
        self.rng = np.random.default_rng(seed)
        self.tolerance = _Tolerance(potential.dtype)
        self.atoms = random_crystal(potential.elements, 5, self.rng)
        self.reference = self.compute(self.atoms)
        self.unit = max(1.0, float(self.reference.forces.abs().max()))

    def check(self) -> None:
        """Run all checks."""
        self.derivatives()
        self.symmetries()
        self.cells()
        self.continuity()
        self.collisions()
        self.batching()
        self.persistence()

    def compute(self, *frames: Atoms) -> Output:
        """Evaluate in double precision coordinates."""
        return self.potential.compute(Batch.from_atoms(list(frames), torch.float64, self.potential.device))

    def close(self, what: str, one: torch.Tensor, two: torch.Tensor, tolerance: float) -> None:
        """Compare two results."""
        gap = float((one.double().cpu() - two.double().cpu()).abs().max())
        allowed = tolerance * self.unit + self.tolerance.rounding * float(two.abs().max())
        if not gap <= allowed:
            message = f"{what}: differ by {gap:.3g}, allowed {allowed:.3g} (seed {self.seed})"
            raise AssertionError(message)

    def same(self, what: str, one: Output, two: Output) -> None:
        """Compare energy, forces and stress of two outputs."""
        for name in ("energy", "forces", "stress", "atomic_energy", "energy_spread"):
            self.close(f"{what}, {name}", getattr(one, name), getattr(two, name), self.tolerance.same)

    def derivatives(self) -> None:
        """Compare forces and stress with central differences of the energy."""
        h = self.tolerance.step
        for atom, axis in ((0, 0), (1, 2), (len(self.atoms) - 1, 1)):
            shift = np.zeros((len(self.atoms), 3))
            shift[atom, axis] = h
            slope = self._slope(lambda s, shift=shift: _moved(self.atoms, s * shift), h)
            self.close("forces are not -dE/dx", -self.reference.forces[atom, axis], slope, self.tolerance.derivative)
        volume = self.atoms.cell.volume
        for i, j in ((0, 0), (1, 2), (0, 1)):
            strain = np.zeros((3, 3))
            strain[i, j] += 0.5 * h
            strain[j, i] += 0.5 * h
            slope = self._slope(lambda s, strain=strain: _strained(self.atoms, s * strain), h)
            stress = self.reference.stress[0, i, j] * volume
            self.close("stress is not dE/d(strain)/V", stress, slope, 10 * self.tolerance.derivative)

    def _slope(self, change: object, h: float) -> torch.Tensor:
        """Differentiate the energy, fourth order."""
        energies = [self.compute(change(s)).energy[0] for s in (-2, -1, 1, 2)]  # type: ignore[operator]
        first, second, third, fourth = energies
        return (first - 8 * second + 8 * third - fourth) / (12 * h)

    def symmetries(self) -> None:
        """Move, turn, reorder and wrap."""
        atoms, reference = self.atoms, self.reference
        self.same("translation", self.compute(_moved(atoms, np.array([0.37, -1.1, 2.3]))), reference)
        turn = np.linalg.qr(self.rng.normal(size=(3, 3)))[0]
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ turn.T, scale_atoms=False)
        turned.positions = atoms.positions @ turn.T
        output = self.compute(turned)
        r = torch.as_tensor(turn, device=output.forces.device)
        self.close("rotation, energy", output.energy, reference.energy, self.tolerance.same)
        self.close("rotation, forces", output.forces @ r, reference.forces, self.tolerance.same)
        self.close("rotation, stress", r.T @ output.stress[0] @ r, reference.stress[0], self.tolerance.same)
        order = self.rng.permutation(len(atoms))
        output = self.compute(atoms[order])
        self.close("permutation, energy", output.energy, reference.energy, self.tolerance.same)
        self.close("permutation, forces", output.forces, reference.forces[order], self.tolerance.same)
        images = self.rng.integers(-2, 3, size=(len(atoms), 3))
        self.same("lattice images of atoms", self.compute(_moved(atoms, images @ atoms.cell.array)), reference)

    def cells(self) -> None:
        """Choose other cells of the same crystal, and compare hard cells with brute force."""
        atoms = self.atoms
        double = atoms.repeat((2, 1, 1))
        self.close("supercell, energy", self.compute(double).energy, 2 * self.reference.energy, self.tolerance.same)
        skewed = atoms.copy()
        skewed.set_cell(np.array([[1, 0, 0], [3, 1, 0], [-2, 4, 1]]) @ atoms.cell.array, scale_atoms=False)
        self.same("another basis of the lattice", self.compute(skewed), self.reference)
        symbol = self.potential.elements[0]
        length = 2.2 * covalent_radii[atoms.numbers[0]]
        single = Atoms(symbol, cell=length * np.eye(3), pbc=True)
        tiny = Atoms(symbol, cell=length * np.array([[1, 0, 0], [0.4, 0.9, 0], [0.3, -0.2, 1.1]]), pbc=True)
        for name, cell in (("one-atom cell", single), ("tiny cell", tiny), ("skewed cell", skewed)):
            batch = Batch.from_atoms([cell], torch.float64, self.potential.device)
            slow = self.potential.compute(batch, brute_force_neighbors(batch, self.potential.cutoff))
            self.same(f"{name} against brute force", self.compute(cell), slow)
        lone = self.compute(Atoms(symbol, cell=60 * np.eye(3), pbc=True))
        self.close("lone atom, forces", lone.forces, torch.zeros_like(lone.forces), 0.0)
        again = self.compute(Atoms(symbol, cell=90 * np.eye(3), pbc=True))
        self.close("lone atom, energy", lone.energy, again.energy, 0.0)

    def continuity(self) -> None:
        """Pass each cutoff with a third atom: no jump of energy or forces."""
        config = self.potential.config
        cutoffs = {config.radial_cutoff, config.angular_cutoff}
        if config.attention_blocks:
            cutoffs.add(config.attention_cutoff)
        symbol = self.potential.elements[-1]
        near = 2.0 * covalent_radii[self.atoms.numbers[0]]
        for cutoff in cutoffs:
            h = 1e-6 * cutoff
            base = Atoms(
                [symbol] * 3, positions=[[0, 0, 0], [0, near, 0], [cutoff, 0, 0]], cell=60 * np.eye(3), pbc=True
            )
            outputs = []
            for side in (-1, 1):
                moved = base.copy()
                moved.positions[2, 0] += side * h
                outputs.append(self.compute(moved))
            allowed = max(1e-5, self.tolerance.same)  # what is smooth changes by about h; a jump would stay
            self.close("energy at the cutoff", outputs[0].energy, outputs[1].energy, allowed)
            self.close("forces at the cutoff", outputs[0].forces, outputs[1].forces, allowed)

    def collisions(self) -> None:
        """Let each pair of elements collide: both atoms are pushed back."""
        onset = self.potential.repulsion.onset.double().cpu().numpy()
        for i, j in combinations_with_replacement(range(len(self.potential.elements)), 2):
            symbols = [self.potential.elements[i], self.potential.elements[j]]
            distances = [fraction * onset[i, j] for fraction in (0.2, 0.5, 0.75)]
            pairs = [Atoms(symbols, [[0, 0, 0], [d, 0, 0]], cell=60 * np.eye(3), pbc=True) for d in distances]
            forces = self.compute(*pairs).forces[:, 0].cpu().view(-1, 2)
            if not bool((forces[:, 0] < 0).all() & (forces[:, 1] > 0).all()):
                message = f"{'-'.join(symbols)}: not pushed apart at {distances} Å, forces {forces.tolist()}"
                raise AssertionError(f"{message} (seed {self.seed})")

    def batching(self) -> None:
        """Put structures of several sizes side by side; leave inputs alone; repeat to the bit."""
        frames = [random_crystal(self.potential.elements, n, self.rng) for n in (1, 7, 3)]
        batch = Batch.from_atoms(frames, torch.float64, self.potential.device)
        before = [batch.numbers.clone(), batch.positions.clone(), batch.cells.clone(), batch.system.clone()]
        together = self.potential.compute(batch)
        after = [batch.numbers, batch.positions, batch.cells, batch.system]
        if not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            raise AssertionError("the input was changed")
        alone = [self.compute(atoms) for atoms in frames]
        for name in ("energy", "forces", "stress", "atomic_energy", "energy_spread"):
            single = torch.cat([getattr(output, name) for output in alone])
            self.close(f"batch and singles, {name}", getattr(together, name), single, self.tolerance.same)
        again = self.potential.compute(batch)
        if not (torch.equal(together.energy, again.energy) and torch.equal(together.forces, again.forces)):
            if not batch.positions.is_cuda:
                raise AssertionError("the same input does not give the same bits")
            self.same("repetition", together, again)
        with torch.inference_mode():
            self.same("for a caller without gradients", self.compute(*frames), together)
        self._force_spread(batch, frames, together)

    def _force_spread(self, batch: Batch, frames: list[Atoms], plain: Output) -> None:
        """Ask for the spread of the forces: nothing else changes, and it is that of each structure alone."""
        asked = self.potential.compute(batch, spread=True)
        self.same("with the spread of the forces", asked, plain)
        if asked.force_spread is None or asked.force_spread.shape != (batch.n_atoms,):
            raise AssertionError("the spread of the forces was asked for and not given")
        singles = [Batch.from_atoms([atoms], torch.float64, self.potential.device) for atoms in frames]
        found = [self.potential.compute(single, spread=True).force_spread for single in singles]
        alone = [spread for spread in found if spread is not None]
        self.close("batch and singles, spread of the forces", asked.force_spread, torch.cat(alone), self.tolerance.same)
        if self.potential.n_members == 1 and bool(asked.force_spread.any() | asked.energy_spread.any()):
            raise AssertionError("one member has no spread")

    def persistence(self) -> None:
        """Write and read."""
        data = checkpoint.dumps(self.potential)
        loaded = checkpoint.loads(data).to(self.potential.device)
        batch = Batch.from_atoms([self.atoms], torch.float64, self.potential.device)
        self.same("saved and loaded", loaded.compute(batch), self.reference)
        with torch.inference_mode():
            without = checkpoint.loads(data)
        found = without.to(self.potential.device).compute(batch)
        self.same("loaded by a caller without gradients", found, self.reference)
        if checkpoint.dumps(loaded) != data:
            raise AssertionError("a saved, loaded and saved potential has other bytes")


def _moved(atoms: Atoms, shift: np.ndarray) -> Atoms:
    """Displace atoms."""
    copy: Atoms = atoms.copy()
    copy.positions += shift
    return copy


def _strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    """Strain a crystal."""
    copy: Atoms = atoms.copy()
    copy.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return copy


def random_crystal(elements: tuple[str, ...], n_atoms: int, rng: np.random.Generator) -> Atoms:
    """Make a random crystal without close pairs.

    Parameters
    ----------
    elements
        Symbols to draw from.
    n_atoms
        Atoms in the cell.
    rng
        Source of randomness.

    Returns
    -------
    Atoms
        Periodic, of ordinary density.
    """
    numbers = [chemical_symbols.index(symbol) for symbol in rng.choice(list(elements), n_atoms)]
    radius = float(np.mean([covalent_radii[z] for z in numbers]))
    length = (n_atoms * 6.0) ** (1 / 3) * radius * 1.25
    allowed = 1.6 * radius
    while True:
        cell = length * (np.eye(3) + rng.uniform(-0.25, 0.25, size=(3, 3)))
        atoms = Atoms(numbers, scaled_positions=rng.random((n_atoms, 3)), cell=cell, pbc=True)
        batch = Batch.from_atoms([atoms], torch.float64)
        neighbors = build_neighbors(batch, allowed)
        if not bool(neighbors.mask.any()):
            return atoms
        allowed *= 0.99


def brute_force_neighbors(batch: Batch, cutoff: float) -> Neighbors:
    """Find the neighbours of a small batch by looking at every image in a large block.

    Parameters
    ----------
    batch
        One structure.
    cutoff
        Reach, Å.

    Returns
    -------
    Neighbors
        As from `acnn.neighbors.build_neighbors`, in another order.
    """
    cell = batch.cells[0]
    inverse = torch.linalg.inv(cell)
    fractional = batch.positions @ inverse
    span = fractional.amax(0) - fractional.amin(0)
    reach = (cutoff * inverse.norm(dim=0) + span).ceil().long() + 1
    grid = torch.cartesian_prod(*[torch.arange(-int(n), int(n) + 1, device=cell.device) for n in reach]).to(cell.dtype)
    n = batch.n_atoms
    index = torch.arange(n, device=cell.device)[None, :, None].expand(n, n, len(grid)).reshape(n, -1)
    shift = grid[None, None].expand(n, n, -1, 3).reshape(n, -1, 3)
    vectors = batch.positions[index] + shift @ cell - batch.positions[:, None]
    distances = vectors.norm(dim=-1)
    own = index == torch.arange(n, device=cell.device)[:, None]
    mask = (distances < cutoff) & ~(own & (shift.abs().sum(-1) == 0))
    width = max(1, int(mask.sum(1).max()))
    order = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
    return Neighbors(index.gather(1, order), shift.gather(1, order[..., None].expand(-1, -1, 3)), mask.gather(1, order))
