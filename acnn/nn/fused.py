"""Energies and forces with every gradient written out, compiled; the weights are read once."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from acnn.nn.embedding import MIXED_L_MAX
from acnn.nn.gpu import OnGpu, on_gpu
from acnn.nn.native import Kernel, Shape, Weights, load_kernel, terms, turns
from acnn.nn.repulsion import CLAMP, WALL, ZBL_RATES, ZBL_WEIGHTS

if TYPE_CHECKING:
    from acnn.nn.native import Laid
    from acnn.nn.potential import Potential

_READY: WeakKeyDictionary[Potential, tuple[tuple[int, ...], Fused | OnGpu | None]] = WeakKeyDictionary()


def fused(potential: Potential, closest: float) -> Fused | OnGpu | None:
    """Give the fast form of a potential with its weights as they are now.

    A change is seen where PyTorch counts it: in place, but not through ``.data``.

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
    if not plain(potential):
        return None
    tensors = (*potential.parameters(), *potential.buffers())
    state = tuple(number for tensor in tensors for number in (tensor.data_ptr(), tensor._version))  # noqa: SLF001 - torch has no public name
    known = _READY.get(potential)
    if known is None or known[0] != state:
        known = (state, _compiled(potential, closest))
        _READY[potential] = known
    return known[1]


def plain(potential: Potential) -> bool:
    """Say whether compiled code can do what the potential does.

    Parameters
    ----------
    potential
        The potential.

    Returns
    -------
    bool
        True with one cutoff, at least two factors and no attention.
    """
    config = potential.config
    return config.radial_cutoff == config.angular_cutoff and config.max_factors >= 2 and potential.attention is None


def shape_of(potential: Potential) -> Shape:
    """Give the shape to compile for.

    Parameters
    ----------
    potential
        The potential.

    Returns
    -------
    Shape
        Of all its parts.
    """
    config = potential.config
    return Shape(
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


def constants(closest: float) -> dict[str, float | tuple[float, ...]]:
    """Give the numbers that kernels are compiled with.

    Parameters
    ----------
    closest
        Distances are not taken smaller, Å.

    Returns
    -------
    dict
        Numbers by name.
    """
    return {"closest": closest, "wall": WALL, "clamp": CLAMP, "zbl_weights": ZBL_WEIGHTS, "zbl_rates": ZBL_RATES}


def embedding_weights(potential: Potential) -> dict[str, torch.Tensor]:
    """Give what kernels read of the embedding and the repulsion, by the names of `Weights`.

    Parameters
    ----------
    potential
        The potential.

    Returns
    -------
    dict
        Tensors, not yet contiguous.
    """
    config, embedding, repulsion = potential.config, potential.embedding, potential.repulsion
    species, l_max, dtype = embedding.species, config.l_max, potential.dtype
    pairs, values = turns(l_max, dtype)
    triples, products = terms(min(MIXED_L_MAX, l_max), dtype)
    deep = config.max_factors > 2
    return {
        "table": species if len(species) > 1 else torch.ones_like(species),
        "mixing": torch.stack(list(embedding.mixing)),
        "turns": pairs,
        "turn_values": values,
        "deep": torch.stack(list(embedding.deep)) if deep else species.new_zeros(0),
        "terms": triples if deep else triples[:0],
        "term_values": products if deep else products[:0],
        "onset": repulsion.onset,
        "charge": repulsion.charges,
        "length": repulsion.lengths,
    }


def _compiled(potential: Potential, closest: float) -> Fused | OnGpu | None:
    """Compile for the potential's shape and device."""
    shape, numbers = shape_of(potential), constants(closest)
    if potential.device.type == "cuda":
        return on_gpu(potential, shape, numbers)
    kernel = load_kernel(shape, numbers) if potential.device.type == "cpu" else None
    return None if kernel is None else Fused(potential, kernel)


def _by_member(columns: torch.Tensor, members: int) -> torch.Tensor:
    """Bring all linear terms, then all first layers, (..., members * (1 + width)), to (..., members, 1 + width)."""
    linear, rest = torch.split(columns, [members, columns.shape[-1] - members], dim=-1)
    return torch.cat([linear[..., None], rest.reshape(*linear.shape, -1)], dim=-1)


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
        fitting = potential.fitting
        with torch.no_grad():
            none = potential.scale.new_zeros(0)
            first, offset = fitting.folded(potential.whitening)
            biases = [*fitting.biases, none.new_zeros(kernel.shape.members)]
            layers = [part.flatten() for pair in zip(fitting.weights, biases, strict=False) for part in pair]
            weights = Weights(
                **embedding_weights(potential),
                offset=_by_member(offset, kernel.shape.members),
                first=_by_member(first, kernel.shape.members).transpose(1, 2),
                layers=torch.cat([none, *layers]),
            )
            self._weights = Weights(*(getattr(weights, f.name).detach().contiguous() for f in fields(Weights)))

    def __call__(
        self, laid: Laid, species: torch.Tensor, *, apart: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the members' energies, and forces and virials of their mean or of each.

        Parameters
        ----------
        laid
            Structures with their neighbours.
        species
            Position of each atom's element in the potential's list, shape (n_atoms,).
        apart
            Forces and virials of each member.

        Returns
        -------
        tuple[torch.Tensor, torch.Tensor, torch.Tensor]
            Energies of each atom, shape (n_atoms, n_members), eV; forces, shape (n, n_atoms, 3), eV/Å; derivative by
            strain, shape (n, n_systems, 3, 3), eV; n is the number of members, or 1 for their mean.
        """
        return self._kernel.evaluate(self._weights, laid, species, self._numbers, apart=apart)
