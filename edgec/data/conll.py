"""Sentences with a tag a word: CoNLL columns, and CoNLL-U.

    conll    a word and its tags on a line, parted by tabs, or else by spaces; a blank line ends a sentence. Lines that
             begin with -DOCSTART- are passed over. Comments stand before a sentence and begin with "# ", where the
             first line of the file is one: a word may itself be "#".
    conllu   ten columns as in Universal Dependencies; ranges (1-2) and empty nodes (1.1) are no words

Only a line feed ends a line, and only tabs and spaces part columns: words hold all sorts of other characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TextIO

from edgec.data.examples import Tagged
from edgec.data.files import DataFile, Malformed, OnError, is_utf8, opened
from edgec.errors import DataError

UNIVERSAL_TAGS: Final = {"upos": 3, "xpos": 4}

_COMMENT: Final = re.compile(r"# (id\b|[\w.:-]+ =)")
_META: Final = re.compile(r"#\s*(.+?)\s*=\s*(.*)")
_WORD_ID, _OTHER_ID = re.compile(r"\d+"), re.compile(r"\d+-\d+|\d+\.\d+")

Block = list[tuple[int, str]]
"""The lines between two blank ones, each with its number."""


class Columns(DataFile[Tagged]):
    """The sentences of a file of columns.

    word, tag: their columns, by number from 0, or from the end with -1. `repaired` counts the I- tags that follow no
    tag of their type; they are read as B-, which is where a span begins for every scorer. A sentence with a malformed
    line is malformed as a whole.
    """

    def __init__(
        self, path: str | Path, *, word: str | None = None, tag: str | None = None, on_error: OnError = "raise"
    ) -> None:
        super().__init__(path, on_error=on_error)
        self.word, self.tag = (self._number(column) for column in (word or "0", tag or "-1"))

    def _rows(self) -> Iterator[Tagged | Malformed]:
        columns, commented = 0, False
        with opened(self.path) as stream:
            for block in _blocks(stream):
                block = [(number, line) for number, line in block if not line.startswith("-DOCSTART-")]
                if not block:
                    continue
                if not columns:
                    columns = len(_fields(next((line for _, line in block if not line.startswith("# ")), block[0][1])))
                    commented = _is_comment(block[0][1], columns)
                    self._check(columns)
                while commented and block and _is_comment(block[0][1], columns):
                    del block[0]
                if block:
                    yield self._sentence(block, columns)

    def _sentence(self, block: Block, columns: int) -> Tagged | Malformed:
        words, tags = [], []
        for number, line in block:
            fields = _fields(line)
            if len(fields) != columns:
                return Malformed(number, f"{len(fields)} fields, where there are {columns} columns")
            word, tag = fields[self.word].strip(" "), fields[self.tag].strip(" ")
            if not word or not tag:
                return Malformed(number, "the word is empty" if not word else "the tag is empty")
            if not is_utf8(word, tag):
                return Malformed(number, "the text is not valid UTF-8")
            words.append(word)
            tags.append(tag)
        repaired = repair(tags)
        self.repaired += sum(a != b for a, b in zip(tags, repaired, strict=True))
        return Tagged(tuple(words), tuple(repaired), line=block[0][0], path=str(self.path))

    def _number(self, column: str) -> int:
        if column.removeprefix("-").isdecimal():
            return int(column)
        raise DataError(
            f"{self.path}: there is no column {column!r}: columns of the format conll go by number",
            "the first is 0, the last is -1",
        )

    def _check(self, columns: int) -> None:
        for column in (self.word, self.tag):
            if not -columns <= column < columns:
                raise DataError(
                    f"{self.path}: there is no column {column}",
                    f"a line has {columns} columns, numbered from 0 to {columns - 1}",
                )
        if self.word % columns == self.tag % columns:
            raise DataError(
                f"{self.path}: the word and the tag would be the same column, {self.word % columns}",
                f"a line has {columns} columns, parted by tabs or spaces; name two of them",
            )


class Universal(DataFile[Tagged]):
    """The sentences of a CoNLL-U file. tag: "upos" or "xpos". group_by: comments `# NAME = value` of the sentence."""

    def __init__(
        self,
        path: str | Path,
        *,
        tag: str | None = None,
        group_by: Sequence[str] = (),
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(path, on_error=on_error)
        self.tag = tag or "upos"
        self.group_by = tuple(group_by)
        if self.tag not in UNIVERSAL_TAGS:
            raise DataError(f"{self.path}: there is no tag {self.tag!r} in CoNLL-U", "the tags are upos and xpos")

    def _rows(self) -> Iterator[Tagged | Malformed]:
        with opened(self.path) as stream:
            for block in _blocks(stream):
                sentence = self._sentence(block)
                if sentence is not None:
                    yield sentence

    def _sentence(self, block: Block) -> Tagged | Malformed | None:
        words, tags = [], []
        comments: dict[str, str] = {}
        for number, line in block:
            if line.startswith("#"):
                if found := _META.fullmatch(line):
                    comments[found[1]] = found[2]
                continue
            fields = line.split("\t")
            if len(fields) != 10:
                return Malformed(number, f"{len(fields)} fields, where CoNLL-U has 10")
            if _OTHER_ID.fullmatch(fields[0]):
                continue
            word, tag = fields[1], fields[UNIVERSAL_TAGS[self.tag]]
            if not _WORD_ID.fullmatch(fields[0]):
                return Malformed(number, f"{fields[0]!r} is no number of a word")
            if not word.strip() or tag in ("", "_"):
                return Malformed(number, "the word is empty" if not word.strip() else f"the word has no {self.tag}")
            words.append(word)
            tags.append(tag)
        if not words:  # comments alone, such as those of a whole document
            return None
        begin = block[0][0]
        missing = [name for name in self.group_by if name not in comments]
        if missing:
            return Malformed(begin, f"the sentence has no comment '# {missing[0]} = ...'")
        groups = {name: comments[name] for name in self.group_by}
        if not is_utf8(*words, *tags, *groups.values()):
            return Malformed(begin, "the text is not valid UTF-8")
        return Tagged(tuple(words), tuple(tags), groups, begin, str(self.path))


def repair(tags: Sequence[str]) -> list[str]:
    """Tags in which every I- continues a span of its type: one that follows none becomes B-."""
    result: list[str] = []
    before = "O"
    for tag in tags:
        begins = tag.startswith("I-") and before.partition("-")[2] != tag[2:]
        result.append(f"B-{tag[2:]}" if begins else tag)
        before = tag
    return result


def _blocks(stream: TextIO) -> Iterator[Block]:
    block: Block = []
    for number, line in enumerate(stream, 1):
        line = line.rstrip("\r\n")
        if line.strip(" \t"):
            block.append((number, line))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _fields(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else [field for field in line.split(" ") if field]


def _is_comment(line: str, columns: int) -> bool:
    return line.startswith("# ") and (len(_fields(line)) != columns or _COMMENT.match(line) is not None)
