"""Labelled rows as the tensors that training reads.

Texts go through the runtime's own Encoder: the same pieces, the same cuts and the same windows as on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from edgec_runtime.tasks.tag import word_tokens
from edgec_runtime.text import Encoder

from edgec.data.examples import Example, Labelled, Question, Tagged, Text
from edgec.errors import DataError
from edgec.models.describe import describe
from edgec.models.torch_model import tokenizer_json
from edgec.state import ModelState

if TYPE_CHECKING:
    from edgec_runtime.text import Encoded, Row

_SHOWN: Final = {
    Example: "a text, or a pair without a score,",
    Tagged: "a tagged sentence",
    Question: "a question about a context",
}

IGNORED: Final = -100
"""The label of a token that has none: a later piece of a word, a special token, padding."""

Batch = dict[str, torch.Tensor]
"""input_ids, attention_mask and token_type_ids, int32 (batch, tokens), and the targets of the task, int64 or float32:

    text-classification     label (batch,), or (batch, labels) of 0 and 1 where a text may have several
    token-classification    labels (batch, tokens), IGNORED where a token has none
    question-answering      start, end (batch,): 0, the first token, where this window has no answer
    feature-extraction      score (batch,) and the second text as other_input_ids ...; nothing for texts without scores
"""


@dataclass(frozen=True)
class TrainingRow:
    """One row of ids with its targets; `other` is the second text of a pair that is embedded apart."""

    ids: npt.NDArray[np.int32]
    type_ids: npt.NDArray[np.int32]
    targets: Mapping[str, Any] = field(default_factory=dict)
    other: TrainingRow | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Featurizer:
    """Makes rows for the model of `state`, as its bundle would.

    max_length: tokens a row at most, None: the model's. say: told of texts that are cut. Raises DataError where an
    example does not fit the task.
    """

    def __init__(
        self, state: ModelState, *, max_length: int | None = None, say: Callable[[str], None] = lambda line: None
    ) -> None:
        preprocessing = describe(state).preprocessing
        if max_length is not None and max_length < preprocessing.max_length:
            stride = min(preprocessing.stride, max_length // 4)
            preprocessing = replace(preprocessing, max_length=max_length, stride=stride)
        self.encoder = Encoder(tokenizer_json(state), preprocessing)
        self.spec = state.spec
        self.pad_id = preprocessing.pad_id
        self._labels = {label: index for index, label in enumerate(state.spec.labels or ())}
        self._say, self._told, self._cut = say, "", 0

    def labelled(self, examples: Sequence[Labelled]) -> list[TrainingRow]:
        """Rows with targets; a long sentence or context gives several."""
        with self._telling(len(examples)):
            return [row for example in examples for row in self._rows(example)]

    def texts(self, texts: Sequence[Text]) -> list[TrainingRow]:
        """Rows without targets. A pair is one row where the model reads pairs, else two."""
        with self._telling(len(texts)):
            if self.spec.pairs:
                return [_row(row) for text in texts for row in self._whole(self._request(text))]
            singles = [single for text in texts for single in (text if isinstance(text, tuple) else (text,))]
            return [_row(row) for text in singles for row in self._whole(self.encoder.single(text))]

    @contextmanager
    def _telling(self, count: int) -> Iterator[None]:
        """Inside, texts that are cut are counted; told is it once, however often they are read."""
        self._cut = 0
        yield
        told = (
            f"{self._cut} of {count} texts to train on are longer than {self.encoder.limits.max_length} tokens: they "
            "are cut there"
        )
        if self._cut and told != self._told:
            self._say(told)
            self._told = told

    def _whole(self, encoded: Encoded) -> Sequence[Row]:
        self._cut += encoded.dropped > 0
        return encoded.rows

    def _rows(self, example: Labelled) -> list[TrainingRow]:
        task = self.spec.task
        if task == "token-classification" and isinstance(example, Tagged):
            return self._tagged(example)
        if task == "question-answering" and isinstance(example, Question):
            return self._question(example)
        if task == "text-classification" and isinstance(example, Example):
            (row,) = self._whole(self._request(example.request))
            return [_row(row, {"label": self._label(example)})]
        if task == "feature-extraction" and isinstance(example, Example) and example.text_pair is not None:
            sides = [self.encoder.single(text) for text in (example.text, example.text_pair)]
            self._cut += any(side.dropped for side in sides)
            first, second = (side.rows[0] for side in sides)
            return [TrainingRow(first.ids, first.type_ids, {"score": _score(example)}, _row(second))]
        raise DataError(
            f"{_SHOWN[type(example)]} cannot train a model for {task}",
            "give data.train in the format of the task: conll or conllu for token-classification, squad for "
            "question-answering, pairs with scores for feature-extraction",
        )

    def _request(self, text: Text) -> Encoded:
        return self.encoder.pair(*text) if isinstance(text, tuple) else self.encoder.single(text)

    def _label(self, example: Example) -> Any:
        if not self.spec.multi_label:
            return self._index(str(example.label), _place(example))
        hot = np.zeros(len(self._labels), np.float32)
        for label in example.every_label:
            hot[self._index(label, _place(example))] = 1
        return hot

    def _index(self, label: str, where: str) -> int:
        if label not in self._labels:
            known = ", ".join(list(self._labels)[:20])
            raise DataError(f"{where} has the label {label!r}, which the model does not have", f"it has {known}")
        return self._labels[label]

    def _tagged(self, sentence: Tagged) -> list[TrainingRow]:
        encoded = self.encoder.windows(sentence.text)
        labels = np.full(len(encoded.content), IGNORED, np.int64)
        tokens = word_tokens(sentence.words, encoded.content, len(encoded.content))
        for token, tag in zip(tokens, sentence.tags, strict=True):
            if token is not None:
                labels[token] = self._index(tag, _place(sentence))
        rows = []
        for row in encoded.rows:
            targets = np.full(len(row.ids), IGNORED, np.int64)
            targets[row.start : row.start + row.count] = labels[row.first : row.first + row.count]
            if (targets != IGNORED).any():
                rows.append(_row(row, {"labels": targets}))
        return rows

    def _question(self, question: Question) -> list[TrainingRow]:
        encoded = self.encoder.pair_windows(question.question, question.context)
        span = _answer_tokens(question, encoded)
        rows = []
        for row in self._whole(encoded):
            start = end = 0
            if span is not None and row.first <= span[0] and span[1] < row.first + row.count:
                start, end = (row.start + token - row.first for token in span)
            rows.append(_row(row, {"start": start, "end": end}))
        return rows


def collate(rows: Sequence[TrainingRow], pad_id: int) -> Batch:
    """Rows padded to the longest of them, as one batch."""
    batch = _padded([(row.ids, row.type_ids) for row in rows], pad_id, "")
    if rows[0].other is not None:
        others = [row.other for row in rows if row.other is not None]
        batch |= _padded([(other.ids, other.type_ids) for other in others], pad_id, "other_")
    tokens = batch["input_ids"].shape[1]
    for name in rows[0].targets:
        values = [row.targets[name] for row in rows]
        if name == "labels":
            values = [np.pad(value, (0, tokens - len(value)), constant_values=IGNORED) for value in values]
        batch[name] = torch.from_numpy(np.asarray(values))
        if batch[name].dtype == torch.float64:
            batch[name] = batch[name].float()
    return batch


def _padded(rows: Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]], pad_id: int, prefix: str) -> Batch:
    shape = len(rows), max(len(ids) for ids, _ in rows)
    ids, types, mask = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for place, (row_ids, row_types) in enumerate(rows):
        ids[place, : len(row_ids)], types[place, : len(row_ids)], mask[place, : len(row_ids)] = row_ids, row_types, 1
    names = f"{prefix}input_ids", f"{prefix}attention_mask", f"{prefix}token_type_ids"
    return {name: torch.from_numpy(array) for name, array in zip(names, (ids, mask, types), strict=True)}


def _row(row: Row, targets: Mapping[str, Any] | None = None) -> TrainingRow:
    return TrainingRow(row.ids, row.type_ids, targets or {})


def _place(example: Labelled) -> str:
    return f"{example.path or 'data.train'}:{example.line}"


def _score(example: Example) -> float:
    try:
        return float(str(example.label))
    except ValueError:
        raise DataError(
            f"{_place(example)}: the score {example.label!r} is not a number", "name the column of the scores"
        ) from None


def _answer_tokens(question: Question, encoded: Encoded) -> tuple[int, int] | None:
    """The first and the last token of the first answer, by their places in the context; None where there is none."""
    if not question.answers:
        return None
    answer = question.answers[0]
    begin, end = answer.start, answer.start + len(answer.text)
    inside = [
        token for token, (left, right) in enumerate(encoded.content.encoding.offsets) if left < end and right > begin
    ]
    return (inside[0], inside[-1]) if inside else None
