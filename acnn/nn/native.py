"""The descriptor and its gradient in C, compiled at first use where a C compiler is found.

Nothing depends on it: without a compiler, or with ``ACNN_NATIVE=0`` in the environment, PyTorch does the same work.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from acnn.batch import Batch
    from acnn.neighbors import Neighbors

logger = logging.getLogger(__name__)

OPTIONS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-shared", "-fPIC", "-std=gnu11")

FUNCTIONS = {torch.float32: ("float", "sqrtf", "expf"), torch.float64: ("double", "sqrt", "exp")}

SOURCES = ("kernel.c", "lanes.h", "network.h", "invariants.h", "neighborhood.h")

TIMEOUT = 120.0
"""Longest time that the compiler may take, s."""


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled for.

    Attributes
    ----------
    dtype
        float32 or float64.
    n_radial
        Radial functions.
    n_species
        Element channels.
    l_max
        Highest degree.
    channels
        Channels of the two-factor invariants.
    mixed
        Channels of the three- and four-factor invariants.
    factors
        Largest number of factors, at least 2.
    members
        Committee members.
    hidden
        Widths of the hidden layers.
    """

    dtype: torch.dtype
    n_radial: int
    n_species: int
    l_max: int
    channels: int
    mixed: int
    factors: int
    members: int
    hidden: tuple[int, ...]

    def defines(self, constants: Mapping[str, float | tuple[float, ...]]) -> list[str]:
        """Give the compiler's options.

        Parameters
        ----------
        constants
            Further numbers by name.

        Returns
        -------
        list[str]
            Definitions.
        """
        values = dict(zip(("REAL", "SQRT", "EXP"), FUNCTIONS[self.dtype], strict=True)) | asdict(self) | dict(constants)
        values |= {"n_hidden": len(self.hidden), "sizes": self.hidden, "widest": max(self.hidden, default=1)}
        del values["dtype"], values["hidden"]
        text = {name: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for name, v in values.items()}
        return [f"-D{name.upper()}={value}" for name, value in text.items()]


@dataclass(frozen=True)
class Weights:
    """The weights of a model as the kernel reads them; contiguous.

    Attributes
    ----------
    table
        Element channels, shape (n_elements, n_species).
    mixing
        Shape (l_max + 1, n_basis, channels).
    turns
        Harmonic and monomial of each non-zero coefficient between them, sorted by the latter, shape (n, 2), int32.
    turn_values
        The coefficients, shape (n,).
    deep
        Shape (min(l_max, 3) + 1, channels, mixed).
    terms
        Factor, factor and product of each non-zero coupling, sorted by the latter, shape (n, 3), int32.
    term_values
        Their coefficients, shape (n,).
    offset
        Of linear terms and first layers, shape (n_elements, members * (1 + width)).
    first
        Linear terms and first layers, shape (n_elements, n_features, members * (1 + width)).
    layers
        Weights, then biases of the later layers, layer after layer, flat.
    onset
        Of the repulsion, shape (n_elements, n_elements), Å.
    charge
        Products of the nuclear charges, shape (n_elements, n_elements), eV Å.
    length
        Screening lengths, shape (n_elements, n_elements), Å.
    """

    table: torch.Tensor
    mixing: torch.Tensor
    turns: torch.Tensor
    turn_values: torch.Tensor
    deep: torch.Tensor
    terms: torch.Tensor
    term_values: torch.Tensor
    offset: torch.Tensor
    first: torch.Tensor
    layers: torch.Tensor
    onset: torch.Tensor
    charge: torch.Tensor
    length: torch.Tensor


class Kernel:
    """The compiled function for one shape of model.

    Parameters
    ----------
    library
        The loaded library.
    shape
        What it was compiled for.
    """

    def __init__(self, library: ctypes.CDLL, shape: Shape) -> None:
        self._library = library
        self.shape = shape
        real = ctypes.c_float if shape.dtype is torch.float32 else ctypes.c_double
        sizes = [(name, ctypes.c_int64) for name in ("n_elements", "n_turns", "n_terms")]
        pointers = [(field.name, ctypes.c_void_p) for field in fields(Weights)]
        numbers = [("cutoff", real), ("scale", real)]
        self._model = type("Model", (ctypes.Structure,), {"_fields_": [*sizes, *pointers, *numbers]})

    def evaluate(
        self, weights: Weights, batch: Batch, neighbors: Neighbors, species: torch.Tensor, numbers: tuple[float, float]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute energies, forces and virials.

        Parameters
        ----------
        weights
            Weights of the kernel's shape.
        batch
            Structures.
        neighbors
            Their neighbours; those beyond the cutoff are not seen.
        species
            Elements, shape (n_atoms,).
        numbers
            The cutoff, Å, and the energy scale, eV.

        Returns
        -------
        tuple[torch.Tensor, torch.Tensor, torch.Tensor]
            Energies of each atom, shape (n_atoms, members), eV; forces, shape (n_atoms, 3), eV/Å; symmetric derivative
            by strain, shape (n_systems, 3, 3), eV.

        Raises
        ------
        MemoryError
            If the memory does not suffice.
        """
        sizes = (len(weights.table), len(weights.turns), len(weights.terms))
        model = self._model(*sizes, *(_pointer(getattr(weights, field.name)) for field in fields(Weights)), *numbers)
        inputs = (
            batch.positions.double().contiguous(),
            batch.cells.double().contiguous(),
            batch.system.contiguous(),
            species,
            neighbors.index.contiguous(),
            neighbors.shift.float().contiguous(),
            neighbors.mask.contiguous(),
        )
        structures = _Structures(neighbors.index.shape[1], *map(_pointer, inputs))
        order = torch.argsort(species, stable=True)
        energies = weights.table.new_empty((batch.n_atoms, self.shape.members))
        forces = weights.table.new_zeros((batch.n_atoms, 3))
        virial = weights.table.new_zeros((batch.n_systems, 3, 3))
        addresses = map(_pointer, (order, energies, forces, virial))
        n_atoms = ctypes.c_int64(batch.n_atoms)
        if self._library.evaluate(ctypes.byref(model), ctypes.byref(structures), n_atoms, *addresses):
            raise MemoryError(f"no memory for {batch.n_atoms} atoms with up to {neighbors.index.shape[1]} neighbours")
        return energies, forces, 0.5 * (virial + virial.mT)


class _Structures(ctypes.Structure):
    """Structures and their neighbours as the kernel reads them."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("width", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("positions", "cells", "system", "species", "index", "shift", "mask")),
    ]


@cache
def load_kernel(shape: Shape, constants: tuple[tuple[str, float | tuple[float, ...]], ...]) -> Kernel | None:
    """Compile and load the kernel for one shape of model, once.

    Parameters
    ----------
    shape
        What it is compiled for.
    constants
        Names and values of further constants.

    Returns
    -------
    Kernel | None
        None where there is no compiler, or it is switched off.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if os.environ.get("ACNN_NATIVE") == "0" or compiler is None or shape.dtype not in FUNCTIONS:
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler, shape.defines(dict(constants)))))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the C kernel could not be built, PyTorch does its work: %s", error)
        return None
    return Kernel(library, shape)


def _compiled(compiler: str, defines: list[str]) -> Path:
    """Find the library in the user's cache, or build it there."""
    sources = {name: resources.files("acnn.nn").joinpath("kernel", name).read_bytes() for name in SOURCES}
    command = [compiler, *OPTIONS, *defines]
    mark = hashlib.sha256(b"\n".join([*sources.values(), *(part.encode() for part in command), _processor()]))
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "acnn"
    path = root / f"kernel-{mark.hexdigest()[:16]}.so"
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=root) as folder:
            built = Path(folder) / "kernel.so"
            for name, text in sources.items():
                (Path(folder) / name).write_bytes(text)
            subprocess.run(  # noqa: S603 - the compiler of the machine, on our own source
                [*command, str(Path(folder) / SOURCES[0]), "-o", str(built), "-lm"],
                check=True,
                capture_output=True,
                timeout=TIMEOUT,
            )
            built.replace(path)
    return path


def _processor() -> bytes:
    """Tell processors with different instructions apart: a home folder may serve many machines."""
    info = Path("/proc/cpuinfo")
    flags = (
        [line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))]
        if info.exists()
        else []
    )
    return (platform.machine() + platform.processor() + (flags[0] if flags else "")).encode()


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Give the address of a tensor's data."""
    if not tensor.is_contiguous():
        raise ValueError("expected a contiguous tensor")
    return ctypes.c_void_p(tensor.data_ptr())
