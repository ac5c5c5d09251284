"""Figures of a report as the page shows them: the text, the value that the JSON holds, and where it holds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from edgec import files

Mark = Literal["", "good", "bad", "open", "muted"]

NOTHING: Final = "–"
"""Stands for a figure that was not measured."""


@dataclass(frozen=True)
class At:
    """A value of a report, and its place: `key` is a JSON pointer (RFC 6901)."""

    value: Any
    key: str = ""

    def __getitem__(self, name: str | int) -> At:
        """Raises KeyError, with the whole pointer, where there is no such member."""
        inside = self._below(name)
        try:
            return At(self.value[name], inside)
        except (KeyError, IndexError, TypeError):
            raise KeyError(inside) from None

    def get(self, name: str) -> At:
        """The member, or one that holds None: older reports lack what newer ones have."""
        return At(None if self.value is None else self.value.get(name), self._below(name))

    def __iter__(self) -> Iterator[At]:
        """The elements of a list; of None there are none."""
        return (self[index] for index in range(len(self.value or ())))

    def items(self) -> Iterator[tuple[str, At]]:
        return ((name, self[name]) for name in self.value or ())

    def __bool__(self) -> bool:
        """Whether there is something: neither None nor empty."""
        return self.value is not None and self.value not in ([], {}, "")

    def _below(self, name: str | int) -> str:
        return f"{self.key}/{str(name).replace('~', '~0').replace('/', '~1')}"


@dataclass(frozen=True)
class Cell:
    """What stands in a place of the page. value and key: of a figure, the number in the JSON and its pointer."""

    text: str
    value: float | int | None = None
    key: str = ""
    mark: Mark = ""

    @property
    def is_figure(self) -> bool:
        return bool(self.key)

    def marked(self, mark: Mark) -> Cell:
        return replace(self, mark=mark)


Sentence = tuple[str | Cell, ...]


def text(value: At | str, mark: Mark = "") -> Cell:
    """Words, as they stand in the report."""
    words = value.value if isinstance(value, At) else value
    return Cell(NOTHING if words is None else str(words), mark=mark)


def megabytes(at: At) -> Cell:
    """Of bytes."""
    return _figure(at, lambda value: f"{files.megabytes(int(value))} MB")


def mebibytes(at: At) -> Cell:
    return _figure(at, lambda value: f"{value:.0f} MiB")


def milliseconds(at: At) -> Cell:
    return _figure(at, lambda value: f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} ms")


def times(at: At) -> Cell:
    """A speed-up or another ratio."""
    return _figure(at, lambda value: f"{value:.2f}×")


def percent(at: At) -> Cell:
    """Of a share from 0 to 1."""
    return _figure(at, lambda value: f"{100 * value:.1f} %")


def score(at: At) -> Cell:
    """A metric, a cosine or a drop: four decimals, or two digits where that would leave none."""
    return _figure(at, lambda value: f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.2g}")


def digits(at: At) -> Cell:
    """Four significant digits, for what may be of any size."""
    return _figure(at, lambda value: f"{value:.4g}")


def decibels(at: At) -> Cell:
    return _figure(at, lambda value: f"{value:.1f} dB")


def millions(at: At) -> Cell:
    return _figure(at, lambda value: f"{value / 1e6:.2f} M")


def per_second(at: At) -> Cell:
    return _figure(at, lambda value: f"{value:.0f} /s" if value >= 100 else f"{value:.1f} /s")


def seconds(at: At) -> Cell:
    return _figure(at, lambda value: f"{value:.1f} s")


def count(at: At) -> Cell:
    return _figure(at, lambda value: f"{value:d}")


def _figure(at: At, form: Any) -> Cell:
    return Cell(NOTHING, mark="muted") if at.value is None else Cell(form(at.value), at.value, at.key)
