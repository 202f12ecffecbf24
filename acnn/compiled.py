"""Functions in C, compiled at first use where a C compiler is found.

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
from typing import TYPE_CHECKING

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


@cache
def load_library(sources: tuple[str, ...], defines: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """Compile and load a library, once.

    Parameters
    ----------
    sources
        Files below this package; the first includes the others.
    defines
        Further options of the compiler.

    Returns
    -------
    ctypes.CDLL | None
        None where there is no compiler, or it is switched off.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if os.environ.get("ACNN_NATIVE") == "0" or compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler, sources, defines)))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("%s could not be built, PyTorch does its work: %s", sources[0], error)
        return None


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """Give the address of a tensor's data.

    Parameters
    ----------
    tensor
        On the CPU; must live as long as the address is used.

    Returns
    -------
    ctypes.c_void_p
        The address.

    Raises
    ------
    ValueError
        If the tensor is not contiguous.
    """
    if not tensor.is_contiguous():
        raise ValueError("expected a contiguous tensor")
    return ctypes.c_void_p(tensor.data_ptr())


def _compiled(compiler: str, sources: tuple[str, ...], defines: tuple[str, ...]) -> Path:
    """Find the library in the user's cache, or build it there."""
    texts = [resources.files("acnn").joinpath(name).read_bytes() for name in sources]
    command = [compiler, *OPTIONS, *defines]
    mark = hashlib.sha256(b"\n".join([*texts, *(part.encode() for part in command), _processor()]))
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "acnn"
    path = root / f"{Path(sources[0]).stem}-{mark.hexdigest()[:16]}.so"
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=root) as folder:
            files = [Path(folder) / Path(name).name for name in sources]
            for file, text in zip(files, texts, strict=True):
                file.write_bytes(text)
            built = Path(folder) / "library.so"
            subprocess.run(  # noqa: S603 - the compiler of the machine, on our own source
                [*command, str(files[0]), "-o", str(built), "-lm"], check=True, capture_output=True, timeout=TIMEOUT
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
