"""Compile functions for a GPU with NVRTC, which comes with PyTorch for CUDA, and launch them."""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from acnn.arguments import argument

try:
    from cuda.bindings import driver, nvrtc
except ImportError:  # it comes with PyTorch for CUDA
    driver = nvrtc = None

OPTIONS = ("--device-as-default-execution-space", "--std=c++17")

BLOCK = 128
"""Threads of a block."""

MOST_BLOCKS = 1 << 16
"""Blocks of a launch, at most; each takes further items when it has done one."""

WARP = 32
"""Threads of a warp."""

T = TypeVar("T")


class CudaLibrary:
    """Functions on a GPU, each item in a thread.

    Parameters
    ----------
    module
        The loaded module.
    number
        The GPU.
    """

    def __init__(self, module: object, number: int) -> None:
        self._module = module
        self._device = torch.device("cuda", number)
        self._function = cache(lambda name: _check(driver.cuModuleGetFunction(module, name.encode())))

    @property
    def shared_memory(self) -> int:
        """Most shared memory of a block, bytes."""
        kind = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        return int(_check(driver.cuDeviceGetAttribute(kind, self._device.index)))

    def run(self, name: str, n: int, *arguments: torch.Tensor | float) -> None:
        """Call a function with a thread for each item; see :class:`acnn.compiled.Library`."""
        self.launch(name, n, BLOCK, BLOCK, 0, *arguments)

    def launch(
        self, name: str, n: int, items: int, threads: int, shared: int, *arguments: torch.Tensor | float
    ) -> None:
        """Call a function.

        Parameters
        ----------
        name
            The function.
        n
            Number of items, its first argument.
        items
            Items that a block has at once.
        threads
            Threads of a block.
        shared
            Shared memory of a block, bytes.
        *arguments
            What follows.
        """
        if n == 0:
            return
        values, kinds = zip(*map(argument, (n, *arguments)), strict=True)
        grid = (min(MOST_BLOCKS, -(-n // items)), 1, 1, threads, 1, 1)
        with torch.cuda.device(self._device):
            function = self._function(name)
            if shared:
                most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _succeed(driver.cuFuncSetAttribute(function, most, shared))
            stream = torch.cuda.current_stream().cuda_stream
            _succeed(driver.cuLaunchKernel(function, *grid, shared, stream, (values, kinds), 0))


def build_cuda(texts: dict[str, str], number: int, defines: tuple[str, ...], cache_folder: Path) -> CudaLibrary:
    """Compile and load functions.

    Parameters
    ----------
    texts
        Sources by name; the first includes the others.
    number
        The GPU.
    defines
        Further options of the compiler.
    cache_folder
        Where compiled code is kept.

    Returns
    -------
    CudaLibrary
        The functions.

    Raises
    ------
    ImportError
        If the package cuda-bindings is missing.
    RuntimeError
        If the compiler or the driver refuses.
    """
    device = torch.device("cuda", number)
    torch.zeros(1, device=device)  # so that there is a context to load into
    major, minor = torch.cuda.get_device_capability(device)
    binary = compile_once(texts, (f"--gpu-architecture=sm_{major}{minor}", *defines), cache_folder)
    with torch.cuda.device(device):
        return CudaLibrary(_check(driver.cuModuleLoadData(binary)), number)


def compile_once(texts: dict[str, str], options: tuple[str, ...], cache_folder: Path) -> bytes:
    """Compile sources, or take what was made of them before.

    Parameters
    ----------
    texts
        Sources by name; the first includes the others.
    options
        Of the compiler, the architecture among them.
    cache_folder
        Where compiled code is kept.

    Returns
    -------
    bytes
        The code.

    Raises
    ------
    ImportError
        If the package cuda-bindings is missing.
    RuntimeError
        If the compiler refuses; with what it says.
    """
    if nvrtc is None:
        raise ImportError("the package cuda-bindings is missing")
    version = ".".join(map(str, nvrtc.nvrtcVersion()[1:]))
    mark = hashlib.sha256("\n".join([*texts.values(), *OPTIONS, *options, version]).encode()).hexdigest()[:16]
    path = cache_folder / f"{Path(next(iter(texts))).stem}-{mark}.cubin"
    if path.exists():
        return path.read_bytes()
    code = compile_cuda(texts, options)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(code)
    partial.replace(path)
    return code


def compile_cuda(texts: dict[str, str], options: tuple[str, ...]) -> bytes:
    """Compile sources.

    Parameters
    ----------
    texts
        Sources by name; the first includes the others.
    options
        Of the compiler, the architecture among them.

    Returns
    -------
    bytes
        The code.

    Raises
    ------
    RuntimeError
        If the compiler refuses; with what it says.
    """
    first = next(iter(texts))
    program = _check(nvrtc.nvrtcCreateProgram(_flat(first, texts).encode(), first.encode(), 0, [], []))
    options = (*OPTIONS, *options)
    error = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])[0]
    if error:
        log = b" " * _check(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(log.decode(errors="replace").strip(" \n\0"))
    code: bytes = b" " * _check(nvrtc.nvrtcGetCUBINSize(program))
    _succeed(nvrtc.nvrtcGetCUBIN(program, code))
    _succeed(nvrtc.nvrtcDestroyProgram(program))
    return code


def _flat(name: str, texts: dict[str, str]) -> str:
    """Put the files that a source includes in their places; those of C's library are not there on a GPU."""
    text = re.sub(r"^#include <.*>$", "", texts[name], flags=re.MULTILINE)
    return re.sub(r'^#include "(.*)"$', lambda found: _flat(found[1], texts), text, flags=re.MULTILINE)


def _check(result: tuple[Any, T]) -> T:
    """Take the value of a result that is no error."""
    _succeed(result)
    return result[1]


def _succeed(result: tuple[Any, ...]) -> None:
    """Raise if a result is an error; want of memory as PyTorch does, so that a smaller batch is tried."""
    if result[0]:
        kind = torch.OutOfMemoryError if result[0].name == "CUDA_ERROR_OUT_OF_MEMORY" else RuntimeError
        raise kind(f"CUDA: {result[0].name}")
