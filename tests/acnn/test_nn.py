"""Parts of the network: smooth cutoffs, harmonics, couplings, repulsion."""

import numpy as np
import pytest
import torch
from ase import Atoms

from acnn.batch import Batch
from acnn.config import ModelConfig
from acnn.errors import ModelError
from acnn.nn.fitting import whitening_of
from acnn.nn.graph import compact, system_pieces
from acnn.nn.harmonics import coupling, harmonic_matrix, harmonic_table, monomial_counts, monomial_powers, monomials
from acnn.nn.potential import Potential
from acnn.nn.radial import RadialBasis, smooth_cutoff
from acnn.nn.repulsion import CLAMP, Repulsion

CLOSE = 1e-12


def derivatives(function, x: float, order: int) -> list[float]:
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    values = [function(point)]
    for _ in range(order):
        values.append(torch.autograd.grad(values[-1].sum(), point, create_graph=True)[0])
    return [float(value.detach().sum()) for value in values]


def test_cutoff_ends_with_two_vanishing_derivatives():
    assert derivatives(smooth_cutoff, 0.0, 1) == [1.0, 0.0]
    for x in (1.0 - 1e-6, 1.0, 1.5):
        value, slope, curvature = derivatives(smooth_cutoff, x, 2)
        assert abs(value) < 1e-15
        assert abs(slope) < 1e-9
        assert abs(curvature) < 1e-4


def test_radial_functions_are_independent_and_vanish():
    basis = RadialBasis(8, 5.0)
    r = torch.linspace(0.5, 5.0, 200, dtype=torch.float64)
    values = basis(r[None])[0]
    assert values.shape == (8, 200)
    assert not values[:, -1].any()
    assert torch.linalg.matrix_rank(values) == 8


def directions(n: int) -> torch.Tensor:
    u = torch.randn(3, 1, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return u / u.norm(dim=0)


def test_monomials_match_their_powers():
    u = directions(20)
    powers = [p for degree in range(5) for p in monomial_powers(degree)]
    expected = torch.stack([u[0] ** a * u[1] ** b * u[2] ** c for a, b, c in powers], 1)
    torch.testing.assert_close(monomials(u, 4), expected, rtol=0, atol=CLOSE)
    assert monomial_counts(4) == [1, 3, 6, 10, 15]


@pytest.mark.parametrize("degree", range(5))
def test_harmonics_obey_the_addition_theorem(degree):
    u = directions(2)
    part = torch.split(monomials(u, 4)[0], monomial_counts(4))[degree]
    y = harmonic_table(4)[degree] @ part
    cosine = float((u[:, 0, 0] * u[:, 0, 1]).sum())
    legendre = np.polynomial.legendre.legval(cosine, [0] * degree + [1])
    assert abs(float(y[:, 0] @ y[:, 1]) - legendre) < CLOSE
    assert harmonic_matrix(degree).shape[0] == 2 * degree + 1


def test_coupling_is_the_product_of_harmonics():
    first, second, matrix = coupling(3)
    u = directions(4)
    parts = torch.split(monomials(u, 3)[0], monomial_counts(3))
    y = torch.cat([torch.tensor(harmonic_matrix(degree)) @ part for degree, part in enumerate(parts)])
    weights = torch.tensor([0.3, -1.0, 0.7, 0.4], dtype=torch.float64)
    density = y @ weights
    # a delta function of height w at a point has the coefficients w y(point); its square projects on l = 0 as the sum
    square = (density[first] * density[second]) @ matrix
    norm = float(density @ density)
    assert abs(float(square[0]) - norm) < CLOSE * max(1.0, norm)


def test_repulsion_is_smooth_and_steep():
    repulsion = Repulsion([1, 20], 5.0).double()
    repulsion.onset.fill_(1.5)
    species = torch.zeros((1, 1), dtype=torch.int64)

    def energy(r: torch.Tensor) -> torch.Tensor:
        return repulsion(r.view(1, 1), species, species)

    def seen(r: torch.Tensor) -> torch.Tensor:
        return repulsion.soften(r.view(1, 1), repulsion.onset[species, species])

    assert derivatives(energy, 1.5, 2) == [0.0, 0.0, 0.0]
    assert abs(derivatives(energy, 1.5 - 1e-5, 2)[2]) < 0.1
    slopes = [derivatives(energy, r, 1)[1] for r in np.linspace(0.05, 1.4, 40)]
    assert all(slope < 0 for slope in slopes)
    assert slopes[-12] < -20.0
    value, slope, curvature = derivatives(seen, 1.5 - 1e-7, 2)
    assert abs(value - 1.5) < 1e-6
    assert abs(slope - 1) < 1e-5
    assert abs(curvature) < 1e-3
    assert abs(derivatives(seen, (2 * CLAMP - 1) * 1.5 + 1e-3, 1)[0] - CLAMP * 1.5) < 1e-4
    assert derivatives(seen, 0.2, 1) == [CLAMP * 1.5, 0.0]


@pytest.mark.parametrize("distance", [0.1, 0.4, 0.8, 1.2])
def test_colliding_atoms_are_pushed_apart_whatever_the_network_says(distance):
    for seed in range(5):
        potential = Potential(ModelConfig(members=1, dtype="float64"), ["Ca"], seed)
        potential.scale.fill_(10.0)
        atoms = Atoms("Ca2", positions=[[0, 0, 0], [distance, 0, 0]], cell=30 * np.eye(3), pbc=True)
        forces = potential.compute(Batch.from_atoms([atoms], torch.float64)).forces
        assert float(forces[1, 0]) > 0 > float(forces[0, 0])


def test_the_repulsion_ends_within_a_short_cutoff():
    config = ModelConfig(radial_cutoff=3.5, angular_cutoff=3.0, members=1, dtype="float64")
    potential = Potential(config, ["Cs"])

    def energy(distance: float) -> float:
        atoms = Atoms("Cs2", positions=[[0, 0, 0], [distance, 0, 0]], cell=30 * np.eye(3), pbc=True)
        return float(potential.compute(Batch.from_atoms([atoms], torch.float64)).energy)

    assert energy(2.0) > energy(3.0) + 1.0
    assert abs(energy(3.5 - 1e-4) - energy(3.5 + 1e-4)) < 1e-6


def test_atoms_on_top_of_each_other_give_finite_numbers():
    atoms = Atoms("Ca2", positions=np.zeros((2, 3)), cell=6 * np.eye(3), pbc=True)
    output = Potential(ModelConfig(), ["Ca"]).compute(Batch.from_atoms([atoms], torch.float64))
    assert bool(torch.isfinite(output.energy).all() & torch.isfinite(output.forces).all())


def test_whitening_whitens_and_survives_equal_environments():
    x = torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x @ torch.diag(torch.tensor([10.0, 1.0, 0.1, 0.05], dtype=torch.float64)) + 3.0
    mean, matrix = whitening_of(x, x)
    white = (x - mean) @ matrix
    assert 0.5 < float(white.std(0).min()) <= float(white.std(0).max()) < 1.1
    mean, matrix = whitening_of(x[:1].repeat(3, 1), x[:1].repeat(3, 1))
    assert bool(torch.isfinite(matrix).all())


def test_a_few_extreme_environments_do_not_damp_the_rest():
    x = torch.randn(3000, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[:3, 0] += 1e5
    mean, matrix = whitening_of(x, x)
    white = (x[3:] - mean) @ matrix
    assert float(white.std(0).sort().values[1]) > 0.5  # but for the direction of the extreme ones


def test_what_does_not_vary_is_not_blown_up():
    x = torch.randn(3000, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[:, 5:] = x[:, :1] + 1e-9 * x[:, 5:]
    mean, matrix = whitening_of(x, x)
    assert float(((x - mean) @ matrix).std(0).sort().values[:-5].max()) < 1e-3


def test_compact_keeps_the_near_ones():
    vectors = torch.full((3, 10, 3), 9.0)
    vectors[0, [1, 4]] = 1.0
    index = torch.arange(10).repeat(3, 1)
    near, kept = compact(vectors, index, 5.0)
    assert near.shape == (3, 2, 3)
    assert kept[0].tolist() == [1, 4]


def test_pieces_hold_whole_structures():
    assert system_pieces([5, 5, 20, 1], 10) == [(0, 2), (2, 3), (3, 4)]
    assert system_pieces([], 10) == []


def test_elements_are_checked():
    with pytest.raises(ModelError, match="'Xx' is not a chemical symbol"):
        Potential(ModelConfig(), ["Xx"])
    with pytest.raises(ModelError, match="each once"):
        Potential(ModelConfig(), ["Mg", "Mg"])
    batch = Batch.from_atoms([Atoms("Ag", cell=3 * np.eye(3), pbc=True)], torch.float64)
    with pytest.raises(ModelError, match=r"knows Mg; the structures also hold atomic numbers \[47\]"):
        Potential(ModelConfig(), ["Mg"]).compute(batch)
