"""Pairs of texts from two files whose lines belong together, as translations are shipped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from edgec.data.examples import Example
from edgec.data.files import DataFile, Malformed, OnError, is_utf8, opened
from edgec.errors import DataError


class Pairs(DataFile[Example]):
    """Line n of one file with line n of the other. Files of unequal length raise DataError before the first pair.

    Lines that are empty in both files are passed over; an empty line beside a text is malformed.
    """

    def __init__(self, path: str | Path, other: str | Path, *, on_error: OnError = "raise") -> None:
        super().__init__(path, on_error=on_error)
        self.other = Path(other)

    def _rows(self) -> Iterator[Example | Malformed]:
        counts = [_count(path) for path in (self.path, self.other)]
        if counts[0] != counts[1]:
            raise DataError(
                f"{self.path} has {counts[0]} lines, and {self.other} has {counts[1]}",
                "line n of one has to belong to line n of the other: fetch both again",
            )
        with opened(self.path) as stream, opened(self.other) as other:
            for number, lines in enumerate(zip_longest(stream, other, fillvalue=""), 1):
                first, second = (line.rstrip("\r\n") for line in lines)
                if not first.strip() and not second.strip():
                    continue
                if not first.strip() or not second.strip():
                    empty = self.path if not first.strip() else self.other
                    yield Malformed(number, f"the line is empty in {empty} alone")
                elif not is_utf8(first, second):
                    yield Malformed(number, "the text is not valid UTF-8")
                else:
                    yield Example(first, second, line=number, path=str(self.path))


def _count(path: Path) -> int:
    with opened(path) as stream:
        return sum(1 for _ in stream)
