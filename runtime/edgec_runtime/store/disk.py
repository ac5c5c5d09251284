"""Bytes into files: whole or not at all, and every refusal of the file system as a StoreError."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .errors import StoreFull, StoreInaccessible

_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Raises StoreFull or StoreInaccessible, with the place, for what the file system refuses below `path`."""
    try:
        yield
    except OSError as error:
        place = error.filename or path
        if error.errno in _NO_SPACE:
            raise StoreFull(
                f"no space left while writing {place}; what was committed before is whole",
                "free some space and write on: nothing has to be computed again that was committed",
            ) from error
        raise StoreInaccessible(
            f"{place}: {error.strerror or error}", "check the path, its permissions and its disk"
        ) from error


def write_at(file: int, content: bytes, offset: int) -> None:
    """Write all of `content` at `offset` of the file descriptor `file`, however little the system takes at once."""
    left = memoryview(content)
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


def replace_file(path: Path, content: bytes) -> None:
    """Make `content` the file `path` in one step: a reader sees the old one or the new one, after a crash too."""
    new = path.with_name(f"{path.name}.new")
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_at(file, content, 0)
        os.fsync(file)
    finally:
        os.close(file)
    new.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` outlive a loss of power."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
