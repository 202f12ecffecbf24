"""Energies and forces with every gradient written out, compiled; the weights are read once."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from acnn.nn.gpu import OnGpu, on_gpu
from acnn.nn.native import Kernel, Shape, Weights, load_kernel
from acnn.nn.repulsion import CLAMP, WALL, ZBL_RATES, ZBL_WEIGHTS

if TYPE_CHECKING:
    from acnn.batch import Batch
    from acnn.neighbors import Neighbors
    from acnn.nn.potential import Potential

NEGLIGIBLE = 1e-9
"""Coefficients of harmonics below this are rounding."""

_READY: WeakKeyDictionary[Potential, tuple[tuple[int, ...], Fused | OnGpu | None]] = WeakKeyDictionary()


def fused(potential: Potential, closest: float) -> Fused | OnGpu | None:
    """Give the fast form of a potential with its weights as they are now.

    Parameters
    ----------
    potential
        The potential.
    closest
        Distances are not taken smaller, Å.

    Returns
    -------
    Fused | OnGpu | None
        None where PyTorch has to do the work: with attention, with two cutoffs or without a compiler.
    """
    config = potential.config
    simple = config.radial_cutoff == config.angular_cutoff and potential.attention is None and config.max_factors >= 2
    if not simple:
        return None
    tensors = (*potential.parameters(), *potential.buffers())
    state = tuple(number for tensor in tensors for number in (tensor.data_ptr(), tensor._version))  # noqa: SLF001 - torch has no public name
    known = _READY.get(potential)
    if known is None or known[0] != state:
        known = (state, _compiled(potential, closest))
        _READY[potential] = known
    return known[1]


def _compiled(potential: Potential, closest: float) -> Fused | OnGpu | None:
    """Compile for the potential's shape and device."""
    config = potential.config
    shape = Shape(
        dtype=potential.dtype,
        n_radial=config.n_radial,
        n_species=potential.embedding.species.shape[1],
        l_max=config.l_max,
        channels=config.channels,
        mixed=config.mixed_channels,
        factors=config.max_factors,
        members=config.members,
        hidden=config.hidden,
    )
    constants: dict[str, float | tuple[float, ...]] = {
        "closest": closest,
        "wall": WALL,
        "clamp": CLAMP,
        "zbl_weights": ZBL_WEIGHTS,
        "zbl_rates": ZBL_RATES,
    }
    if potential.device.type == "cuda":
        return on_gpu(potential, shape, constants)
    kernel = load_kernel(shape, constants) if potential.device.type == "cpu" else None
    return None if kernel is None else Fused(potential, kernel)


class Fused:
    """A potential's weights as the kernel wants them.

    Parameters
    ----------
    potential
        The potential; later changes of its weights are not seen.
    kernel
        Its kernel.
    """

    def __init__(self, potential: Potential, kernel: Kernel) -> None:
        self._kernel = kernel
        self._numbers = (potential.cutoff, float(potential.scale))
        embedding, fitting, repulsion = potential.embedding, potential.fitting, potential.repulsion
        with torch.no_grad():
            species = embedding.species.detach()
            turns, turn_values = _turns([embedding.get_buffer(f"harmonic_{k}") for k in range(kernel.shape.l_max + 1)])
            none = species.new_zeros(0)
            deep, terms, term_values = none, torch.zeros((0, 3), dtype=torch.int32), none
            if kernel.shape.factors > 2:
                deep = torch.stack(list(embedding.deep))
                product, pair = torch.nonzero(embedding.coupling, as_tuple=True)
                terms = torch.stack([embedding.first[pair], embedding.second[pair], product], dim=1).to(torch.int32)
                term_values = embedding.coupling[product, pair]
            first, offset = fitting.folded(potential.whitening)
            biases = [*fitting.biases, species.new_zeros(kernel.shape.members)]
            layers = [part.flatten() for pair in zip(fitting.weights, biases, strict=False) for part in pair]
            weights = Weights(
                table=species if len(species) > 1 else torch.ones_like(species),
                mixing=torch.stack(list(embedding.mixing)),
                turns=turns,
                turn_values=turn_values,
                deep=deep,
                terms=terms,
                term_values=term_values,
                offset=offset,
                first=first,
                layers=torch.cat([none, *layers]),
                onset=repulsion.onset,
                charge=repulsion.charges,
                length=repulsion.lengths,
            )
            self._weights = Weights(*(getattr(weights, f.name).detach().contiguous() for f in fields(Weights)))

    def __call__(
        self, batch: Batch, neighbors: Neighbors, species: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the members' energies, and forces and virials of their mean.

        Parameters
        ----------
        batch
            Structures.
        neighbors
            Their neighbours.
        species
            Position of each atom's element in the potential's list, shape (n_atoms,).

        Returns
        -------
        tuple[torch.Tensor, torch.Tensor, torch.Tensor]
            Energies of each atom, shape (n_atoms, n_members), eV; forces, shape (n_atoms, 3), eV/Å; derivative by
            strain, shape (n_systems, 3, 3), eV.
        """
        return self._kernel.evaluate(self._weights, batch, neighbors, species, self._numbers)


def _turns(tables: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """List what turns monomials into harmonics: pairs of harmonic and monomial, shape (n, 2), and coefficients."""
    table: torch.Tensor = torch.block_diag(*tables)  # type: ignore[no-untyped-call]  # torch leaves it so
    monomial, harmonic = torch.nonzero(table.T.abs() > NEGLIGIBLE, as_tuple=True)
    return torch.stack([harmonic, monomial], dim=1).to(torch.int32), table[harmonic, monomial]
