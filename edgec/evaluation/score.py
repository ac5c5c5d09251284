"""Scores a model on labelled data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import edgec_runtime
import numpy as np
import numpy.typing as npt
from edgec_runtime.manifest import MANIFEST_FILE
from edgec_runtime.tasks.base import joined
from edgec_runtime.tasks.classify import Classifier
from edgec_runtime.tasks.embed import EmbeddingModel

from edgec.data.examples import Example
from edgec.data.metrics import accuracy, cosines, macro_f1, spearman
from edgec.data.readers import OnError, draw, read_examples
from edgec.errors import DataError, UserError
from edgec.state import ModelState, Progress, no_progress

if TYPE_CHECKING:
    from edgec_runtime.loading import Model

Metrics = dict[str, float | None]
GroupMetrics = dict[str, float | int | None]

DEFAULT_LABEL: Final = "label"
DEFAULT_SCORE: Final = "score"
_CHUNK: Final = 64


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model.

    metrics: text-classification "accuracy" and "macro_f1", feature-extraction "spearman". groups: column,
    then value, to the same metrics and n, the rows with that value; a metric is None where the group is too
    small to have one. n: rows scored; skipped: malformed rows passed over.
    """

    metrics: dict[str, float]
    groups: dict[str, dict[str, GroupMetrics]] = field(default_factory=dict)
    n: int = 0
    skipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def evaluate(
    model: str | Path | ModelState | Model,
    data: str | Path,
    *,
    revision: str | None = None,
    format: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    group_by: Sequence[str] = (),
    rows: int | None = None,
    on_error: OnError = "raise",
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Score `model` on the rows of `data`.

    model: a bundle, a model source or a build that `edgec.models.load_model` takes, or one that is loaded
    already. revision: of a hub id. text-classification compares the best label with `label` (by name, or by
    index where the file has numbers), default column "label". feature-extraction takes pairs: Spearman's
    correlation of their cosine similarity with `label`, default column "score". format, text, text_pair, group_by,
    on_error: see edgec.data.readers. rows: score the first ones only, or, with `group_by`, as many from each value of
    its first column (edgec.data.readers.draw). threads: of a bundle. Raises DataError for the data, UserError for a
    model that cannot be scored, and what loading raises.
    """
    loaded, owned = _open(model, threads, revision)
    try:
        score = _scorer(loaded, text_pair)
        reader = read_examples(
            data,
            format=format,
            text=text,
            text_pair=text_pair,
            label=label or (DEFAULT_LABEL if isinstance(loaded, Classifier) else DEFAULT_SCORE),
            group_by=group_by,
            on_error=on_error,
        )
        examples = draw(reader, rows, next(iter(group_by), None))
        measure = score(examples, str(data), progress)
    finally:
        if owned:
            loaded.close()
    every = measure(range(len(examples)))
    metrics = {name: value for name, value in every.items() if value is not None}
    if len(metrics) != len(every):
        raise DataError(
            f"{data}: the scores or the similarities are all equal, so there is no correlation",
            "give pairs of different similarity",
        )
    groups = {column: _by_group(examples, column, measure) for column in group_by}
    return Evaluation(metrics, groups, len(examples), reader.skipped)


Measure = Callable[[Sequence[int]], Metrics]
"""The metrics of some rows, given by their indices."""


def _open(model: str | Path | ModelState | Model, threads: int | None, revision: str | None) -> tuple[Model, bool]:
    """The model ready to run, and whether it is this module's to close. A bundle needs no torch, so none is loaded."""
    source = isinstance(model, str | Path) and not Path(model, MANIFEST_FILE).is_file()
    if revision is not None and not source:
        raise UserError(f"revision {revision!r} was given, but {model} is not a hub id", "leave the revision out")
    if isinstance(model, str | Path) and Path(model, MANIFEST_FILE).is_file():
        return edgec_runtime.load(model, threads=threads), True
    if not isinstance(model, str | Path | ModelState):
        return model, False
    from edgec.models import load_model
    from edgec.models.torch_model import torch_model

    if isinstance(model, ModelState):
        return torch_model(model), True
    return torch_model(load_model(model, revision=revision)), True


def _scorer(model: Model, text_pair: str | None) -> Callable[[list[Example], str, Progress], Measure]:
    if isinstance(model, Classifier):
        if model.manifest.postprocessing.activation == "sigmoid":
            raise UserError(
                f"{model.manifest.name} gives a text several labels at once, which evaluate cannot score",
                "evaluate a model with one label a text",
            )
        return lambda examples, where, progress: _classify(model, examples, where, progress)
    if isinstance(model, EmbeddingModel):
        if text_pair is None:
            raise UserError(
                "an embedding model is scored on pairs of texts, and no second text is named",
                "name the columns, such as --text sentence1 --text-pair sentence2 --label score",
            )
        return lambda examples, where, progress: _similarity(model, examples, where, progress)
    raise UserError(
        f"evaluate does not score {model.manifest.task}",
        "it scores text-classification and feature-extraction",
    )


def _classify(model: Classifier, examples: list[Example], where: str, progress: Progress) -> Measure:
    expected = _label_indices(examples, model.labels, where)
    logits = _outputs(model, [example.request for example in examples], "logits", progress)
    predicted = [int(row.argmax()) for row in logits]

    def measure(rows: Sequence[int]) -> Metrics:
        names = [model.labels[expected[i]] for i in rows], [model.labels[predicted[i]] for i in rows]
        return {"accuracy": accuracy(*names), "macro_f1": macro_f1(*names)}

    return measure


def _similarity(model: EmbeddingModel, examples: list[Example], where: str, progress: Progress) -> Measure:
    scores = [_number(example.label, f"{where}:{example.line}") for example in examples]
    pairs = [(example.text, example.text_pair or "") for example in examples]
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    embeddings = dict(zip(texts, _outputs(model, texts, "sentence_embedding", progress), strict=True))
    first, second = (np.stack([embeddings[pair[side]] for pair in pairs]) for side in (0, 1))
    # Beyond six digits float32 embeddings order equal texts by noise, and a rank counts every order the same.
    similarities = cosines(first, second).round(6)

    def measure(rows: Sequence[int]) -> Metrics:
        value = spearman([scores[i] for i in rows], [similarities[i] for i in rows])
        return {"spearman": None if math.isnan(value) else value}

    return measure


def _outputs(model: Model, requests: list[Any], name: str, progress: Progress) -> list[npt.NDArray[np.float32]]:
    """One output of the graph for every request."""
    encoded = model.encode_all(requests)
    values: list[npt.NDArray[np.float32]] = []
    step = progress("evaluate", len(encoded))
    for start in range(0, len(encoded), _CHUNK):
        outputs = model.outputs(encoded[start : start + _CHUNK])
        values += [joined(rows)[name] for rows in outputs]
        step(len(values))
    return values


def _by_group(examples: list[Example], column: str, measure: Measure) -> dict[str, GroupMetrics]:
    rows: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        rows[example.groups[column]].append(i)
    return {value: {**measure(rows[value]), "n": len(rows[value])} for value in sorted(rows)}


def _label_indices(examples: list[Example], labels: Sequence[str], where: str) -> list[int]:
    """Each row's label as an index: all by name, whatever their case, or else all by number; never a mixture.

    Raises DataError for a label that the model does not have.
    """
    given = [str(example.label) for example in examples]
    names = {name: i for i, name in enumerate(labels)}
    folded = {name.casefold(): i for i, name in enumerate(labels)}
    numbers = {str(i): i for i in range(len(labels))}
    spellings: tuple[tuple[dict[str, int], Callable[[str], str]], ...] = (
        (names, str),
        (folded if len(folded) == len(names) else {}, str.casefold),
        (numbers, str),
    )
    matches = []
    for known, spell in spellings:
        found = [known.get(spell(g)) for g in given]
        if None not in found:
            return [index for index in found if index is not None]
        matches.append(found)
    # In the spelling that fits best: where all but one are numbers, that one is the mistake.
    best = min(matches, key=lambda found: found.count(None))
    unknown = examples[best.index(None)]
    raise DataError(
        f"{where}:{unknown.line}: the model has no label {str(unknown.label)!r}",
        f"its labels are {', '.join(labels)}; numbers from 0 to {len(labels) - 1} stand for them",
    )


def _number(label: str | None, where: str) -> float:
    try:
        value = float(str(label))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: the score {label!r} is not a number", "name the column of the scores (--label)")
    return value
