"""The neighbour density and its gradient in C, compiled at first use where a C compiler is found.

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
from functools import cache
from importlib import resources
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

OPTIONS = ("-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-shared", "-fPIC", "-std=gnu11")

FUNCTIONS = {
    torch.float32: ("float", "cosf", "sinf", "sqrtf"),
    torch.float64: ("double", "cos", "sin", "sqrt"),
}

TIMEOUT = 120.0
"""Longest time that the compiler may take, s."""


class Kernel:
    """The compiled functions for one shape of model.

    Parameters
    ----------
    library
        The loaded library.
    dtype
        Its floating type.
    n_monomials
        Monomials up to its highest degree.
    """

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype, n_monomials: int) -> None:
        self._library = library
        self._real = ctypes.c_float if dtype is torch.float32 else ctypes.c_double
        self._n_monomials = n_monomials

    def density(
        self,
        vectors: torch.Tensor,
        seen: torch.Tensor | None,
        index: torch.Tensor,
        species: torch.Tensor,
        table: torch.Tensor,
        cutoff: float,
        n_basis: int,
    ) -> torch.Tensor:
        """Project the neighbours onto monomials and basis functions.

        Parameters
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
            Element channels, shape (n_elements, n_channels).
        cutoff
            The cutoff, Å.
        n_basis
            Radial functions times element channels.

        Returns
        -------
        torch.Tensor
            Shape (n_atoms, n_monomials, n_basis).
        """
        raw = vectors.new_empty((vectors.shape[0], self._n_monomials, n_basis))
        self._library.density(
            *_sizes(vectors), *map(_pointer, (vectors, seen, index, species, table)), self._real(cutoff), _pointer(raw)
        )
        return raw

    def pull_back(
        self,
        vectors: torch.Tensor,
        seen: torch.Tensor | None,
        index: torch.Tensor,
        species: torch.Tensor,
        table: torch.Tensor,
        cutoff: float,
        by_raw: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Turn the derivative by the density into that by the vectors.

        Parameters
        ----------
        vectors
            As for `density`, like all others.
        seen
            Distances as the radial functions see them, or None.
        index
            Neighbours.
        species
            Elements.
        table
            Element channels.
        cutoff
            The cutoff, Å.
        by_raw
            Derivative by the density, shape (n_atoms, n_monomials, n_basis).

        Returns
        -------
        tuple[torch.Tensor, torch.Tensor | None]
            Derivative by the vectors, shape (n_atoms, K, 3); without the part through `seen` if that was given,
            whose derivative is the second, shape (n_atoms, K).
        """
        by_vector = torch.empty_like(vectors)
        by_seen = None if seen is None else torch.empty_like(seen)
        self._library.density_back(
            *_sizes(vectors),
            *map(_pointer, (vectors, seen, index, species, table)),
            self._real(cutoff),
            *map(_pointer, (by_raw, by_vector, by_seen)),
        )
        return by_vector, by_seen

    def assemble(
        self, vectors: torch.Tensor, index: torch.Tensor, system: torch.Tensor, n_systems: int, by_vector: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn derivatives by the vectors into forces and derivatives by strain.

        Parameters
        ----------
        vectors
            To the neighbours, shape (n_atoms, K, 3), Å.
        index
            Neighbours, shape (n_atoms, K).
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
        forces = vectors.new_zeros((vectors.shape[0], 3))
        virial = vectors.new_zeros((n_systems, 3, 3))
        self._library.assemble(*_sizes(vectors), *map(_pointer, (vectors, index, system, by_vector, forces, virial)))
        return forces, 0.5 * (virial + virial.transpose(1, 2))


@cache
def load_kernel(dtype: torch.dtype, n_radial: int, n_species: int, l_max: int, closest: float) -> Kernel | None:
    """Compile and load the kernel for one shape of model, once.

    Parameters
    ----------
    dtype
        float32 or float64.
    n_radial
        Radial functions.
    n_species
        Element channels.
    l_max
        Highest degree.
    closest
        Distances are not taken smaller, Å.

    Returns
    -------
    Kernel | None
        None where there is no compiler, or it is switched off.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if os.environ.get("ACNN_NATIVE") == "0" or compiler is None or dtype not in FUNCTIONS:
        return None
    names = dict(zip(("REAL", "COS", "SIN", "SQRT"), FUNCTIONS[dtype], strict=True))
    shape = {"N_RADIAL": n_radial, "N_SPECIES": n_species, "L_MAX": l_max, "CLOSEST": closest}
    defines = [f"-D{name}={value}" for name, value in (names | shape).items()]
    try:
        library = ctypes.CDLL(str(_compiled(compiler, defines)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the C kernel could not be built, PyTorch does its work: %s", error)
        return None
    return Kernel(library, dtype, (l_max + 1) * (l_max + 2) * (l_max + 3) // 6)


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


def _pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """Give the address of a tensor's data."""
    if tensor is None:
        return ctypes.c_void_p(None)
    if not tensor.is_contiguous():
        raise ValueError("expected a contiguous tensor")
    return ctypes.c_void_p(tensor.data_ptr())
