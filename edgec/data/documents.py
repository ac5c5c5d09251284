"""Documents to be indexed, from text files, folders of them, tables, and SQuAD files.

text     a file is one document
folder   the text files in it and below it, each one document; its id is its path in the folder
table    csv, tsv, jsonl, parquet: a row is a document; columns text, id and title unless named otherwise
squad    a paragraph is a document, titled as its article
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgec_runtime import Document

from edgec.data.files import DataFile, Malformed, OnError, is_utf8, opened
from edgec.data.squad import articles, items
from edgec.data.tables import DEFAULT_TEXT, Row, table_rows
from edgec.errors import DataError
from edgec.formats import TABLES, format_of

TEXT_SUFFIXES: Final = (".txt", ".text", ".md", ".rst")
"""Of the files of a folder that are read."""


@dataclass(frozen=True)
class Columns:
    """Of a table. None: the column of that name, where there is one; for the text also the only one that there is."""

    text: str | None = None
    id: str | None = None
    title: str | None = None


class Documents:
    """The documents of several files and folders, read anew on every iteration.

    `left_out` are files of folders that are no text files, `skipped` counts malformed rows of the last iteration.
    Raises DataError.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        format: str | None = None,
        columns: Columns | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.left_out: list[Path] = []
        self._sources: list[DataFile[Document]] = []
        places = [Path(path) for path in paths]
        for place in places:
            before = place.as_posix() if len(places) > 1 else ""
            if place.is_dir():
                self._sources += [
                    _TextFile(file, "/".join(filter(None, (before, file.relative_to(place).as_posix()))), on_error)
                    for file in self._texts(place)
                ]
            else:
                self._sources.append(_source(place, before or place.name, format, columns or Columns(), on_error))

    def __iter__(self) -> Iterator[Document]:
        for source in self._sources:
            yield from source

    @property
    def skipped(self) -> int:
        return sum(source.skipped for source in self._sources)

    def _texts(self, folder: Path) -> list[Path]:
        inside = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        files = sorted(folder / path for path in inside if not any(part.startswith(".") for part in path.parts))
        texts = [file for file in files if file.suffix.lower() in TEXT_SUFFIXES]
        self.left_out += [file for file in files if file.suffix.lower() not in TEXT_SUFFIXES]
        if not texts:
            raise DataError(
                f"{folder}: there is no text file in this folder",
                f"give one with files that end in {', '.join(TEXT_SUFFIXES)}, or name a table itself",
            )
        return texts


def _source(path: Path, name: str, format: str | None, columns: Columns, on_error: OnError) -> DataFile[Document]:
    kind = "text" if format is None and path.suffix.lower() in TEXT_SUFFIXES else format_of(path, format)
    if kind not in (*TABLES, "text", "squad"):
        raise DataError(f"{path}: {kind} has no passages", f"give text, squad, or a table: {', '.join(TABLES)}")
    if kind not in TABLES and columns != Columns():
        raise DataError(f"{path}: {kind} has no columns", "leave the names of columns out")
    if kind == "text":
        return _TextFile(path, name, on_error)
    if kind == "squad":
        return _Contexts(path, name, on_error)
    return _Table(path, name, kind, columns, on_error)


class _TextFile(DataFile[Document]):
    def __init__(self, path: Path, name: str, on_error: OnError) -> None:
        super().__init__(path, on_error=on_error)
        self.name = name

    def _rows(self) -> Iterator[Document | Malformed]:
        with opened(self.path) as stream:
            text = stream.read()
        if not text.strip():
            yield Malformed(0, "the file is empty")
        elif not is_utf8(text):
            yield Malformed(0, "the text is not valid UTF-8")
        else:
            yield Document(self.name, text, self.path.stem)


class _Table(DataFile[Document]):
    def __init__(self, path: Path, name: str, format: str, columns: Columns, on_error: OnError) -> None:
        super().__init__(path, on_error=on_error)
        self.name, self.format, self.columns = name, format, columns

    def _rows(self) -> Iterator[Document | Malformed]:
        chosen: Columns | None = None
        named = tuple(name for name in (self.columns.text, self.columns.id, self.columns.title) if name is not None)
        for row in table_rows(self.path, self.format, named):
            if row.problem is not None:
                yield Malformed(row.line, row.problem)
                continue
            chosen = chosen or self._chosen(list(row.values), named)
            yield self._document(row, chosen)

    def _chosen(self, columns: list[str], named: Sequence[str]) -> Columns:
        for name in named:
            if name not in columns:
                raise DataError(f"{self.path}: there is no column {name!r}", f"the columns are {', '.join(columns)}")
        only = columns[0] if len(columns) == 1 else None
        text = self.columns.text or (DEFAULT_TEXT if DEFAULT_TEXT in columns else only)
        if text is None:
            raise DataError(
                f"{self.path}: which column holds the text?",
                f"name it (--text, text=); the columns are {', '.join(columns)}",
            )
        id = self.columns.id or ("id" if "id" in columns else None)
        return Columns(text, id, self.columns.title or ("title" if "title" in columns else None))

    def _document(self, row: Row, columns: Columns) -> Document | Malformed:
        text = row.values.get(columns.text or "")
        id = f"{self.name}:{row.line}" if columns.id is None else row.values.get(columns.id)
        title = "" if columns.title is None else row.values.get(columns.title) or ""
        if not isinstance(text, str) or not text.strip():
            return Malformed(row.line, f"{columns.text!r} is not a text, or empty")
        for column, value in ((columns.id, id), (columns.title, title)):
            if isinstance(value, bool) or not isinstance(value, str | int):
                return Malformed(row.line, f"{column!r} is neither a text nor a whole number")
        if id == "":
            return Malformed(row.line, f"{columns.id!r} is empty")
        if not is_utf8(text, str(id), str(title)):
            return Malformed(row.line, "the text is not valid UTF-8")
        return Document(str(id), text, str(title))


class _Contexts(DataFile[Document]):
    def __init__(self, path: Path, name: str, on_error: OnError) -> None:
        super().__init__(path, on_error=on_error)
        self.name = name

    def _rows(self) -> Iterator[Document | Malformed]:
        for a, article in enumerate(articles(self.path)):
            title = article.get("title") if isinstance(article, dict) else None
            named = title if isinstance(title, str) else ""
            for p, paragraph in enumerate(items(article, "paragraphs")):
                context = paragraph.get("context") if isinstance(paragraph, dict) else None
                if isinstance(context, str) and context.strip() and is_utf8(context, named):
                    yield Document(f"{self.name}:{a}.{p}", context, named)
                else:
                    yield Malformed(0, f"data[{a}].paragraphs[{p}] has no context that is a text")
