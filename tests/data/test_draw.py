"""Texts with groups, and how many of each group a limited number takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from edgec.data.examples import Example
from edgec.data.load import read_sample
from edgec.data.readers import Sample, draw
from edgec.errors import DataError
from edgec.recipe import TextData


def examples(groups: str) -> list[Example]:
    """One example a letter."""
    return [Example(f"text {i}", groups={"g": group}) for i, group in enumerate(groups)]


def drawn(groups: str, rows: int | None) -> str:
    return "".join(example.groups["g"] for example in draw(iter(examples(groups)), rows, "g"))


@pytest.mark.parametrize(
    ("groups", "rows", "expected"),
    [
        ("aaaaaabbbbbb", 4, {"a": 2, "b": 2}),
        ("aaaaaaaaaabc", 6, {"a": 4, "b": 1, "c": 1}),  # what b and c cannot give
        ("cccccbbbbbaaaaa", 7, {"a": 3, "b": 2, "c": 2}),  # the odd one to the first by name
        ("aaaaabccccc", 8, {"a": 4, "b": 1, "c": 3}),
        ("ab", 5, {"a": 1, "b": 1}),
        ("aab", None, {"a": 2, "b": 1}),
    ],
)
def test_every_group_gives_as_many(groups: str, rows: int | None, expected: dict[str, int]) -> None:
    assert Counter(drawn(groups, rows)) == expected


def test_the_first_of_each_group_in_the_order_of_the_file() -> None:
    chosen = draw(iter(examples("abaabb")), 4, "g")
    assert [example.text for example in chosen] == ["text 0", "text 1", "text 2", "text 4"]
    assert [example.text for example in draw(iter(examples("abaabb")), 4, None)] == [f"text {i}" for i in range(4)]


def test_more_groups_than_rows() -> None:
    with pytest.raises(DataError, match="'g' has more than 3 values, so 3 rows") as caught:
        draw(iter(examples("abcd")), 3, "g")
    assert "raise rows" in caught.value.hint
    assert len(draw(iter(examples("abc")), 3, "g")) == 3


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text,pair,lang\na,x,en\nb,y,en\nc,z,de\nd,w,1\n", encoding="utf-8")
    data = TextData(path.name, path=path, text_column="text")
    assert read_sample(replace(data, group_column="lang", rows=3)) == Sample(("a", "c", "d"), ("en", "de", "1"))
    assert read_sample(replace(data, group_column="lang")).counts == {"1": 1, "de": 1, "en": 2}
    assert read_sample(replace(data, text_pair_column="pair", rows=2)) == Sample((("a", "x"), ("b", "y")))
    assert read_sample(replace(data, rows=2)).counts == {}
    with pytest.raises(DataError, match="no column 'language'"):
        read_sample(replace(data, group_column="language"))


def test_some_of_all() -> None:
    sample = Sample(tuple("abcdefghij"))
    assert "".join(sample.spread(5)) == "acegi"
    assert "".join(sample.spread(3)) == "adg"
    assert sample.spread(10) == sample.spread(99) == sample.texts
    assert Sample().spread(3) == ()
