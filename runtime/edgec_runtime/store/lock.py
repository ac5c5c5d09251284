"""One writer at a time: a lock that the system takes back when its process ends, however that ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from .disk import refusals
from .errors import StoreInaccessible, StoreInUse

LOCK_FILE: Final = "lock"


class WriteLock:
    """Held from construction to `release`, or to the end of the process. The file itself stays, and is empty."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreInUse where another writer holds it, in this process or in another."""
        try:
            import fcntl
        except ImportError as error:  # Windows: stores are read there, not written
            raise StoreInaccessible(
                f"{folder} cannot be locked: this system has no fcntl", "write the store on Linux, Android or macOS"
            ) from error
        with refusals(folder):
            self._file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with refusals(folder):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except StoreInaccessible as error:
            os.close(self._file)
            if isinstance(error.__cause__, BlockingIOError):
                raise StoreInUse(
                    f"{folder} is being written by another writer", "wait until it is done, or end it"
                ) from error
            raise

    def release(self) -> None:
        """Let others write. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
