"""What every reader shares: a file opened as text, and its rows one at a time, the malformed ones told or counted."""

from __future__ import annotations

import gzip
import io
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TextIO, TypeVar

from edgec.errors import DataError

OnError = Literal["raise", "skip"]
T = TypeVar("T")


@dataclass(frozen=True)
class Malformed:
    """A row that cannot be used. line: where it begins; 0: `what` says it itself."""

    line: int
    what: str


class DataFile(ABC, Generic[T]):
    """The rows of a file, read anew on every iteration.

    on_error "raise": a malformed row raises DataError with file and line; "skip": it is counted in `skipped`, that of
    the last iteration. `repaired` counts tags that were put right. A missing or empty file, an unknown format and an
    unknown column raise DataError in either case.
    """

    def __init__(self, path: str | Path, *, on_error: OnError = "raise") -> None:
        self.path = Path(path)
        self.on_error = on_error
        self.skipped = 0
        self.repaired = 0

    @abstractmethod
    def _rows(self) -> Iterator[T | Malformed]:
        """The rows of the file in order."""

    def __iter__(self) -> Iterator[T]:
        self.skipped = self.repaired = read = 0
        for row in self._rows():
            if not isinstance(row, Malformed):
                read += 1
                yield row
            elif self.on_error == "raise":
                place = f"{self.path}:{row.line}" if row.line else str(self.path)
                raise DataError(
                    f"{place}: {row.what}",
                    "mend the line; labelled data can skip such lines (on_error: skip in a recipe, --skip-malformed)",
                )
            else:
                self.skipped += 1
        if not read:
            cause = f"all {self.skipped} rows are malformed" if self.skipped else "the file has no rows"
            raise DataError(f"{self.path}: {cause}", "give a file with at least one example")


@contextmanager
def opened(path: Path, *, newline: str = "\n") -> Iterator[TextIO]:
    """The file as text. What the file system or gzip have against it becomes a DataError.

    newline: only a line feed ends a line, as texts may hold other separators; "": as csv wants it. Bytes that are not
    UTF-8 are read as lone surrogates, see `is_utf8`.
    """
    with readable(path), gzip.open(path, "rb") if is_gzip(path) else path.open("rb") as binary:
        yield io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline=newline)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what the file system or gzip have against a file into a DataError."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file", "check the path") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}", "fetch the file again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", "check the path") from None


def is_gzip(path: Path) -> bool:
    """Whether a file is unpacked while it is read."""
    return path.suffix.lower() == ".gz"


def is_utf8(*texts: str) -> bool:
    """Whether the texts have a UTF-8 form. Lone surrogates have none: bytes that were no UTF-8, or JSON's "\\ud800"."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
