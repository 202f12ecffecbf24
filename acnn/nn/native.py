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
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

OPTIONS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-shared", "-fPIC", "-std=gnu11")

FUNCTIONS = {
    torch.float32: ("float", "cosf", "sinf", "sqrtf"),
    torch.float64: ("double", "cos", "sin", "sqrt"),
}

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
    closest
        Distances are not taken smaller, Å.
    """

    dtype: torch.dtype
    n_radial: int
    n_species: int
    l_max: int
    channels: int
    mixed: int
    factors: int
    closest: float

    @property
    def n_basis(self) -> int:
        """Radial functions times element channels."""
        return self.n_radial * self.n_species

    @property
    def n_monomials(self) -> int:
        """Monomials up to the highest degree."""
        return (self.l_max + 1) * (self.l_max + 2) * (self.l_max + 3) // 6

    def defines(self) -> list[str]:
        """Give the compiler's options."""
        names = dict(zip(("REAL", "COS", "SIN", "SQRT"), FUNCTIONS[self.dtype], strict=True))
        values = asdict(self)
        del values["dtype"]
        return [f"-D{name.upper()}={value}" for name, value in (names | values).items()]


@dataclass(frozen=True)
class Place:
    """Neighbourhoods and the element channels of a model.

    Attributes
    ----------
    vectors
        To the neighbours, shape (n_atoms, K, 3), Å; neighbours beyond the cutoff are not seen.
    seen
        Distances as the radial functions see them, shape (n_atoms, K), Å; None: the lengths.
    index
        Neighbours, shape (n_atoms, K).
    species
        Elements, shape (n_atoms,).
    table
        Element channels, shape (n_elements, n_species).
    cutoff
        The cutoff, Å.
    """

    vectors: torch.Tensor
    seen: torch.Tensor | None
    index: torch.Tensor
    species: torch.Tensor
    table: torch.Tensor
    cutoff: float


@dataclass(frozen=True)
class Tables:
    """Weights that turn the density into invariants.

    Attributes
    ----------
    mixing
        Shape (l_max + 1, n_basis, channels).
    harmonics
        From monomials to harmonics, degree after degree, flat.
    deep
        Shape (min(l_max, 3) + 1, channels, mixed).
    terms
        Factor, factor and product of each non-zero coupling, shape (n, 3), int32.
    coefficients
        Their coefficients, shape (n,).
    """

    mixing: torch.Tensor
    harmonics: torch.Tensor
    deep: torch.Tensor
    terms: torch.Tensor
    coefficients: torch.Tensor


class Kernel:
    """The compiled functions for one shape of model.

    Parameters
    ----------
    library
        The loaded library.
    shape
        What it was compiled for.
    """

    def __init__(self, library: ctypes.CDLL, shape: Shape) -> None:
        self._library = library
        self._real = ctypes.c_float if shape.dtype is torch.float32 else ctypes.c_double
        self.shape = shape

    def density(self, place: Place) -> torch.Tensor:
        """Project the neighbours onto monomials and basis functions.

        Parameters
        ----------
        place
            Neighbourhoods.

        Returns
        -------
        torch.Tensor
            Shape (n_monomials, n_atoms, n_basis).
        """
        raw = place.vectors.new_empty((self.shape.n_monomials, place.vectors.shape[0], self.shape.n_basis))
        self._library.density(*self._place(place), _pointer(raw))
        return raw

    def density_back(self, place: Place, by_raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Turn the derivative by the density into that by the vectors.

        Parameters
        ----------
        place
            Neighbourhoods.
        by_raw
            Derivative by the density, shape (n_monomials, n_atoms, n_basis).

        Returns
        -------
        tuple[torch.Tensor, torch.Tensor | None]
            Derivative by the vectors, shape (n_atoms, K, 3); without the part through `seen` if that was given,
            whose derivative is the second, shape (n_atoms, K).
        """
        by_vector = torch.empty_like(place.vectors)
        by_seen = None if place.seen is None else torch.empty_like(place.seen)
        self._library.density_back(*self._place(place), *map(_pointer, (by_raw, by_vector, by_seen)))
        return by_vector, by_seen

    def contract(self, raw: torch.Tensor, tables: Tables, n_features: int) -> torch.Tensor:
        """Turn the density into invariants.

        Parameters
        ----------
        raw
            Density, shape (n_monomials, n_atoms, n_basis).
        tables
            Weights.
        n_features
            Number of invariants.

        Returns
        -------
        torch.Tensor
            Shape (n_atoms, n_features).
        """
        features = raw.new_empty((raw.shape[1], n_features))
        self._library.contract(*_contraction(raw, tables), _pointer(features))
        return features

    def contract_back(self, raw: torch.Tensor, tables: Tables, by_features: torch.Tensor) -> torch.Tensor:
        """Turn the derivative by the invariants into that by the density.

        Parameters
        ----------
        raw
            Density, shape (n_monomials, n_atoms, n_basis).
        tables
            Weights.
        by_features
            Derivative, shape (n_atoms, n_features).

        Returns
        -------
        torch.Tensor
            Same shape as the density.
        """
        by_raw = torch.empty_like(raw)
        self._library.contract_back(*_contraction(raw, tables), *map(_pointer, (by_features, by_raw)))
        return by_raw

    def assemble(
        self, place: Place, system: torch.Tensor, n_systems: int, by_vector: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn derivatives by the vectors into forces and derivatives by strain.

        Parameters
        ----------
        place
            Neighbourhoods.
        system
            Structure of each atom, shape (n_atoms,).
        n_systems
            Number of structures.
        by_vector
            Derivatives, shape (n_atoms, K, 3), eV/Å.

        Returns
        -------
        tuple[torch.Tensor, torch.Tensor]
            Forces, shape (n_atoms, 3), eV/Å, and symmetric virials, shape (n_systems, 3, 3), eV.
        """
        vectors = place.vectors
        forces = vectors.new_zeros((vectors.shape[0], 3))
        virial = vectors.new_zeros((n_systems, 3, 3))
        tensors = (vectors, place.index, system, by_vector, forces, virial)
        self._library.assemble(*_sizes(vectors), *map(_pointer, tensors))
        return forces, 0.5 * (virial + virial.transpose(1, 2))

    def _place(self, place: Place) -> tuple[Any, ...]:
        """Give the arguments that say where the neighbours are."""
        tensors = (place.vectors, place.seen, place.index, place.species, place.table)
        return (*_sizes(place.vectors), *map(_pointer, tensors), self._real(place.cutoff))


@cache
def load_kernel(shape: Shape) -> Kernel | None:
    """Compile and load the kernel for one shape of model, once.

    Parameters
    ----------
    shape
        What it is compiled for.

    Returns
    -------
    Kernel | None
        None where there is no compiler, or it is switched off.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if os.environ.get("ACNN_NATIVE") == "0" or compiler is None or shape.dtype not in FUNCTIONS:
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler, shape.defines())))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the C kernel could not be built, PyTorch does its work: %s", error)
        return None
    return Kernel(library, shape)


def _compiled(compiler: str, defines: list[str]) -> Path:
    """Find the library in the user's cache, or build it there."""
    source = resources.files("acnn.nn").joinpath("kernel.c").read_bytes()
    command = [compiler, *OPTIONS, *defines]
    mark = hashlib.sha256(b"\n".join([source, *(part.encode() for part in command), _processor()])).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "acnn"
    path = root / f"kernel-{mark}.so"
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=root) as folder:
            code, built = Path(folder) / "kernel.c", Path(folder) / "kernel.so"
            code.write_bytes(source)
            subprocess.run(  # noqa: S603 - the compiler of the machine, on our own source
                [*command, str(code), "-o", str(built), "-lm"], check=True, capture_output=True, timeout=TIMEOUT
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


def _sizes(vectors: torch.Tensor) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    """Give the numbers of atoms and columns."""
    return ctypes.c_int64(vectors.shape[0]), ctypes.c_int64(vectors.shape[1])


def _contraction(raw: torch.Tensor, tables: Tables) -> tuple[Any, ...]:
    """Give the arguments of a contraction."""
    tensors = (raw, tables.mixing, tables.harmonics, tables.deep, tables.terms, tables.coefficients)
    return (ctypes.c_int64(raw.shape[1]), *map(_pointer, tensors), ctypes.c_int64(len(tables.coefficients)))


def _pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """Give the address of a tensor's data."""
    if tensor is None:
        return ctypes.c_void_p(None)
    if not tensor.is_contiguous():
        raise ValueError("expected a contiguous tensor")
    return ctypes.c_void_p(tensor.data_ptr())
