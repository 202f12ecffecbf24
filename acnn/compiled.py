"""Functions in C and CUDA, compiled at first use where there is a compiler: C's own on a CPU, CUDA's (NVRTC) on a GPU.

Nothing depends on them: without a compiler, or with ``ACNN_NATIVE=0`` in the environment, PyTorch does the same work.
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
from typing import TYPE_CHECKING, Protocol

from acnn.arguments import argument
from acnn.cuda import build_cuda

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# -ffast-math without its two harms: NaN is still seen, and subnormal numbers of the whole process are left alone
FAST_MATH = tuple(
    f"-f{name}"
    for name in ("associative-math", "reciprocal-math", "no-signed-zeros", "no-trapping-math", "no-math-errno")
)

OPTIONS = ("-O3", "-march=native", *FAST_MATH, "-shared", "-fPIC", "-std=gnu11")

TIMEOUT = 120.0
"""Longest time that the compiler may take, s."""


class Library(Protocol):
    """Compiled functions of many items each."""

    def run(self, name: str, n: int, *arguments: torch.Tensor | float) -> None:
        """Call a function.

        Parameters
        ----------
        name
            The function.
        n
            Number of items, its first argument.
        *arguments
            What follows: tensors, contiguous and on the library's device, are passed as addresses, int as int64_t,
            float as double.
        """


def load_library(sources: tuple[str, ...], device: torch.device, defines: tuple[str, ...] = ()) -> Library | None:
    """Compile and load functions, once.

    Parameters
    ----------
    sources
        Files below this package; the first includes the others.
    device
        Where the functions run.
    defines
        Further options of the compiler.

    Returns
    -------
    Library | None
        None where there is no compiler, or it is switched off.
    """
    return _load(sources, device.type, device.index or 0, defines)


@cache
def _load(sources: tuple[str, ...], kind: str, number: int, defines: tuple[str, ...]) -> Library | None:
    """Do so for a kind of device and its number."""
    if os.environ.get("ACNN_NATIVE") == "0":
        return None
    texts = {Path(name).name: resources.files("acnn").joinpath(name).read_text() for name in sources}
    try:
        if kind == "cuda":
            return build_cuda(texts, number, defines, _cache())
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if kind != "cpu" or compiler is None:
            return None
        return _CLibrary(ctypes.CDLL(str(_compiled(compiler, texts, defines))))
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        logger.warning("%s could not be built, PyTorch does its work: %s", sources[0], error)
        return None


class _CLibrary:
    """Functions on the CPU, one item after the other."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def run(self, name: str, n: int, *arguments: torch.Tensor | float) -> None:
        """Call a function; see :class:`Library`."""
        getattr(self._library, name)(*(kind(value) for value, kind in map(argument, (n, *arguments))))


def _compiled(compiler: str, texts: dict[str, str], defines: tuple[str, ...]) -> Path:
    """Find the library in the user's cache, or build it there."""
    command = [compiler, *OPTIONS, *defines]
    mark = hashlib.sha256(b"\n".join([*(part.encode() for part in (*texts.values(), *command)), _processor()]))
    root, first = _cache(), next(iter(texts))
    path = root / f"{Path(first).stem}-{mark.hexdigest()[:16]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=root) as folder:
            for name, text in texts.items():
                (Path(folder) / name).write_text(text)
            built = Path(folder) / "library.so"
            subprocess.run(  # noqa: S603 - the compiler of the machine, on our own source
                [*command, str(Path(folder) / first), "-o", str(built), "-lm"],
                check=True,
                capture_output=True,
                timeout=TIMEOUT,
            )
            built.replace(path)
    return path


def _cache() -> Path:
    """Give the user's folder of compiled code; it is made."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "acnn"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return root


def _processor() -> bytes:
    """Tell processors with different instructions apart: a home folder may serve many machines."""
    info = Path("/proc/cpuinfo")
    flags = (
        [line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))]
        if info.exists()
        else []
    )
    return (platform.machine() + platform.processor() + (flags[0] if flags else "")).encode()
