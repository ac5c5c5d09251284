"""Several labels in a cell, parquet, and pairs from two files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from data_files import write
from pyarrow import parquet

from edgec.data.parallel import Pairs
from edgec.data.readers import read_examples
from edgec.data.tables import PARQUET_BATCH
from edgec.errors import DataError


def test_several_labels_in_a_cell(tmp_path: Path) -> None:
    path = write(tmp_path, "d.tsv", "text\tlabel\na\tred; blue\nb\t\nc\tred\n")
    found = list(read_examples(path, label="label", label_separator=";"))
    assert [one.labels for one in found] == [("red", "blue"), (), ("red",)]
    assert [one.label for one in found] == ["red|blue", "", "red"]
    with pytest.raises(DataError, match=":3: 'label' is empty"):
        list(read_examples(path, label="label"))


def test_a_list_of_labels(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": ["red", 2]}, {"text": "b", "label": []}, {"text": "c", "label": "one"}]
    path = write(tmp_path, "d.jsonl", "\n".join(map(json.dumps, rows)))
    assert [one.labels for one in read_examples(path, label="label")] == [("red", "2"), (), None]
    bad = write(tmp_path, "bad.jsonl", '{"text": "a", "label": [{}]}')
    with pytest.raises(DataError, match="neither a text nor a number"):
        list(read_examples(bad, label="label"))


def parquet_file(folder: Path, **columns: list[Any]) -> Path:
    path = folder / "d.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet(tmp_path: Path) -> None:
    count = PARQUET_BATCH + 3
    path = parquet_file(
        tmp_path, text=[f"text {i}" for i in range(count)], label=[i % 3 for i in range(count)], lang=["de"] * count
    )
    found = list(read_examples(path, label="label", group_by=["lang"]))
    assert [one.text for one in found] == [f"text {i}" for i in range(count)]
    assert [one.label for one in found] == [str(i % 3) for i in range(count)]
    assert found[-1].groups == {"lang": "de"} and found[-1].line == count


def test_a_column_that_is_named_twice_or_not_there(tmp_path: Path) -> None:
    for name, sign in (("d.csv", ","), ("d.tsv", "\t")):
        file = write(tmp_path, name, sign.join(("text", "text", "label")).encode() + b"\n")
        with pytest.raises(DataError, match=rf"{name}:1: the header names the column 'text' twice"):
            list(read_examples(file, label="label"))
    file = write(tmp_path, "d.jsonl", b'{"text": "a", "label": 1}\n{"txt": "b", "label": 1}\n')
    with pytest.raises(DataError, match=r"d\.jsonl:2: 'text' is missing"):
        list(read_examples(file, label="label"))


def test_malformed_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet_file(tmp_path, text=["a", None], label=[["x", "y"], []])
    rows = read_examples(path, label="label", on_error="skip")
    assert [one.labels for one in rows] == [("x", "y")] and rows.skipped == 1
    with pytest.raises(DataError, match=r"d\.parquet:2: 'text' is not a text"):
        list(read_examples(path))
    with pytest.raises(DataError, match="no column 'words'") as caught:
        list(read_examples(path, text="words"))
    assert "text, label" in caught.value.hint
    broken = write(tmp_path, "broken.parquet", path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"broken\.parquet: is not a parquet file"):
        list(read_examples(broken))
    with pytest.raises(DataError, match="no such file"):
        list(read_examples(tmp_path / "gone.parquet"))
    with pytest.raises(DataError, match="packed inside"):
        list(read_examples(write(tmp_path, "d.parquet.gz", b"x")))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="pyarrow, which is not installed") as caught:
        list(read_examples(path))
    assert caught.value.hint == 'pip install "edgec[parquet]"'


def test_pairs_of_two_files(tmp_path: Path) -> None:
    one = write(tmp_path, "a.de", "eins\n\nzwei\u2028drei\r\nvier")
    two = write(tmp_path, "a.en.gz", "one\n\ntwo three\nfour\n")
    assert [pair.request for pair in Pairs(one, two)] == [
        ("eins", "one"),
        ("zwei\u2028drei", "two three"),
        ("vier", "four"),
    ]


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    one, two = write(tmp_path, "a.de", "eins\nzwei\ndrei\n"), write(tmp_path, "a.en", "one\ntwo\n")
    with pytest.raises(DataError, match=r"a\.de has 3 lines, and .*a\.en has 2"):
        next(iter(Pairs(one, two, on_error="skip")))
    hole = write(tmp_path, "hole.en", "one\n\nthree\n")
    with pytest.raises(DataError, match=r"a\.de:2: the line is empty in .*hole\.en alone"):
        list(Pairs(one, hole))
    pairs = Pairs(one, hole, on_error="skip")
    assert ([pair.text for pair in pairs], pairs.skipped) == (["eins", "drei"], 1)
