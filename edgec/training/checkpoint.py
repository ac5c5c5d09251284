"""Folders of checkpoints, of which a kill may have left the newest half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CHECKPOINT: Final = "checkpoint-"
"""Folders of the Trainer, with the number of the step behind it."""

_MARK: Final = "whole"


def mark_whole(checkpoint: Path) -> None:
    """Say that all files of the checkpoint are written."""
    (checkpoint / _MARK).touch()


def is_whole(checkpoint: Path) -> bool:
    return (checkpoint / _MARK).is_file()


def in_order(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, whole or not, the newest last."""
    numbers = {path: path.name.removeprefix(CHECKPOINT) for path in folder.glob(f"{CHECKPOINT}*")}
    return sorted((path for path, number in numbers.items() if number.isdigit()), key=lambda path: int(numbers[path]))
