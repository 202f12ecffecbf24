"""Where a potential runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from acnn.errors import ConfigError

if TYPE_CHECKING:
    from acnn.config import DeviceName


def choose_device(name: DeviceName) -> torch.device:
    """Find a device by name.

    Parameters
    ----------
    name
        cpu, cuda, or auto: a GPU where there is one.

    Returns
    -------
    torch.device
        The device.

    Raises
    ------
    ConfigError
        If a GPU was asked for where PyTorch sees none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError(f"device: cuda was asked for, but torch {torch.__version__} sees no GPU; use cpu or auto")
    return torch.device("cuda" if there and name != "cpu" else "cpu")
