"""What long work keeps on disk in case it is killed is an aid: a disk that is full spoils nothing else."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def aiding(folder: Path) -> Iterator[None]:
    """Let what is written here fail for want of space or permission; say so once.

    Parameters
    ----------
    folder
        Where it is written.
    """
    try:
        yield
    except OSError as error:
        _warn(folder, error.strerror or type(error).__name__)


@lru_cache(maxsize=64)
def _warn(folder: Path, why: str) -> None:
    logger.warning("%s: what is done cannot be kept (%s); if this is killed, it begins again", folder, why)
