"""The formats of data files: which suffix tells which, and what a row of each is. docs/evaluate.md describes them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgec.errors import DataError

TABLES: Final = ("csv", "tsv", "jsonl", "parquet")
"""Rows have named columns."""

SENTENCES: Final = ("conll", "conllu")
"""A row is a sentence with a tag a word."""

LABELLED: Final = (*SENTENCES, "squad")
"""Labels are part of the format; no column has to be named for them."""

FORMATS: Final = ("text", *TABLES, "parallel", *SENTENCES, "squad")

SUFFIXES: Final = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".parquet": "parquet",
    ".conll": "conll",
    ".conllu": "conllu",
    ".json": "squad",
}

FILE_COLUMN: Final = "file"
"""Where a recipe or a command names several files, each row has this column with the name of its own."""


def told_by_name(path: str | Path) -> str | None:
    """The format that a file's suffix tells, `.gz` left out; None where it tells none."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def format_of(path: str | Path, format: str | None = None) -> str:
    """The format by name, or by the suffix of the file. Raises DataError where there is none."""
    if format is not None:
        if format not in FORMATS:
            raise DataError(f"unknown data format {format!r}", f"the formats are {', '.join(FORMATS)}")
        return format
    told = told_by_name(path)
    if told is None:
        raise DataError(
            f"{path}: the name does not tell the format",
            f"name it (--format, format=): {', '.join(FORMATS)}; or use a suffix: {', '.join(SUFFIXES)}",
        )
    return told
