"""What compiled functions are given: numbers, and the addresses of tensors."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def argument(value: torch.Tensor | float) -> tuple[float, Any]:
    """Give a value as C and the driver of a GPU take it.

    Parameters
    ----------
    value
        A tensor is passed as its address, int as int64_t, float as double.

    Returns
    -------
    tuple
        The number, and its type of ctypes.
    """
    if isinstance(value, int):
        return value, ctypes.c_int64
    if isinstance(value, float):
        return value, ctypes.c_double
    return pointer(value), ctypes.c_void_p


def pointer(tensor: torch.Tensor) -> int:
    """Give the address of a tensor's data.

    Parameters
    ----------
    tensor
        Must live as long as the address is used.

    Returns
    -------
    int
        The address.

    Raises
    ------
    ValueError
        If the tensor is not contiguous.
    """
    if not tensor.is_contiguous():
        raise ValueError("expected a contiguous tensor")
    return tensor.data_ptr()
