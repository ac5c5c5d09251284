"""Texts, text pairs and labels from CSV, TSV, JSONL and plain text, one row at a time.

A file is UTF-8 (a byte order mark is dropped) and may be gzipped (a name that ends in `.gz`).

    csv     header, quoting as in RFC 4180
    tsv     header, fields parted by tabs and taken literally: a quotation mark is a character like any other
    jsonl   one object a line
    text    one text a line; empty lines are passed over

Columns go by name. Numbers count columns from 0 and say that a csv or tsv file has no header.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, TextIO

from edgec.data.examples import Example, Text
from edgec.errors import DataError

SUFFIXES: Final = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text"}
DEFAULT_TEXT: Final = "text"

OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class Sample:
    """Texts, or pairs of them, and the group of each; without a group column there are no groups."""

    texts: tuple[Text, ...] = ()
    groups: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many texts each group has, by the groups' names."""
        return dict(sorted(Counter(self.groups).items()))

    def spread(self, rows: int) -> tuple[Text, ...]:
        """At most `rows` of the texts, at equal distances: a file that is sorted by group gives some of each."""
        count = len(self.texts)
        return self.texts if count <= rows else tuple(self.texts[i * count // rows] for i in range(rows))


@dataclass(frozen=True)
class _Row:
    """What stands in a line: its values by column, or the problem with it."""

    line: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


class Examples:
    """The rows of a file, read anew on every iteration. `skipped` counts those passed over in the last one.

    text None: the column `text`, or the only one that there is. on_error "raise": a malformed row raises
    DataError with file and line; "skip": it is counted. A missing or empty file, an unknown format and an
    unknown column raise DataError in either case.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        format: str | None = None,
        text: str | None = None,
        text_pair: str | None = None,
        label: str | None = None,
        group_by: Sequence[str] = (),
        on_error: OnError = "raise",
    ) -> None:
        self.path = Path(path)
        self.format = format_of(self.path, format)
        self.text, self.text_pair, self.label = text, text_pair, label
        self.group_by = tuple(group_by)
        self.on_error = on_error
        self.skipped = 0

    def __iter__(self) -> Iterator[Example]:
        self.skipped = 0
        read = 0
        text: str | None = None
        with _opened(self.path, self.format) as stream:
            for row in _ROWS[self.format](stream, self._named()):
                if row.problem is None and text is None:
                    text = self._text_column(list(row.values))
                made = row.problem if row.problem is not None else self._example(row, text or "")
                if isinstance(made, Example):
                    read += 1
                    yield made
                elif self.on_error == "raise":
                    raise DataError(
                        f"{self.path}:{row.line}: {made}",
                        'mend the line, or skip such lines (on_error="skip", --skip-malformed)',
                    )
                else:
                    self.skipped += 1
        if not read:
            cause = f"all {self.skipped} rows are malformed" if self.skipped else "the file has no rows"
            raise DataError(f"{self.path}: {cause}", "give a file with at least one example")

    def _named(self) -> tuple[str, ...]:
        """The columns that the caller named."""
        return tuple(c for c in (self.text, self.text_pair, self.label, *self.group_by) if c is not None)

    def _text_column(self, columns: list[str]) -> str:
        """The text column, after a check of every named column against those of the file."""
        for name in self._named():
            if name not in columns:
                raise DataError(f"{self.path}: there is no column {name!r}", f"the columns are {', '.join(columns)}")
        if self.text is not None:
            return self.text
        if DEFAULT_TEXT in columns:
            return DEFAULT_TEXT
        if len(columns) == 1:
            return columns[0]
        raise DataError(
            f"{self.path}: which column holds the text?",
            f"name it (--text, text=); the columns are {', '.join(columns)}",
        )

    def _example(self, row: _Row, text: str) -> Example | str:
        """The example of a row, or what is wrong with the row."""
        values = row.values
        for column in (text, self.text_pair):
            if column is not None and not isinstance(values.get(column), str):
                return f"{column!r} is not a text"
        for column in (*self.group_by, self.label):
            if column is not None and not isinstance(values.get(column), str | int | float):
                return f"{column!r} is neither a text nor a number"
        label = None if self.label is None else str(values[self.label]).strip()
        if label == "":
            return f"{self.label!r} is empty"
        pair = None if self.text_pair is None else values[self.text_pair]
        example = Example(values[text], pair, label, {c: str(values[c]) for c in self.group_by}, row.line)
        try:  # bytes that are not UTF-8 were read as lone surrogates, and JSON can spell a lone surrogate
            "".join((example.text, pair or "", label or "", *example.groups.values())).encode()
        except UnicodeEncodeError:
            return "the text is not valid UTF-8"
        return example


def read_examples(
    path: str | Path,
    *,
    format: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    group_by: Sequence[str] = (),
    on_error: OnError = "raise",
) -> Examples:
    """The examples of a file, streamed; see Examples."""
    return Examples(
        path,
        format=format,
        text=text,
        text_pair=text_pair,
        label=label,
        group_by=group_by,
        on_error=on_error,
    )


def read_texts(
    path: str | Path,
    *,
    format: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    rows: int | None = None,
    on_error: OnError = "raise",
) -> list[Text]:
    """The first `rows` texts of a file (all: None), or pairs where `text_pair` names a column."""
    examples = read_examples(path, format=format, text=text, text_pair=text_pair, on_error=on_error)
    return [example.request for example in islice(examples, rows)]


def read_sample(
    path: str | Path,
    *,
    format: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    group: str | None = None,
    rows: int | None = None,
) -> Sample:
    """The first `rows` texts of a file (all: None), or as many from each group of the column `group`; see `draw`."""
    group_by = () if group is None else (group,)
    examples = draw(read_examples(path, format=format, text=text, text_pair=text_pair, group_by=group_by), rows, group)
    groups = () if group is None else (example.groups[group] for example in examples)
    return Sample(tuple(example.request for example in examples), tuple(groups))


def draw(examples: Iterable[Example], rows: int | None, group: str | None) -> list[Example]:
    """The first `rows` examples (all: None); with a column `group` spread evenly over its values.

    Every group gives its first examples, the same number as the others; what a small group cannot give is shared by
    the rest, and an odd remainder goes to the groups that come first by name. The order is that of the file, and the
    choice depends on nothing but the file. Raises DataError where there are more groups than rows.
    """
    if rows is None or group is None:
        return list(islice(examples, rows))
    kept: dict[str, list[tuple[int, Example]]] = {}
    for place, example in enumerate(examples):
        members = kept.setdefault(example.groups[group], [])
        if len(members) < rows:  # no group can give more
            members.append((place, example))
        if len(kept) > rows:
            raise DataError(
                f"the column {group!r} has more than {rows} values, so {rows} rows cannot be spread over them",
                "name a column of few values, such as a language, or raise rows",
            )
    chosen: list[tuple[int, Example]] = []
    waiting = sorted(kept)
    while waiting and len(chosen) < rows:
        share, odd = divmod(rows - len(chosen), len(waiting))
        for position, name in enumerate(waiting):
            give = share + (position < odd)
            chosen += kept[name][:give]
            kept[name] = kept[name][give:]
        waiting = [name for name in waiting if kept[name]]
    return [example for _, example in sorted(chosen, key=lambda pair: pair[0])]


def format_of(path: Path, format: str | None) -> str:
    """The format by name, or by the suffix of the file. Raises DataError where there is none."""
    known = tuple(_ROWS)
    if format is not None:
        if format not in known:
            raise DataError(f"unknown data format {format!r}", f"the formats are {', '.join(known)}")
        return format
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    if not suffixes or suffixes[-1] not in SUFFIXES:
        raise DataError(
            f"{path}: the name does not tell the format",
            f"name it (--format, format=): {', '.join(known)}; or use a suffix: {', '.join(SUFFIXES)}",
        )
    return SUFFIXES[suffixes[-1]]


@contextmanager
def _opened(path: Path, format: str) -> Iterator[TextIO]:
    """The file as text. What the file system or gzip have against it becomes a DataError."""
    # csv wants its line ends untouched; elsewhere only a line feed ends a line, as texts may hold others.
    newline = "" if format == "csv" else "\n"
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as binary:
            yield io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline=newline)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file", "check the path") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked: {error}", "fetch the file again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", "check the path") from None


def _csv_rows(stream: TextIO, named: Sequence[str]) -> Iterator[_Row]:
    reader = csv.reader(stream, strict=True)

    def fields() -> Iterator[tuple[int, list[str] | str]]:
        while True:
            line = reader.line_num + 1
            try:
                yield line, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, str(error)

    return _table(fields(), named)


def _tsv_rows(stream: TextIO, named: Sequence[str]) -> Iterator[_Row]:
    lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(stream, 1))
    return _table(((number, line.split("\t") if line else []) for number, line in lines), named)


def _table(lines: Iterator[tuple[int, list[str] | str]], named: Sequence[str]) -> Iterator[_Row]:
    """Rows under a header, or under column numbers. A line is its fields, or the problem with it."""
    header: list[str] | None = None
    for number, fields in lines:
        if not fields:
            continue
        if isinstance(fields, str):
            yield _Row(number, problem=fields)
            continue
        if header is None:
            if not named or not all(name.isdecimal() for name in named) or set(named) <= set(fields):
                header = fields
                continue
            header = [str(column) for column in range(len(fields))]
        if len(fields) == len(header):
            yield _Row(number, dict(zip(header, fields, strict=True)))
        else:
            yield _Row(number, problem=f"{len(fields)} fields, where there are {len(header)} columns")


def _jsonl_rows(stream: TextIO, named: Sequence[str]) -> Iterator[_Row]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield _Row(number, problem=f"not JSON: {error}")
            continue
        if isinstance(values, dict):
            yield _Row(number, values)
        else:
            yield _Row(number, problem="not a JSON object")


def _text_rows(stream: TextIO, named: Sequence[str]) -> Iterator[_Row]:
    for number, line in enumerate(stream, 1):
        if text := line.rstrip("\r\n"):
            yield _Row(number, {DEFAULT_TEXT: text})


_ROWS: Final[Mapping[str, Callable[[TextIO, Sequence[str]], Iterator[_Row]]]] = {
    "csv": _csv_rows,
    "tsv": _tsv_rows,
    "jsonl": _jsonl_rows,
    "text": _text_rows,
}
