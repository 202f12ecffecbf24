"""How many CPU threads torch may use."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use so many threads for a while: by default it takes all cores, which small arrays cannot use.

    Parameters
    ----------
    number
        CPU threads.

    Yields
    ------
    None
        Afterwards the number is what it was.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
