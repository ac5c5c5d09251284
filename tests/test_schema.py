from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from edgec.errors import RecipeError
from edgec.schema import bounds, build, choices, internal, pattern, to_plain
from edgec.yaml_tree import MAX_BYTES, Problems, override, plain, read


@dataclass(frozen=True)
class Inner:
    size: int
    name: str = "x"


@dataclass(frozen=True)
class Outer:
    ratio: float = field(default=0.5, metadata=bounds(above=0, at_most=1))
    count: int | None = field(default=None, metadata=bounds(at_least=1))
    mode: Literal["fast", "small", False] = "fast"
    flag: bool = False
    words: tuple[str, ...] = field(default=(), metadata=pattern("[a-z]+", "lower-case letters"))
    sizes: dict[str, int] = field(default_factory=dict)
    inner: Inner | None = None
    either: int | tuple[int, ...] = 0
    kind: str | None = field(default=None, metadata=choices(("cat", "dog")))
    anything: Any = None
    hidden: str = field(default="", metadata=internal())

    def __post_init__(self) -> None:
        if self.flag and self.count is None:
            raise ValueError("flag needs a count")


def load(text: str, tmp_path: Path, overrides: tuple[str, ...] = ()) -> Outer:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    root = read(path, "hint")
    override(root, overrides)
    problems = Problems(str(path))
    value = build(Outer, root, problems)
    problems.raise_if_any("hint")
    assert isinstance(value, Outer)
    return value


def refused(text: str, tmp_path: Path, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(RecipeError) as caught:
        load(text, tmp_path, overrides)
    return caught.value.message.replace(f"{tmp_path}/", "")


def test_every_type(tmp_path: Path) -> None:
    text = """
ratio: 1e-3
count: 3
mode: false
flag: true
words: [ab, cd]
sizes: {a: 1}
inner: {size: 0x10}
either: [1, 2]
kind: dog
anything: {b: [1, 2.5, null, 2024-01-31]}
"""
    expected = Outer(
        ratio=0.001,
        count=3,
        mode=False,
        flag=True,
        words=("ab", "cd"),
        sizes={"a": 1},
        inner=Inner(16),
        either=(1, 2),
        kind="dog",
        anything={"b": [1, 2.5, None, "2024-01-31"]},
    )
    assert load(text, tmp_path) == expected
    assert "hidden" not in to_plain(expected) and to_plain(expected)["inner"] == {"size": 16, "name": "x"}


def test_a_whole_number_is_a_number_and_comes_out_as_float(tmp_path: Path) -> None:
    assert type(load("ratio: 1", tmp_path).ratio) is float


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ratio: half", "file.yaml:1: ratio: should be a number, not the text 'half'"),
        ('ratio: "0.5"', "file.yaml:1: ratio: should be a number, not the text '0.5'"),
        ("ratio: .nan", "file.yaml:1: ratio: should be a number, not nan"),
        ("ratio: 1" + "0" * 400, "file.yaml:1: ratio: should be a number, not 1" + "0" * 59),
        ("ratio: true", "file.yaml:1: ratio: should be a number, not true"),
        ("ratio: 0", "file.yaml:1: ratio: should be above 0 and at most 1, not 0.0"),
        ("count: 2.0", "file.yaml:1: count: should be a whole number, not 2.0"),
        ("count: yes", "file.yaml:1: count: should be a whole number, not true"),
        ("count: 0", "file.yaml:1: count: should be at least 1, not 0"),
        ("mode: 0", "file.yaml:1: mode: should be fast or small or false, not 0"),
        ("flag: 1", "file.yaml:1: flag: should be true or false, not 1"),
        ("flag: true", "file.yaml:1: flag needs a count"),
        ("words: ab", "file.yaml:1: words: should be a list, not the text 'ab'"),
        ("words: [ab, 3]", "file.yaml:1: words.1: should be a text, not 3"),
        ("words: [ab, C]", "file.yaml:1: words: should be lower-case letters, not 'C'"),
        ("sizes: {a: b}", "file.yaml:1: sizes.a: should be a whole number, not the text 'b'"),
        ("inner: 3", "file.yaml:1: inner: should be a mapping of keys to values"),
        ("inner: {name: a}", "file.yaml:1: inner.size: is missing"),
        ("inner:\n  size: 1\n  nam: b", "file.yaml:3: inner.nam: unknown key; did you mean 'name'?"),
        ("either: {a: 1}", "file.yaml:1: either: should be a whole number or a list, not a mapping"),
        ("kind: cow", "file.yaml:1: kind: 'cow' is not supported; known: cat, dog"),
        ("\nratoi: 1", "file.yaml:2: ratoi: unknown key; did you mean 'ratio'?"),
        ("hidden: a", "file.yaml:1: hidden: unknown key; known: "),
        ("flag: false\ncount: 1\nflag: true", "file.yaml:3: flag: comes twice, first on line 1"),
        ("? [a]\n: 1", "file.yaml:1: a key should be a text"),
        ("- ratio", "file.yaml:1: should be a mapping of keys to values"),
    ],
)
def test_what_does_not_fit_is_named_with_file_line_and_key(text: str, complaint: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path).startswith(complaint)


def test_all_problems_come_together_in_the_order_of_the_file(tmp_path: Path) -> None:
    message = refused("colour: red\ncount: x\ninner:\n  size: big\nmode: slow\n", tmp_path)
    assert message.splitlines()[0] == "file.yaml has 4 problems"
    places = [line.strip().split(": ")[:2] for line in message.splitlines()[1:]]
    assert places == [
        ["file.yaml:1", "colour"],
        ["file.yaml:2", "count"],
        ["file.yaml:4", "inner.size"],
        ["file.yaml:5", "mode"],
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ratio: [1", "file.yaml:1: is not YAML"),
        ("ratio: 1\n\tcount: 2", "file.yaml:2: is not YAML"),
        ("ratio: 1\n---\nratio: 2", "file.yaml:2: is not YAML"),
        ("ratio: \x07", "file.yaml: is not YAML"),
        ("", "file.yaml: is empty"),
        ("ratio: 1\nflag: !!python/object/apply:os.getcwd []", "file.yaml:2: YAML tags are not allowed"),
        ("inner: !!int 3", "file.yaml:1: YAML tags are not allowed"),
        ("a: &a [*a]", "file.yaml: holds more than 10000 values"),
        ("a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
         "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]",
         "file.yaml: holds more than 10000 values"),
        ("anything: " + "[" * 2000, "file.yaml: is nested too deeply"),
        ("#" * (MAX_BYTES + 1), "file.yaml: is larger than 256 KB"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_of_ours_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    assert refused(text, tmp_path).startswith(complaint)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        read(path, "hint")


def test_aliases_are_allowed_and_an_override_of_one_place_leaves_the_other(tmp_path: Path) -> None:
    text = "inner: &shared {size: 1}\nanything: *shared\n"
    value = load(text, tmp_path, ("inner.size=2",))
    assert value.inner == Inner(2) and value.anything == {"size": 1}


def test_overrides_reach_into_lists_and_single_key_entries(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("steps:\n  - cut: {a: 1}\n  - glue\n  - paint:\nlist: [1, 2]\n")
    root = read(path, "hint")
    settings = [
        "steps.0.a=2",
        "steps.0.cut.b=x",
        "steps.1.c=[1]",
        "steps.2.d=null",
        "list.1=9",
        "new.e=",
        "f=a=b",
    ]
    override(root, settings)
    assert plain(root) == {
        "steps": [{"cut": {"a": 2, "b": "x"}}, {"glue": {"c": [1]}}, {"paint": {"d": None}}],
        "list": [1, 9],
        "new": {"e": None},
        "f": "a=b",
    }


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("ratio", "--set ratio: should be KEY=VALUE"),
        ("=1", "--set =1: should be KEY=VALUE"),
        ("words..0=1", "--set words..0=1: should be KEY=VALUE"),
        ("words.2=a", "--set words.2=a: the list has no entry 2; the last is 1"),
        ("words.x=a", "--set words.x=a: the list has no entry x"),
        ("count.x=1", "--set count.x=1: x would be below a plain value"),
        ("mode.x=1", "--set mode.x=1: x would be below a plain value"),
        ("ratio=[1", "--set ratio=[1:1: is not YAML"),
        ("ratio=a", "--set ratio=a: ratio: should be a number, not the text 'a'"),
        ("ratoi=1", "--set ratoi=1: ratoi: unknown key; did you mean 'ratio'?"),
        ("inner.nam=b", "--set inner.nam=b: inner.nam: unknown key; did you mean 'name'?"),
    ],
)
def test_a_wrong_override_names_itself(setting: str, complaint: str, tmp_path: Path) -> None:
    assert refused("ratio: 1\ncount: 2\nmode: small\nwords: [a, b]\ninner: {size: 1}", tmp_path, (setting,)).startswith(
        complaint
    )
