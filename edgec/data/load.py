"""The rows that a recipe's `data` or a command names: of one file or several, of any format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from edgec.data.conll import Columns, Universal
from edgec.data.examples import Labelled, Question, Tagged, Text
from edgec.data.files import DataFile, OnError
from edgec.data.parallel import Pairs
from edgec.data.readers import Examples, Sample, draw
from edgec.data.squad import Questions
from edgec.errors import DataError
from edgec.formats import FILE_COLUMN, SENTENCES, format_of
from edgec.recipe_data import LabelledData, TextData

Files = str | Path | Mapping[str, str | Path]
"""One file, or several by name."""


@dataclass(frozen=True)
class Rows:
    """Labelled rows. skipped: malformed ones that were passed over; repaired: tags that were put right."""

    examples: tuple[Labelled, ...]
    skipped: int = 0
    repaired: int = 0


def read_labelled(data: LabelledData) -> Rows:
    """The rows that `data` names. Raises DataError, naming file and line."""
    return read_rows(
        data.paths or data.path,
        format=data.format,
        text=data.text_column,
        text_pair=data.text_pair_column,
        label=data.label_column,
        label_separator=data.label_separator,
        group_by=() if data.group_column is None else (data.group_column,),
        rows=data.rows,
        first_row=data.first_row,
        on_error=data.on_error,
    )


def read_sample(data: TextData) -> Sample:
    """The texts that `data` names, or pairs, with their groups.

    Words of tagged sentences are joined by spaces; a question and its context are a pair.
    """
    examples = read_rows(
        data.paths or data.path,
        format=data.format,
        text=data.text_column,
        text_pair=data.text_pair_column,
        label=_tag_column(data),
        group_by=() if data.group_column is None else (data.group_column,),
        rows=data.rows,
        first_row=data.first_row,
        on_error=data.on_error if isinstance(data, LabelledData) else "raise",
    ).examples
    groups = () if data.group_column is None else (example.groups[data.group_column] for example in examples)
    return Sample(tuple(_text(example) for example in examples), tuple(groups))


def read_unlabelled(data: TextData) -> tuple[Text, ...]:
    """The texts that `data` names, or pairs. Of questions the contexts, each once."""
    if data.known_format != "squad":
        return read_sample(data).texts
    every = read_sample(replace(data, rows=None, first_row=0))
    contexts = dict.fromkeys(pair[1] for pair in every.texts)
    return tuple(islice(contexts, data.first_row, None if data.rows is None else data.first_row + data.rows))


def read_rows(
    files: Files,
    *,
    format: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    label_separator: str | None = None,
    group_by: Sequence[str] = (),
    rows: int | None = None,
    first_row: int = 0,
    on_error: OnError = "raise",
) -> Rows:
    """The rows of one file, or of several by name; those then have the column "file".

    rows: the first ones, spread evenly over the values of the first column of `group_by`, or else over the files.
    first_row: how many of each file are passed over before. The rest: see edgec.data.readers, conll, squad, parallel.
    """
    named = {name: Path(path) for name, path in files.items()} if isinstance(files, Mapping) else {}
    path = next(iter(named.values())) if named else Path(str(files))
    columns: dict[str, Any] = {"text": text, "text_pair": text_pair, "label": label, "label_separator": label_separator}
    if format == "parallel":
        if len(named) != 2:
            raise DataError("format parallel needs two files by name", "give NAME: FILE twice")
        _no_columns("parallel", path, **columns, group_by=next(iter(group_by), None))
        readers: list[DataFile[Any]] = [Pairs(*named.values(), on_error=on_error)]
        examples = draw(_rows_of(readers[0], first_row), rows, None)
    else:
        by_file = {
            name: _reader(
                file,
                format,
                **columns,
                group_by=tuple(by for by in group_by if not (named and by == FILE_COLUMN)),
                on_error=on_error,
            )
            for name, file in (named or {"": path}).items()
        }
        readers = list(by_file.values())
        group = next(iter(group_by), FILE_COLUMN if named else None)
        examples = draw(_rows_of_all(by_file, first_row, named=bool(named)), rows, group)
    return Rows(tuple(examples), sum(reader.skipped for reader in readers), sum(reader.repaired for reader in readers))


def _reader(
    path: Path,
    format: str | None,
    *,
    text: str | None,
    text_pair: str | None,
    label: str | None,
    label_separator: str | None,
    group_by: tuple[str, ...],
    on_error: OnError,
) -> DataFile[Any]:
    kind = format_of(path, format)
    if kind == "conll":
        _no_columns(
            kind, path, text_pair=text_pair, label_separator=label_separator, group_by=next(iter(group_by), None)
        )
        return Columns(path, word=text, tag=label, on_error=on_error)
    if kind == "conllu":
        _no_columns(kind, path, text=text, text_pair=text_pair, label_separator=label_separator)
        return Universal(path, tag=label, group_by=group_by, on_error=on_error)
    if kind == "squad":
        _no_columns(kind, path, text=text, text_pair=text_pair, label=label, label_separator=label_separator)
        return Questions(path, group_by=group_by, on_error=on_error)
    return Examples(
        path,
        format=kind,
        text=text,
        text_pair=text_pair,
        label=label,
        label_separator=label_separator,
        group_by=group_by,
        on_error=on_error,
    )


def _no_columns(kind: str, path: Path, **given: str | None) -> None:
    for option, column in given.items():
        if column is not None:
            raise DataError(
                f"{path}: there is no column {column!r} for {option.replace('_', ' ')} in the format {kind}",
                "leave it out; docs/evaluate.md says what each format has",
            )


def _rows_of_all(readers: Mapping[str, DataFile[Any]], first_row: int, *, named: bool) -> Iterator[Any]:
    for name, reader in readers.items():
        for example in _rows_of(reader, first_row):
            yield replace(example, groups={**example.groups, FILE_COLUMN: name}) if named else example


def _rows_of(reader: DataFile[Any], first_row: int) -> Iterator[Any]:
    count = 0
    for count, example in enumerate(reader, 1):
        if count > first_row:
            yield example
    if count <= first_row:
        raise DataError(f"{reader.path}: first_row is {first_row}, and the file has {count} rows", "lower first_row")


def _tag_column(data: TextData) -> str | None:
    """The tags' column, which a reader of sentences looks at also where only the words are wanted."""
    return data.label_column if isinstance(data, LabelledData) and data.known_format in SENTENCES else None


def _text(example: Labelled) -> Text:
    if isinstance(example, Question):
        return example.question, example.context
    return example.text if isinstance(example, Tagged) else example.request
