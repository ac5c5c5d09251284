"""What decoupled models are trained and scored on: questions of SQuAD 2.0, and sentence pairs of the STS Benchmark."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.papers.data import train_questions
from edgec.data.examples import Example
from edgec.data.load import read_rows
from edgec.models.torch_model import torch_model
from edgec.scoring import measure
from edgec.state import ModelState

SIMILAR: Final = 3.0
"""Of 5: from this score on two sentences count as similar."""


@dataclass(frozen=True)
class Material:
    """head: the task. train: its rows, of a folder of data sets. dev: its rows there, half 0 to choose by, half 1 to
    tell. scores: of a model on rows, in per cent. figures: what `scores` gives, and beside them, as `each`, the first
    figure of each row that has it; the first is chosen by and drawn.
    """

    head: Literal["question-answering", "text-classification"]
    train: Callable[[Path], tuple[Any, ...]]
    dev: Callable[[Path, int], tuple[Any, ...]]
    scores: Callable[[ModelState, Sequence[Any]], dict[str, Any]]
    figures: dict[str, str]
    paper: str


@cache
def questions(data: Path) -> tuple[Any, ...]:
    """Without train-from-dev nobody learns that there may be no answer; its articles are not those of dev-a."""
    return train_questions(data)


@cache
def dev_questions(data: Path, half: int) -> tuple[Any, ...]:
    return tuple(read_rows(data / "squad2" / "dev-a.json.gz", format="squad").examples[half::2])


def answers(state: ModelState, rows: Sequence[Any]) -> dict[str, Any]:
    """has_answer_f1: of the questions that have an answer, where one has to be given; `each` is of them."""
    answered = [row for row in rows if row.answers]
    with torch_model(state) as model:
        found = measure(model, rows, where="dev-a", null_answers=True)(range(len(rows)))
        forced = measure(model, answered, where="dev-a", null_answers=False)
    figures = {
        "has_answer_f1": forced(range(len(answered)))["f1"],
        "f1": found["f1"],
        "always_null_f1": found["always_null_f1"],
    }
    return _in_percent(figures, [forced([at])["f1"] for at in range(len(answered))])


def _in_percent(figures: Mapping[str, float | None], each: Sequence[float | None]) -> dict[str, Any]:
    found: dict[str, Any] = {name: round(100 * (value or 0.0), 2) for name, value in figures.items()}
    return {**found, "each": [round(100 * (value or 0.0), 1) for value in each]}


@cache
def pairs(data: Path, part: str = "train.csv.gz") -> tuple[Any, ...]:
    """Similar or not: the score cut at SIMILAR."""
    file = data / "stsb" / f"stsb-en-{part}"
    rows = read_rows(file, text="sentence1", text_pair="sentence2", label="score").examples
    return tuple(
        dataclasses.replace(row, label="similar" if float(str(row.label)) >= SIMILAR else "different")
        for row in rows
        if isinstance(row, Example)
    )


def dev_pairs(data: Path, half: int) -> tuple[Any, ...]:
    return pairs(data, "dev.csv")[half::2]


def accuracy(state: ModelState, rows: Sequence[Any]) -> dict[str, Any]:
    """always_one: the accuracy of always saying what is said most often."""
    with torch_model(state) as model:
        found = measure(model, rows, where="dev")
    most = max(Counter(row.label for row in rows).values()) / len(rows)
    figures = {"accuracy": found(range(len(rows)))["accuracy"], "always_one": most}
    return _in_percent(figures, [found([at])["accuracy"] for at in range(len(rows))])


MATERIALS: Final = {
    "squad2": Material(
        "question-answering",
        questions,
        dev_questions,
        answers,
        {"has_answer_f1": "F1, questions with an answer", "f1": "F1, all", "always_null_f1": "always null"},
        "1.2 points of F1 lost at 5-7 of 12 layers, with 130,000 questions; 0.3 more by 4x compression",
    ),
    "stsb": Material(
        "text-classification",
        pairs,
        dev_pairs,
        accuracy,
        {"accuracy": "accuracy", "always_one": "the commoner label"},
        "accuracy on MRPC, as small: 89.5; 2-10 86.3, 4-8 83.0, 6-6 78.1, 8-4 77.8, 10-2 71.8",
    ),
}
