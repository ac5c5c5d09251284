"""Questions about contexts, from JSON in the form of SQuAD."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_files import write

from edgec.data.examples import Answer
from edgec.data.squad import Questions
from edgec.errors import DataError

CONTEXT = "Ada lives in Bern. 🚂 Cara lives in Egypt."
FIRST = {"id": "a", "question": "Where does Ada live?", "answers": [{"text": "Bern", "answer_start": 13}]}
NONE = {"id": "b", "question": "Where is Zed?", "answers": [], "is_impossible": True, "plausible_answers": [1]}
LAST = {
    "id": "c",
    "question": "Where does Cara live?",
    "answers": [{"text": "Egypt", "answer_start": 35}, {"text": "in Egypt", "answer_start": 32}],
    "is_impossible": False,
}


def file(folder: Path, *asked: Any, name: str = "d.json", **article: Any) -> Path:
    root = {"version": "v2.0", "data": [{"title": "T", **article, "paragraphs": [{"context": CONTEXT, "qas": asked}]}]}
    return write(folder, name, json.dumps(root))


@pytest.mark.parametrize("name", ["d.json", "d.json.gz"])
def test_questions(tmp_path: Path, name: str) -> None:
    path = file(tmp_path, FIRST, NONE, LAST, name=name)
    first, none, last = Questions(path, group_by=["title"])
    assert (first.id, first.question, first.context) == ("a", "Where does Ada live?", CONTEXT)
    assert first.answers == (Answer("Bern", 13),) and none.answers == ()
    assert last.answers == (Answer("Egypt", 35), Answer("in Egypt", 32))
    assert all(CONTEXT[a.start :].startswith(a.text) for a in last.answers)
    assert first.groups == {"title": "T"} and first.path == str(path)


def test_what_is_said_to_be_impossible_has_no_answer(tmp_path: Path) -> None:
    both = {**FIRST, "is_impossible": True}
    nothing_said = {"id": "d", "question": "?", "answers": []}
    assert [one.answers for one in Questions(file(tmp_path, both, nothing_said))] == [(), ()]


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        (
            {**FIRST, "answers": [{"text": "Bern", "answer_start": 12}]},
            r"question a \(data\[0\]\.paragraphs\[0\]\.qas\[1\]\): its answer 'Bern' is not at character 12",
        ),
        ({**FIRST, "answers": [{"text": "Ada", "answer_start": -len(CONTEXT)}]}, "is not at character -"),
        ({**FIRST, "answers": [{"text": "Bern"}]}, "without text or answer_start"),
        ({**FIRST, "answers": [{"text": "", "answer_start": 1}]}, "without text or answer_start"),
        ({**FIRST, "answers": [], "is_impossible": False}, "not said to be impossible"),
        ({"id": "a", "question": "?"}, "has no list of answers"),
        ({"id": "a", "answers": []}, "has no question that is a text"),
        ("a", "has no question that is a text"),
        ({**FIRST, "question": "\ud800"}, "UTF-8"),
    ],
)
def test_a_malformed_question_is_named_or_counted(tmp_path: Path, bad: Any, cause: str) -> None:
    path = file(tmp_path, FIRST, bad, NONE)
    with pytest.raises(DataError, match=cause):
        list(Questions(path))
    reader = Questions(path, on_error="skip")
    assert ([one.id for one in reader], reader.skipped) == (["a", "b"], 1)


def test_what_is_no_squad_at_all(tmp_path: Path) -> None:
    for content, told in [
        ('{"data": [\n{]}', r"d\.json:2: is not JSON"),
        ("", r"d\.json:1: is not JSON"),
        ("[]", "no list `data`"),
        ('{"data": {}}', "no list `data`"),
        ('{"data": []}', "no rows"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"data\[0\]\.paragraphs\[0\] has no context"),
        ('{"data": [{"title": "x"}]}', r"data\[0\]\.paragraphs\[0\] has no context"),
        ('{"data": [{"paragraphs": [{"context": "x"}]}]}', "no question"),
        ("[" * 100_000, "nested too deeply"),
    ]:
        with pytest.raises(DataError, match=told):
            list(Questions(write(tmp_path, "d.json", content)))
    with pytest.raises(DataError, match="no column 'context'"):
        Questions(tmp_path / "d.json", group_by=["context"])
    with pytest.raises(DataError, match="its article has no title"):
        list(Questions(file(tmp_path, FIRST, title=None), group_by=["title"]))
