from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from data_files import write

from edgec.data.examples import Example
from edgec.data.readers import read_examples, read_texts
from edgec.errors import DataError

ROWS = [
    ("plain", "second", "1.5"),
    ('with "quotes", and a comma', "line\nbreak", "2"),
    ("ሰውዬው አባቱን መጥራት ፈለገ።", "a\u2028b\x85c", "0"),
]


def csv_text(rows: list[tuple[str, ...]], header: tuple[str, ...] = ("one", "two", "score")) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([header, *rows])
    return buffer.getvalue()


def expected() -> list[Example]:
    return [Example(*row) for row in ROWS]


COLUMNS = {"text": "one", "text_pair": "two", "label": "score"}


@pytest.mark.parametrize("name", ["d.csv", "d.CSV", "d.csv.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv(tmp_path: Path, name: str, mark: str) -> None:
    path = write(tmp_path, name, mark + csv_text(ROWS))
    assert list(read_examples(path, **COLUMNS)) == expected()


def test_jsonl(tmp_path: Path) -> None:
    lines = [json.dumps({"one": a, "two": b, "score": float(c), "more": None}) for a, b, c in ROWS]
    path = write(tmp_path, "d.jsonl.gz", "\ufeff" + "\n\n".join(lines))
    found = list(read_examples(path, **COLUMNS))
    assert [(e.text, e.text_pair) for e in found] == [row[:2] for row in ROWS]
    assert [float(e.label or "nan") for e in found] == [1.5, 2.0, 0.0]


def test_tsv_takes_quotes_literally(tmp_path: Path) -> None:
    path = write(tmp_path, "d.tsv", 'text\tlabel\r\n"an open quote\tneutral\r\nit\'s "so"\tnegative\r\n')
    assert [(e.text, e.label) for e in read_examples(path, label="label")] == [
        ('"an open quote', "neutral"),
        ('it\'s "so"', "negative"),
    ]


def test_lines_of_text(tmp_path: Path) -> None:
    path = write(tmp_path, "d.txt", "first\r\n\n  second, with \x0b and \u2028 \nthird")
    assert read_texts(path) == ["first", "  second, with \x0b and \u2028 ", "third"]
    assert read_texts(path, rows=2) == ["first", "  second, with \x0b and \u2028 "]
    assert read_texts(path, rows=9) == read_texts(path)


def test_pairs_and_groups(tmp_path: Path) -> None:
    path = write(tmp_path, "d.csv", "a,b,lang\nx,y,de\nz,w,en\n")
    assert read_texts(path, text="a", text_pair="b") == [("x", "y"), ("z", "w")]
    assert [e.groups for e in read_examples(path, text="a", group_by=["lang"])] == [
        {"lang": "de"},
        {"lang": "en"},
    ]


def test_numbers_name_the_columns_of_a_file_without_header(tmp_path: Path) -> None:
    path = write(tmp_path, "d.tsv", "good film\tpositive\nbad film\tnegative\n")
    found = list(read_examples(path, text="0", label="1"))
    assert [(e.text, e.label) for e in found] == [("good film", "positive"), ("bad film", "negative")]
    named = write(tmp_path, "named.csv", "0,1\na,b\n")
    assert read_texts(named, text="1") == ["b"]


def test_the_format_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, "data.txt", "text\tn\nhello\t1\n")
    assert read_texts(path, format="tsv") == ["hello"]


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    rows = iter(read_examples(write(tmp_path, "d.jsonl", '{"text": "good"}\n{"text": ')))
    assert next(rows).text == "good"
    with pytest.raises(DataError):
        next(rows)


OK = '{"text": "ok", "label": 1}\n'
OK_TOO = '{"text": "ok", "label": 2}'
MALFORMED = {
    "d.csv": ("text,label\nok,1\nonly one field\nok,2\n", 3, "1 fields"),
    "quote.csv": ('text,label\nok,1\n"a"b,1\nok,2\n', 3, "expected after"),
    "d.tsv": ("text\tlabel\nok\t1\na\tb\tc\nok\t2\n", 3, "3 fields"),
    "d.jsonl": (OK + '\n{"text": \n' + OK_TOO, 3, "not JSON"),
    "list.jsonl": (OK + '[1]\n' + OK_TOO, 2, "not a JSON object"),
    "type.jsonl": (OK + '{"text": 5, "label": 1}\n' + OK_TOO, 2, "not a text"),
    "lost.jsonl": (OK + '{"text": "a"}\n' + OK_TOO, 2, "'label'"),
    "surrogate.jsonl": (OK + '{"text": "\\ud800", "label": 1}\n' + OK_TOO, 2, "UTF-8"),
    "empty.csv": ("text,label\nok,1\na, \nok,2\n", 3, "'label' is empty"),
    "bytes.csv": (b"text,label\nok,1\n\xff\xfe,1\nok,2\n", 3, "UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_row_is_named_or_counted(tmp_path: Path, name: str) -> None:
    content, line, cause = MALFORMED[name]
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        list(read_examples(path, label="label"))
    assert caught.value.message.startswith(f"{path}:{line}: ")
    assert cause in caught.value.message
    rows = read_examples(path, label="label", on_error="skip")
    assert [(e.text, e.label) for e in rows] == [("ok", "1"), ("ok", "2")]
    assert rows.skipped == 1
    assert len(list(rows)) == 2
    assert rows.skipped == 1, "counted anew on every iteration"


def test_a_quote_that_never_ends_is_named_where_it_begins(tmp_path: Path) -> None:
    path = write(tmp_path, "d.csv", 'text\nok\n"open\nand\nmore\n')
    with pytest.raises(DataError, match=":3: "):
        read_texts(path)


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl"])
@pytest.mark.parametrize("columns", [{"text": "txt"}, {"label": "txt"}, {"text_pair": "txt"}, {"group_by": ["txt"]}])
def test_an_unknown_column_names_those_there_are(tmp_path: Path, name: str, columns: dict) -> None:
    path = write(tmp_path, name, "text,lang\na,b\n" if name == "d.csv" else '{"text": "a", "lang": "b"}\n')
    with pytest.raises(DataError, match="no column 'txt'") as caught:
        list(read_examples(path, on_error="skip", **columns))
    assert "text, lang" in caught.value.hint


def test_several_columns_and_none_is_called_text(tmp_path: Path) -> None:
    path = write(tmp_path, "d.csv", "first,second\na,b\n")
    with pytest.raises(DataError, match="which column") as caught:
        read_texts(path)
    assert "first, second" in caught.value.hint
    assert read_texts(write(tmp_path, "one.csv", "tweet\nhello\n")) == ["hello"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", ""),
        ("d.csv", "text,label\n"),
        ("d.tsv", "\n\n"),
        ("d.jsonl", ""),
        ("d.txt", "\n"),
        ("d.txt.gz", ""),
    ],
)
def test_an_empty_file(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataError, match="no rows"):
        read_texts(write(tmp_path, name, content))


def test_nothing_but_malformed_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "d.csv", "text,label\na\nb\n")
    with pytest.raises(DataError, match="all 2 rows are malformed"):
        read_texts(path, on_error="skip")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_texts(tmp_path / "absent.csv")
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_texts(folder)
    whole = gzip.compress(b"text\n" + b"hello\n" * 1000)
    for content in (b"not gzip at all", whole[: len(whole) // 2]):
        path = tmp_path / "cut.csv.gz"
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be unpacked"):
            read_texts(path)
    with pytest.raises(DataError, match="does not tell the format"):
        read_texts(tmp_path / "data.xls")
    with pytest.raises(DataError, match="unknown data format 'xls'"):
        read_texts(tmp_path / "data.csv", format="xls")
