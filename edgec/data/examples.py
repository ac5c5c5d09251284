"""One row of a data file, by what the row is: a text, a tagged sentence, a question about a context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Text = str | tuple[str, str]


@dataclass(frozen=True)
class Example:
    """A text or a pair of texts. `groups` maps each column that was asked for to the row's value in it. line, path:
    where the row begins. labels: where a text may have several, or none of them; `label` then has them parted by "|".
    """

    text: str
    text_pair: str | None = None
    label: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    line: int = field(default=0, compare=False)
    labels: tuple[str, ...] | None = None
    path: str = field(default="", compare=False)

    @property
    def request(self) -> Text:
        """What a model is asked: the text, or the pair."""
        return self.text if self.text_pair is None else (self.text, self.text_pair)

    @property
    def every_label(self) -> tuple[str, ...]:
        """The labels of a text that may have several, or none; else the one that it has."""
        return self.labels if self.labels is not None else (str(self.label),)


@dataclass(frozen=True)
class Tagged:
    """A sentence, one tag a word: a part of speech, or an entity's part (B-PER, I-PER, O)."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    groups: Mapping[str, str] = field(default_factory=dict)
    line: int = field(default=0, compare=False)
    path: str = field(default="", compare=False)

    @property
    def text(self) -> str:
        """The words with a space between each two: what a model is asked, in training and on the device alike."""
        return " ".join(self.words)

    @property
    def starts(self) -> tuple[int, ...]:
        """The character of `text` that each word begins at."""
        starts, place = [], 0
        for word in self.words:
            starts.append(place)
            place += len(word) + 1
        return tuple(starts)


@dataclass(frozen=True)
class Answer:
    """context[start : start + len(text)] == text."""

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """A question about a context. answers: all that annotators gave, the first is trained on; none: the context has no
    answer."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    line: int = field(default=0, compare=False)
    path: str = field(default="", compare=False)

    @property
    def request(self) -> dict[str, str]:
        """What a model is asked."""
        return {"question": self.question, "context": self.context}


Labelled = Example | Tagged | Question
"""Whatever a model can be trained and scored on."""
