"""Data files of `edgec evaluate`: the error names the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgec_command import assert_refused, edgec, without_torch

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
    assert_refused(edgec(*command, cwd=tmp_path, env=without_torch(tmp_path)), 2, told)


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


def test_json_that_cannot_be_written(bundles: Path, tmp_path: Path, read_only: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\nAda,neutral\n")
    command = ["evaluate", bundles / "classification", "--data", "data.csv", "--json", read_only / "found.json"]
    assert_refused(edgec(*command, cwd=tmp_path), 3, str(read_only / "found.json"), "read-only")
