"""Texts, text pairs and labels from tables and plain text, one row at a time, and how many of each group are drawn.

A file is UTF-8 (a byte order mark is dropped) and may be gzipped (a name that ends in `.gz`). edgec.data.tables reads
the formats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from edgec.data.examples import Example, Question, Tagged, Text
from edgec.data.files import DataFile, Malformed, OnError, is_utf8
from edgec.data.tables import DEFAULT_TEXT, Row, table_rows
from edgec.errors import DataError
from edgec.formats import TABLES, format_of

L = TypeVar("L", Example, Tagged, Question)


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


class Examples(DataFile[Example]):
    """The rows of a table.

    text None: the column `text`, or the only one that there is. label_separator: what parts the labels of a text that
    may have several; a list in jsonl or parquet holds several without one.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        format: str | None = None,
        text: str | None = None,
        text_pair: str | None = None,
        label: str | None = None,
        label_separator: str | None = None,
        group_by: Sequence[str] = (),
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(path, on_error=on_error)
        self.format = format_of(self.path, format)
        self.text, self.text_pair, self.label = text, text_pair, label
        self.label_separator = label_separator
        self.group_by = tuple(group_by)
        if self.format not in (*TABLES, "text"):
            raise DataError(f"{self.path}: {self.format} is no table of texts", f"the tables are {', '.join(TABLES)}")

    def _rows(self) -> Iterator[Example | Malformed]:
        text: str | None = None
        for row in table_rows(self.path, self.format, self._named()):
            if row.problem is None and text is None:
                text = self._text_column(list(row.values))
            yield Malformed(row.line, row.problem) if row.problem is not None else self._example(row, text or "")

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

    def _example(self, row: Row, text: str) -> Example | Malformed:
        """The example of a row, or what is wrong with the row."""
        values = row.values
        for column in (text, self.text_pair):
            if column is not None and not isinstance(values.get(column), str):
                return Malformed(row.line, f"{column!r} is {'not a text' if column in values else 'missing'}")
        for column in self.group_by:
            if not isinstance(values.get(column), str | int | float):
                return Malformed(row.line, f"{column!r} is neither a text nor a number")
        label, labels = None, None
        if self.label is not None:
            given = _labels(values.get(self.label), self.label_separator)
            if given is None:
                return Malformed(row.line, f"{self.label!r} is neither a text nor a number")
            if isinstance(given, tuple):
                label, labels = "|".join(given), given
            elif given == "":
                return Malformed(row.line, f"{self.label!r} is empty")
            else:
                label = given
        pair = None if self.text_pair is None else values[self.text_pair]
        groups = {c: str(values[c]) for c in self.group_by}
        if not is_utf8(values[text], pair or "", label or "", *groups.values()):
            return Malformed(row.line, "the text is not valid UTF-8")
        return Example(values[text], pair, label, groups, row.line, labels, str(self.path))


def _labels(value: Any, separator: str | None) -> str | tuple[str, ...] | None:
    """One label, or all of them where there may be several; None for what is no label."""
    if isinstance(value, list):
        if not all(isinstance(label, str | int | float) for label in value):
            return None
        return tuple(str(label).strip() for label in value)
    if not isinstance(value, str | int | float):
        return None
    if separator is None:
        return str(value).strip()
    return tuple(label.strip() for label in str(value).split(separator) if label.strip())


def read_examples(
    path: str | Path,
    *,
    format: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    label_separator: str | None = None,
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
        label_separator=label_separator,
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


def draw(examples: Iterable[L], rows: int | None, group: str | None) -> list[L]:
    """The first `rows` examples (all: None); with a column `group` spread evenly over its values.

    Every group gives its first examples, the same number as the others; what a small group cannot give is shared by
    the rest, and an odd remainder goes to the groups that come first by name. The order is that of the file, and the
    choice depends on nothing but the file. Raises DataError where there are more groups than rows.
    """
    if rows is None or group is None:
        return list(islice(examples, rows))
    kept: dict[str, list[tuple[int, L]]] = {}
    for place, example in enumerate(examples):
        members = kept.setdefault(example.groups[group], [])
        if len(members) < rows:  # no group can give more
            members.append((place, example))
        if len(kept) > rows:
            raise DataError(
                f"the column {group!r} has more than {rows} values, so {rows} rows cannot be spread over them",
                "name a column of few values, such as a language, or raise rows",
            )
    chosen: list[tuple[int, L]] = []
    waiting = sorted(kept)
    while waiting and len(chosen) < rows:
        share, odd = divmod(rows - len(chosen), len(waiting))
        for position, name in enumerate(waiting):
            give = share + (position < odd)
            chosen += kept[name][:give]
            kept[name] = kept[name][give:]
        waiting = [name for name in waiting if kept[name]]
    return [example for _, example in sorted(chosen, key=lambda pair: pair[0])]
