"""Data files of `edgec evaluate`: the error names the file and the line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from edgec_command import assert_refused, edgec

CASES = {
    "missing column": (b"text,answer\nAda,neutral\n", "data.csv: there is no column 'label'"),
    "unknown label": (b"text,label\nAda,neutral\nBern,gloomy\n", "data.csv:3: the model has no label 'gloomy'"),
    "number beyond": (b"text,label\nAda,0\nBern,7\n", "data.csv:3: the model has no label '7'"),
    "empty label": (b"text,label\nAda,\n", "data.csv:2: 'label' is empty"),
    "malformed line": (b"text,label\nAda,neutral\nBern\n", "data.csv:3: 1 field"),
    "open quote": (b'text,label\n"Ada,neutral\n', "data.csv:2: unexpected end of data"),
    "not UTF-8": (b"text,label\nZ\xfcrich,neutral\n", "data.csv:2: the text is not valid UTF-8"),
    "binary": (bytes(range(256)) * 4, "data.csv"),
    "empty": (b"", "data.csv: the file has no rows"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_data(case: str, bundles: Path, tmp_path: Path) -> None:
    content, told = CASES[case]
    (tmp_path / "data.csv").write_bytes(content)
    command = ["evaluate", bundles / "classification", "--data", "data.csv"]
    assert_refused(edgec(*command, cwd=tmp_path, torch=False), 2, told)


def test_missing_file_and_folder(bundles: Path, tmp_path: Path) -> None:
    for data, told in ("gone.csv", "gone.csv: there is no such file"), (tmp_path, "the name does not tell the format"):
        done = edgec("evaluate", bundles / "classification", "--data", data, cwd=tmp_path)
        assert_refused(done, 2, told)


def test_score_that_is_no_number(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b,score\nAda,Bern,0.5\nAda,Cara,high\n")
    command = ["evaluate", bundles / "embedding", "--data", "data.csv", "--text", "a"]
    assert_refused(edgec(*command, cwd=tmp_path), 2, "--text-pair")
    done = edgec(*command, "--text-pair", "b", cwd=tmp_path)
    assert_refused(done, 2, "data.csv:3: the score 'high' is not a number")


SQUAD = '{"data": [{"paragraphs": [{"context": "Ada walked", "qas": [%s]}]}]}'
OTHERS = {
    "no tag": ("tags", "data.conll", b"Ada B-PER\n\nwalked\n", "data.conll:3: 1 fields, where there are 2 columns"),
    "unknown tag": ("tags", "data.conll", b"Ada B-PER\n\nx O\nBern B-CITY\n", "data.conll:3: the model has no label"),
    "words alone": ("tags", "data.conll", b"Ada\nwalked\n", "the word and the tag would be the same column, 0"),
    "nine columns": ("tags", "data.conllu", b"# sent_id = 1\n1\tAda\tAda\tPROPN\n", "data.conllu:2: 4 fields"),
    "cut off": ("tags", "data.conll.gz", gzip.compress(b"Ada O\n" * 9999)[:60], "data.conll.gz: cannot be unpacked"),
    "no sentence": ("tags", "data.conll", b"\n\n", "data.conll: the file has no rows"),
    "a table of words": ("tags", "data.csv", b"text,label\nAda,O\n", "data.csv: token-classification is not scored on"),
    "no format": ("tags", "data.bio", b"Ada O\n", "data.bio: the name does not tell the format"),
    "wrong offset": (
        "answers",
        "data.json",
        (SQUAD % '{"id": "7", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 4}]}').encode(),
        "data.json: the question 7 (data[0].paragraphs[0].qas[0]): its answer 'Ada' is not at character 4",
    ),
    "not JSON": ("answers", "data.json", b'{"data":\n[', "data.json:2: is not JSON"),
    "no questions": ("answers", "data.json", (SQUAD % "").encode(), "data.json: the file has no rows"),
    "no SQuAD": ("answers", "data.json", b"[1]", "data.json: is not in the form of SQuAD"),
    "no parquet": ("classification", "data.parquet", b"PAR1", "data.parquet: is not a parquet file"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_bad_data_of_other_formats(case: str, bundles: Path, tmp_path: Path) -> None:
    bundle, name, content, told = OTHERS[case]
    (tmp_path / name).write_bytes(content)
    done = edgec("evaluate", bundles / bundle, "--data", name, cwd=tmp_path, torch=False)
    assert_refused(done, 2, told)


def test_columns_and_files_that_do_not_fit(bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("Ada B-PER\n")
    command = ["evaluate", bundles / "tags", "--data"]
    for more, told in [
        (["a.conll", "--label", "ner"], "there is no column 'ner'"),
        (["a.conll", "--label", "2"], "there is no column 2"),
        (["a.conll", "--group-by", "lang"], "there is no column 'lang'"),
        (["a.conll", "--first-row", "1"], "first_row is 1, and the file has 1 rows"),
        (["a.conll", "--format", "brat"], "unknown data format 'brat'"),
        (["x=a.conll", "--data", "a.conll"], "--data a.conll: several files need names"),
        (["x=a.conll", "--data", "x=a.conll"], "the name 'x' comes twice"),
        (["x=a.conll", "--data", "y=b.conll"], "b.conll: there is no such file"),
    ]:
        assert_refused(edgec(*command, *more, cwd=tmp_path), 2, told)


def test_json_that_cannot_be_written(bundles: Path, tmp_path: Path, read_only: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\nAda,neutral\n")
    command = ["evaluate", bundles / "classification", "--data", "data.csv", "--json", read_only / "found.json"]
    assert_refused(edgec(*command, cwd=tmp_path), 3, str(read_only / "found.json"), "read-only")
