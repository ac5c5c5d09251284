"""Documents from folders, tables and SQuAD files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from edgec_runtime import Document

from edgec.data.documents import Columns, Documents
from edgec.errors import DataError

ROWS = [("7", "Ada works in Bern.", "Ada"), ("x", 'She said "no".', "")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {
        "b.txt": "second\r\ntext",
        "a.md": "\ufefffirst",
        "sub/c.TXT": "third",
        ".hidden/d.txt": "not read",
        "sub/.e.txt": "not read",
        "picture.png": "no text",
    }.items():
        (tmp_path / "notes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "notes" / name).write_bytes(text.encode())
    return tmp_path / "notes"


def test_a_folder_of_text_files(folder: Path) -> None:
    found = Documents([folder])
    expected = [
        Document("a.md", "first", "a"),
        Document("b.txt", "second\r\ntext", "b"),
        Document("sub/c.TXT", "third", "c"),
    ]
    assert list(found) == list(found) == expected
    assert found.left_out == [folder / "picture.png"]
    alone = Documents([folder / "b.txt"])
    assert [one.id for one in alone] == ["b.txt"]
    several = [one.id for one in Documents([folder / "sub", folder / "b.txt"])]
    assert several == [f"{folder}/sub/c.TXT", f"{folder}/b.txt"]


def write_table(path: Path, header: tuple[str, ...]) -> Path:
    rows = [dict(zip(header, row, strict=False)) for row in ROWS]
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join('"' + value.replace('"', '""') + '"' for value in row) for row in ROWS]
        path.write_text("\n".join([",".join(header), *lines]) + "\n", encoding="utf-8")
    elif path.suffix == ".tsv":
        path.write_text("\n".join("\t".join(row) for row in [header, *ROWS]) + "\n", encoding="utf-8")
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.jsonl.gz"])
def test_tables(name: str, tmp_path: Path) -> None:
    expected = [Document(*row) for row in ROWS]
    assert list(Documents([write_table(tmp_path / name, ("id", "text", "title"))])) == expected
    other = write_table(tmp_path / f"other-{name}", ("key", "body", "head"))
    assert list(Documents([other], columns=Columns("body", "key", "head"))) == expected
    plain = [document.id for document in Documents([other], columns=Columns("body"))]
    assert [id.rpartition(":")[0] for id in plain] == [f"other-{name}"] * 2 and len(set(plain)) == 2


def test_squad_paragraphs_are_titled_as_their_article(tmp_path: Path) -> None:
    file = tmp_path / "dev.json"
    articles = [
        {"title": "Bern", "paragraphs": [{"context": "one", "qas": []}, {"context": "two"}]},
        {"paragraphs": [{"context": "three"}, {"context": 3}]},
    ]
    file.write_text(json.dumps({"data": articles}))
    found = Documents([file], on_error="skip")
    assert list(found) == [
        Document("dev.json:0.0", "one", "Bern"),
        Document("dev.json:0.1", "two", "Bern"),
        Document("dev.json:1.0", "three", ""),
    ]
    assert found.skipped == 1
    with pytest.raises(DataError, match=r"data\[1\]\.paragraphs\[1\] has no context"):
        list(Documents([file]))


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.txt", b" \n", None, "a.txt: the file is empty"),
        ("a.txt", b"caf\xe9", None, "a.txt: the text is not valid UTF-8"),
        ("a.txt", b"text", Columns(text="body"), "text has no columns"),
        ("a.jsonl", b'{"text": ""}\n', None, "a.jsonl:1: 'text' is not a text, or empty"),
        ("a.jsonl", b'{"text": "x", "id": null}\n', None, "a.jsonl:1: 'id' is neither a text nor a whole number"),
        ("a.jsonl", b'{"text": "x", "id": ""}\n', None, "a.jsonl:1: 'id' is empty"),
        ("a.jsonl", b'{"text": "x", "id": 1}\n{"text"\n', None, "a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"body": "x", "key": 1}\n', None, "which column holds the text"),
        ("a.csv", b"text,id\nx,1\n", Columns(title="head"), "there is no column 'head'"),
        ("a.csv", b"text\n", None, "a.csv: the file has no rows"),
        ("a.conllu", b"", None, "conllu has no passages"),
        ("a.xml", b"", None, "the name does not tell the format"),
        ("a.json", b"[]", None, "is not in the form of SQuAD"),
    ],
)
def test_faulty_files(name: str, content: bytes, columns: Columns | None, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message.replace("[", r"\[")) as caught:
        list(Documents([tmp_path / name], columns=columns))
    assert caught.value.hint


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        list(Documents([tmp_path / "a.txt"]))
    with pytest.raises(DataError, match="there is no text file in this folder"):
        Documents([tmp_path])
