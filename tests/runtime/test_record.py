"""Record behaves as the frozen dataclass of the same fields does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest
from edgec_runtime.record import Record


class Ours(Record):
    name: str
    size: int = 3
    parts: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Theirs:
    name: str
    size: int = 3
    parts: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (("a",), {}),
    (("a", 4), {"notes": {"k": "v"}}),
    ((), {"name": "b", "parts": ("x",)}),
]


@pytest.mark.parametrize(("args", "kwargs"), ARGUMENTS)
def test_the_same_values(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ours, theirs = Ours(*args, **kwargs), Theirs(*args, **kwargs)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert [f.name for f in dataclasses.fields(ours)] == [f.name for f in dataclasses.fields(theirs)]
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    assert ours == Ours(*args, **kwargs)
    assert ours != dataclasses.replace(ours, size=99)
    assert dataclasses.replace(ours, size=99).size == 99


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), (("a", 1, (), {}, 5), {}), (("a",), {"name": "b"}), (("a",), {"colour": 1})]
)
def test_the_same_refusals(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for kind in (Ours, Theirs):
        with pytest.raises(TypeError):
            kind(*args, **kwargs)


def test_frozen_equal_and_hashable() -> None:
    class Key(Record):
        name: str
        size: int = 0

    class Other(Record):
        name: str
        size: int = 0

    assert hash(Key("a")) == hash(Key("a", 0))
    assert {Key("a"): 1}[Key("a")] == 1
    assert Key("a") != Other("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Key("a").name = "b"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del Key("a").name  # type: ignore[misc]


def test_defaults_are_not_shared() -> None:
    first, second = Ours("a"), Ours("b")
    first.notes["k"] = "v"
    assert second.notes == {}
