"""The rows that a recipe's data names: of one file or several, a part of them, spread over groups."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from data_files import write

from edgec.data.load import read_labelled, read_rows, read_sample, read_unlabelled
from edgec.data.readers import Sample
from edgec.errors import DataError
from edgec.recipe import EvaluationData, LabelledData, TextData


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Ten sentences of one language, three of another."""
    return {
        name: write(tmp_path, f"{name}.conll", "\n".join(f"{name}{i} I-X\nof O\n" for i in range(count)))
        for name, count in (("hau", 10), ("swa", 3))
    }


def several(files: dict[str, Path], **options: Any) -> LabelledData:
    return LabelledData({name: path.name for name, path in files.items()}, paths=files, **options)


def first_words(data: LabelledData) -> list[str]:
    return [one.words[0] for one in read_labelled(data).examples]  # type: ignore[union-attr]


def test_one_file(files: dict[str, Path]) -> None:
    found = read_labelled(LabelledData("hau.conll", path=files["hau"], rows=4))
    assert [one.text for one in found.examples] == [f"hau{i} of" for i in range(4)]  # type: ignore[union-attr]
    assert (found.skipped, found.repaired) == (0, 4)
    assert found.examples[0].groups == {}


def test_rows_of_several_files_know_theirs(files: dict[str, Path]) -> None:
    found = read_labelled(several(files))
    assert Counter(one.groups["file"] for one in found.examples) == {"hau": 10, "swa": 3}
    assert {one.path for one in found.examples} == {str(path) for path in files.values()}
    assert found.repaired == 13


@pytest.mark.parametrize("group", [None, "file"])
def test_rows_are_spread_over_the_files(files: dict[str, Path], group: str | None) -> None:
    assert first_words(several(files, rows=4, group_column=group)) == ["hau0", "hau1", "swa0", "swa1"]
    assert len(first_words(several(files, rows=9, group_column=group))) == 9


def test_a_part_of_a_file(files: dict[str, Path]) -> None:
    one = LabelledData("hau.conll", path=files["hau"], rows=4, first_row=4)
    assert first_words(one) == ["hau4", "hau5", "hau6", "hau7"]
    assert first_words(several(files, first_row=2, rows=3)) == ["hau2", "hau3", "swa2"]
    with pytest.raises(DataError, match=r"swa\.conll: first_row is 3, and the file has 3 rows"):
        read_labelled(several(files, first_row=3))


def test_columns_of_a_table_group_several_files(tmp_path: Path) -> None:
    paths = {
        name: write(tmp_path, f"{name}.csv", f"text,label,kind\n{name}1,x,a\n{name}2,y,b\n{name}3,x,a\n")
        for name in ("p", "q")
    }
    found = read_rows(paths, text="text", label="label", group_by=["kind", "file"], rows=4)
    assert [(one.text, one.groups) for one in found.examples] == [  # type: ignore[union-attr]
        ("p1", {"kind": "a", "file": "p"}),
        ("p2", {"kind": "b", "file": "p"}),
        ("p3", {"kind": "a", "file": "p"}),
        ("q2", {"kind": "b", "file": "q"}),
    ]


def test_what_is_skipped_is_counted_over_all_files(tmp_path: Path) -> None:
    paths = {name: write(tmp_path, f"{name}.conll", "a O\n\nb\n\nc O\n") for name in ("p", "q")}
    assert read_labelled(several(paths, on_error="skip")).skipped == 2
    with pytest.raises(DataError, match=r"p\.conll:3: "):
        read_labelled(several(paths))
    empty = {**paths, "r": write(tmp_path, "r.conll", "")}
    with pytest.raises(DataError, match=r"r\.conll: the file has no rows"):
        read_labelled(several(empty, on_error="skip"))


SQUAD = json.dumps(
    {
        "data": [
            {
                "title": title,
                "paragraphs": [
                    {"context": f"{title} {p}", "qas": [{"question": f"{title}{p}{q}?", "answers": []} for q in "xy"]}
                    for p in range(2)
                ],
            }
            for title in "TU"
        ]
    }
)


def test_texts_of_every_format(tmp_path: Path, files: dict[str, Path]) -> None:
    questions = TextData("d.json", path=write(tmp_path, "d.json", SQUAD), rows=3)
    assert read_sample(questions).texts == (("T0x?", "T 0"), ("T0y?", "T 0"), ("T1x?", "T 1"))
    assert read_unlabelled(questions) == ("T 0", "T 1", "U 0")
    assert read_unlabelled(TextData("d.json", path=questions.path, first_row=3)) == ("U 1",)
    by_title = read_sample(TextData("d.json", path=questions.path, rows=2, group_column="title"))
    assert by_title == Sample((("T0x?", "T 0"), ("U0x?", "U 0")), ("T", "U"))
    sentences = TextData({"swa": "swa.conll"}, paths={"swa": files["swa"]}, group_column="file")
    assert read_sample(sentences) == Sample(("swa0 of", "swa1 of", "swa2 of"), ("swa",) * 3)
    other = write(tmp_path, "swa.txt", "1\n2\n3\n")
    same = {"a": other, "b": other}
    pairs = TextData({"a": "swa.txt", "b": "swa.txt"}, format="parallel", paths=same, rows=2, first_row=1)
    assert read_unlabelled(pairs) == (("2", "2"), ("3", "3"))


def test_the_tags_of_evaluation_texts_are_those_it_names(tmp_path: Path) -> None:
    path = write(tmp_path, "d.conllu", "\t".join(["1", "a", "_", "_", "NN", *"_____"]) + "\n")
    assert read_sample(EvaluationData("d.conllu", path=path, label_column="xpos")).texts == ("a",)
    with pytest.raises(DataError, match="has no upos"):
        read_sample(EvaluationData("d.conllu", path=path))


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("d.conll", {"text_pair": "1"}, "no column '1' for text pair in the format conll"),
        ("d.conll", {"group_by": ["lang"]}, "no column 'lang' for group by in the format conll"),
        ("d.conllu", {"text": "form"}, "no column 'form' for text in the format conllu"),
        ("d.json", {"label": "answer"}, "no column 'answer' for label in the format squad"),
        ("d.json", {"group_by": ["lang"]}, "no column 'lang'"),
        ("d.json", {"label_separator": "|"}, "no column '|' for label separator"),
        ("d.txt", {"format": "parallel"}, "parallel needs two files"),
        ("d.xls", {}, "does not tell the format"),
        ("d.txt", {"format": "xls"}, "unknown data format 'xls'"),
    ],
)
def test_columns_that_a_format_does_not_have(tmp_path: Path, name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(write(tmp_path, name, "a O\n"), **options)
    assert told in caught.value.message
