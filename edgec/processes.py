"""Which of the processes that train together this one is, from what torchrun, accelerate or mpirun tell it."""

from __future__ import annotations

import os
from typing import Final

_RANK: Final = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_SIZE: Final = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""The variables that accelerate reads, too."""


def world_size() -> int:
    """How many processes there are; 1 where nobody said otherwise."""
    return max(1, _number(_SIZE, 1))


def rank() -> int:
    """The number of this process, from 0."""
    return _number(_RANK, 0) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes and reports."""
    return rank() == 0


def _number(names: tuple[str, ...], otherwise: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), otherwise)
