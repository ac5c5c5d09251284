"""What a loaded model scores on labelled rows: the same code for a bundle and for torch behind its interface.

The first metric of each is its main one:

    text-classification    accuracy, macro_f1, micro_f1; where a text may have several labels, those above 0.5
    token-classification   span_f1, span_macro_f1, accuracy where labels are parts of spans (B-PER, I-PER, O); else
                           accuracy, macro_f1 over words
    question-answering     f1, exact_match, the same with an answer and without, always_null_f1; docs/evaluate.md
    feature-extraction     spearman, pearson of cosine similarity and score
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from edgec_runtime.tasks.answer import Reader
from edgec_runtime.tasks.base import joined
from edgec_runtime.tasks.classify import Classifier
from edgec_runtime.tasks.embed import EmbeddingModel
from edgec_runtime.tasks.tag import Tagger

from edgec.data.answers import answer_scores
from edgec.data.examples import Example, Labelled, Question, Tagged
from edgec.data.metrics import accuracy, cosines, macro_f1, micro_f1, pearson, spearman
from edgec.data.spans import span_f1, span_macro_f1
from edgec.errors import DataError, UserError
from edgec.state import Progress, no_progress

if TYPE_CHECKING:
    from edgec_runtime.loading import Model
    from edgec_runtime.runner import Outputs
    from edgec_runtime.text import Encoded

Metrics = dict[str, float | None]
Measure = Callable[[Sequence[int]], Metrics]
"""The metrics of some rows, given by their indices; None where so few rows have none."""

_CHUNK: Final = 128
_THRESHOLD: Final = 0.0
"""Of a logit: a probability of 0.5."""

E = TypeVar("E", Example, Tagged, Question)


def score(
    model: Model,
    examples: Sequence[Labelled],
    *,
    where: str,
    null_answers: bool = False,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """The metrics of `model` on labelled rows, the main one first.

    model: of edgec_runtime.load or edgec.models.torch_model. where: the file's name, for errors about rows that do not
    know theirs. null_answers: "there is no answer" may win in question-answering, also in a model that was not exported
    so. Raises DataError for rows that do not fit the model, and UserError for a task without labels.
    """
    metrics = measure(model, examples, where=where, null_answers=null_answers, progress=progress)(range(len(examples)))
    found = {name: value for name, value in metrics.items() if value is not None}
    if len(found) != len(metrics):
        raise DataError(
            f"{where}: the scores or the similarities are all equal, so there is no correlation",
            "give pairs of different similarity",
        )
    return found


def measure(
    model: Model,
    examples: Sequence[Labelled],
    *,
    where: str,
    null_answers: bool = False,
    progress: Progress = no_progress,
) -> Measure:
    """Runs the model once over all rows; what comes back gives the metrics of any part of them. See `score`."""
    if isinstance(model, Classifier):
        return _classes(model, _all(examples, Example, model, where), where, progress)
    if isinstance(model, Tagger):
        return _tags(model, _all(examples, Tagged, model, where), where, progress)
    if isinstance(model, Reader):
        return _answers(model, _all(examples, Question, model, where), null_answers, progress)
    if isinstance(model, EmbeddingModel):
        return _similarity(model, _all(examples, Example, model, where), where, progress)
    raise UserError(
        f"evaluate does not score {model.manifest.task}",
        "it scores text-classification, token-classification, question-answering and feature-extraction",
    )


def _all(examples: Sequence[Labelled], kind: type[E], model: Model, where: str) -> list[E]:
    """The examples, each of them of the kind that the task is scored on."""
    if not examples:
        raise DataError(f"{where}: there are no rows to score", "give at least one")
    rows = [example for example in examples if isinstance(example, kind)]
    if len(rows) != len(examples):
        raise DataError(
            f"{where}: {model.manifest.task} is not scored on such rows",
            f"give {_WANTED[model.manifest.task]}",
        )
    return rows


_WANTED: Final = {
    "text-classification": "a table with a column of labels (csv, tsv, jsonl, parquet)",
    "token-classification": "tagged sentences (conll, conllu)",
    "question-answering": "questions about contexts (squad)",
    "feature-extraction": "a table of pairs with a column of scores (csv, tsv, jsonl, parquet)",
}


def _classes(model: Classifier, examples: list[Example], where: str, progress: Progress) -> Measure:
    several = model.manifest.postprocessing.activation == "sigmoid"
    requests = [example.request for example in examples]
    if several:
        lists = [_several(example) for example in examples]
        expected: list[Any] = _sets(lists, _indices(lists, examples, model.labels, where), model.labels)
        logits = [joined(rows)["logits"] for _, rows in _run(model, requests, progress)]
        predicted: list[Any] = [frozenset(model.labels[i] for i in np.flatnonzero(row > _THRESHOLD)) for row in logits]
    else:
        singles = [[_one(example, where)] for example in examples]
        expected = [model.labels[i] for i in _indices(singles, examples, model.labels, where)]
        predicted = [model.labels[int(joined(rows)["logits"].argmax())] for _, rows in _run(model, requests, progress)]

    def of(rows: Sequence[int]) -> Metrics:
        sides = [expected[i] for i in rows], [predicted[i] for i in rows]
        return {"accuracy": accuracy(*sides), "macro_f1": macro_f1(*sides), "micro_f1": micro_f1(*sides)}

    return of


def _tags(model: Tagger, examples: list[Tagged], where: str, progress: Progress) -> Measure:
    tags = [list(example.tags) for example in examples]
    indices = iter(_indices(tags, examples, model.labels, where))
    expected = [[model.labels[next(indices)] for _ in sentence] for sentence in tags]
    ran = _run(model, [example.text for example in examples], progress)
    predicted = [
        model.word_labels(example.words, encoded, outputs)
        for example, (encoded, outputs) in zip(examples, ran, strict=True)
    ]

    def of(rows: Sequence[int]) -> Metrics:
        sides = [expected[i] for i in rows], [predicted[i] for i in rows]
        words = [tag for tags in sides[0] for tag in tags], [tag for tags in sides[1] for tag in tags]
        if model.scheme == "BIO":
            return {"span_f1": span_f1(*sides), "span_macro_f1": span_macro_f1(*sides), "accuracy": accuracy(*words)}
        return {"accuracy": accuracy(*words), "macro_f1": macro_f1(*words)}

    return of


def _answers(model: Reader, examples: list[Question], null_answers: bool, progress: Progress) -> Measure:
    expected = [[answer.text for answer in example.answers] for example in examples]
    requests = [example.request for example in examples]
    predicted = []
    for request, (encoded, outputs) in zip(requests, _run(model, requests, progress), strict=True):
        answer = model.interpret(request, encoded, outputs)
        predicted.append("" if null_answers and answer["null_score"] > answer["score"] else answer["text"])

    def of(rows: Sequence[int]) -> Metrics:
        return {**answer_scores([expected[i] for i in rows], [predicted[i] for i in rows])}

    return of


def _similarity(model: EmbeddingModel, examples: list[Example], where: str, progress: Progress) -> Measure:
    if any(example.text_pair is None for example in examples):
        raise UserError(
            "an embedding model is scored on pairs of texts, and no second text is named",
            "name the columns, such as --text sentence1 --text-pair sentence2 --label score",
        )
    scores = [_number(example.label, _place(example, where)) for example in examples]
    pairs = [(example.text, example.text_pair or "") for example in examples]
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    ran = _run(model, texts, progress)
    embeddings = {text: joined(rows)["sentence_embedding"] for text, (_, rows) in zip(texts, ran, strict=True)}
    first, second = (np.stack([embeddings[pair[side]] for pair in pairs]) for side in (0, 1))
    # Beyond six digits float32 embeddings order equal texts by noise, and a rank counts every order the same.
    similarities: npt.NDArray[Any] = cosines(first, second).round(6)

    def of(rows: Sequence[int]) -> Metrics:
        sides = [scores[i] for i in rows], [float(similarities[i]) for i in rows]
        found = {"spearman": spearman(*sides), "pearson": pearson(*sides)}
        return {name: None if math.isnan(value) else value for name, value in found.items()}

    return of


def _run(model: Model, requests: list[Any], progress: Progress) -> Iterator[tuple[Encoded, list[Outputs]]]:
    """Every request's rows and the outputs of each, many at a time."""
    encoded = model.encode_all(requests)
    step = progress("evaluate", len(encoded))
    for start in range(0, len(encoded), _CHUNK):
        chunk = encoded[start : start + _CHUNK]
        yield from zip(chunk, model.outputs(chunk), strict=True)
        step(start + len(chunk))


def _one(example: Example, where: str) -> str:
    if example.labels is not None and len(example.labels) != 1:
        raise DataError(
            f"{_place(example, where)}: the row has {len(example.labels)} labels, and the model gives one a text",
            "give one label a row, or a model that gives several",
        )
    return str(example.label)


def _several(example: Example) -> list[str]:
    return [str(example.label)] if example.labels is None else list(example.labels)


def _sets(lists: Sequence[Sequence[str]], indices: Sequence[int], labels: Sequence[str]) -> list[frozenset[str]]:
    rest = iter(indices)
    return [frozenset(labels[next(rest)] for _ in given) for given in lists]


def labels_of(example: Labelled) -> tuple[str, ...]:
    """The labels of a text, or the tags of a sentence; of a question none."""
    if isinstance(example, Example):
        return example.every_label
    return example.tags if isinstance(example, Tagged) else ()


def require_known(examples: Sequence[Labelled], labels: Sequence[str], *, where: str) -> None:
    """Raises DataError for a label that a model with these labels does not have."""
    _indices([labels_of(example) for example in examples], examples, labels, where)


def _indices(
    given: Sequence[Sequence[str]], examples: Sequence[Labelled], labels: Sequence[str], where: str
) -> list[int]:
    """Every label of every row as an index, in order: all by name, whatever their case, or else all by number; never a
    mixture. Raises DataError for a label that the model does not have.
    """
    names = {name: i for i, name in enumerate(labels)}
    folded = {name.casefold(): i for i, name in enumerate(labels)}
    numbers = {str(i): i for i in range(len(labels))}
    spellings: tuple[tuple[dict[str, int], Callable[[str], str]], ...] = (
        (names, str),
        (folded if len(folded) == len(names) else {}, str.casefold),
        (numbers, str),
    )
    flat = [(label, example) for row, example in zip(given, examples, strict=True) for label in row]
    matches = []
    for known, spell in spellings:
        found = [known.get(spell(label)) for label, _ in flat]
        if None not in found:
            return [index for index in found if index is not None]
        matches.append(found)
    # In the spelling that fits best: where all but one are numbers, that one is the mistake.
    best = min(matches, key=lambda found: found.count(None))
    unknown, example = flat[best.index(None)]
    raise DataError(
        f"{_place(example, where)}: the model has no label {unknown!r}",
        f"its labels are {', '.join(labels)}; numbers from 0 to {len(labels) - 1} stand for them",
    )


def _number(label: str | None, place: str) -> float:
    try:
        value = float(str(label))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{place}: the score {label!r} is not a number", "name the column of the scores (--label)")
    return value


def _place(example: Labelled, where: str) -> str:
    return f"{example.path or where}:{example.line}"
