"""Rows with named columns: csv, tsv, jsonl, parquet, and plain text as a table of one column.

    csv      header, quoting as in RFC 4180
    tsv      header, fields parted by tabs and taken literally: a quotation mark is a character like any other
    jsonl    one object a line
    parquet  read in batches by pyarrow
    text     one text a line; empty lines are passed over

Columns go by name. Numbers count columns from 0 and say that a csv or tsv file has no header.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from edgec.data.files import is_gzip, opened, readable
from edgec.errors import DataError

DEFAULT_TEXT: Final = "text"
PARQUET_BATCH: Final = 1024


@dataclass(frozen=True)
class Row:
    """What stands in a line: its values by column, or the problem with it. In parquet a line is a row, from 1."""

    line: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


def table_rows(path: Path, format: str, named: Sequence[str]) -> Iterator[Row]:
    """The rows of a file. named: the columns that the caller asks for."""
    if format == "parquet":
        yield from _parquet_rows(path)
        return
    with opened(path, newline="" if format == "csv" else "\n") as stream:
        yield from _READERS[format](stream, named)


def _csv_rows(stream: TextIO, named: Sequence[str]) -> Iterator[Row]:
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


def _tsv_rows(stream: TextIO, named: Sequence[str]) -> Iterator[Row]:
    lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(stream, 1))
    return _table(((number, line.split("\t") if line else []) for number, line in lines), named)


def _table(lines: Iterator[tuple[int, list[str] | str]], named: Sequence[str]) -> Iterator[Row]:
    """Rows under a header, or under column numbers. A line is its fields, or the problem with it."""
    header: list[str] | None = None
    for number, fields in lines:
        if not fields:
            continue
        if isinstance(fields, str):
            yield Row(number, problem=fields)
            continue
        if header is None:
            if not named or not all(name.isdecimal() for name in named) or set(named) <= set(fields):
                header = fields
                if twice := [name for place, name in enumerate(fields) if name in fields[:place]]:
                    yield Row(number, problem=f"the header names the column {twice[0]!r} twice")
                    return
                continue
            header = [str(column) for column in range(len(fields))]
        if len(fields) == len(header):
            yield Row(number, dict(zip(header, fields, strict=True)))
        else:
            yield Row(number, problem=f"{len(fields)} fields, where there are {len(header)} columns")


def _jsonl_rows(stream: TextIO, named: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(number, problem=f"not JSON: {error}")
            continue
        if isinstance(values, dict):
            yield Row(number, values)
        else:
            yield Row(number, problem="not a JSON object")


def _text_rows(stream: TextIO, named: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        if text := line.rstrip("\r\n"):
            yield Row(number, {DEFAULT_TEXT: text})


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path}: parquet files are read by pyarrow, which is not installed", 'pip install "edgec[parquet]"'
        ) from None
    if is_gzip(path):
        raise DataError(f"{path}: a parquet file is packed inside, and read as it is", "unpack the file")
    with readable(path):
        try:
            with parquet.ParquetFile(path) as file:
                number = 0
                for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(number, values)
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: is not a parquet file: {error}", "fetch the file again") from None


_READERS: Final[Mapping[str, Callable[[TextIO, Sequence[str]], Iterator[Row]]]] = {
    "csv": _csv_rows,
    "tsv": _tsv_rows,
    "jsonl": _jsonl_rows,
    "text": _text_rows,
}
