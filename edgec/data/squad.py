"""Questions about contexts, from JSON in the form of SQuAD 1.1 and 2.0."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgec.data.examples import Answer, Question
from edgec.data.files import DataFile, Malformed, OnError, is_utf8, opened
from edgec.errors import DataError

COLUMNS = ("title",)


class Questions(DataFile[Question]):
    """The questions of a file. Every answer has to stand in its context at its offset. group_by: "title".

    A question has no answer where `is_impossible` says so, or where its list of answers is empty and nothing is said.
    """

    def __init__(self, path: str | Path, *, group_by: Sequence[str] = (), on_error: OnError = "raise") -> None:
        super().__init__(path, on_error=on_error)
        self.group_by = tuple(group_by)
        for column in self.group_by:
            if column not in COLUMNS:
                raise DataError(f"{self.path}: there is no column {column!r}", "questions have the column title")

    def _rows(self) -> Iterator[Question | Malformed]:
        for a, article in enumerate(articles(self.path)):
            for p, paragraph in enumerate(items(article, "paragraphs")):
                place = f"data[{a}].paragraphs[{p}]"
                context = paragraph.get("context") if isinstance(paragraph, dict) else None
                if not isinstance(context, str) or not is_utf8(context):
                    yield Malformed(0, f"{place} has no context that is a text")
                    continue
                for q, asked in enumerate(items(paragraph, "qas")):
                    yield self._question(asked, context, article, f"{place}.qas[{q}]")

    def _question(self, asked: Any, context: str, article: Any, place: str) -> Question | Malformed:
        if not isinstance(asked, dict) or not isinstance(asked.get("question"), str):
            return Malformed(0, f"{place} has no question that is a text")
        name = str(asked.get("id", place))
        place = f"the question {name} ({place})"
        given, impossible = asked.get("answers"), asked.get("is_impossible")
        answers: list[Answer] = []
        for one in given if isinstance(given, list) and not impossible else ():
            text, start = (one.get("text"), one.get("answer_start")) if isinstance(one, dict) else (None, None)
            if not isinstance(text, str) or type(start) is not int or not text:
                return Malformed(0, f"{place} has an answer without text or answer_start")
            if start < 0 or context[start : start + len(text)] != text:
                return Malformed(0, f"{place}: its answer {text!r} is not at character {start} of the context")
            answers.append(Answer(text, start))
        if impossible is False and not answers:
            return Malformed(0, f"{place} has no answers, and is not said to be impossible")
        if impossible is None and not isinstance(given, list):
            return Malformed(0, f"{place} has no list of answers")
        if not is_utf8(asked["question"], name):
            return Malformed(0, f"{place}: the text is not valid UTF-8")
        groups = {}
        if self.group_by:
            if not isinstance(article.get("title"), str):
                return Malformed(0, f"{place}: its article has no title")
            groups = {"title": article["title"]}
        return Question(name, asked["question"], context, tuple(answers), groups, path=str(self.path))


def articles(path: Path) -> list[Any]:
    """What a file has under `data`. Raises DataError for what is not in the form of SQuAD."""
    with opened(path) as stream:
        try:
            root = json.load(stream)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: is not JSON: {error.msg}", "fetch the file again") from None
        except RecursionError:
            raise DataError(f"{path}: is nested too deeply", "give a file in the form of SQuAD") from None
    found = root.get("data") if isinstance(root, dict) else None
    if not isinstance(found, list):
        raise DataError(
            f"{path}: is not in the form of SQuAD: there is no list `data`",
            'it is {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [...]}]}]}',
        )
    return found


def items(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else [None]
