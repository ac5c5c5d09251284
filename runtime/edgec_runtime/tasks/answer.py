"""question-answering: the span of a context that answers a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec_runtime.errors import ManifestInvalid, TextInvalid
from edgec_runtime.manifest import Manifest
from edgec_runtime.runner import Runner
from edgec_runtime.text import Encoded, Encoder

from .base import TextModel, require_outputs

if TYPE_CHECKING:
    from edgec_runtime.runner import Outputs


@dataclass(frozen=True)
class Answer:
    """context[start:end] is the text. score: the sum of the start and the end logit. null_score: the same for
    "there is no answer", the smallest over all windows. No answer: text "", start and end 0."""

    text: str
    start: int
    end: int
    score: float
    null_score: float


class Reader(TextModel):
    task = "question-answering"
    long_text = ("truncate", "window")

    def __init__(self, manifest: Manifest, encoder: Encoder, runner: Runner) -> None:
        super().__init__(manifest, encoder, runner)
        require_outputs(manifest, "start_logits", "end_logits")
        limit = manifest.postprocessing.max_answer_tokens
        if limit is None or limit < 1 or not manifest.preprocessing.pairs:
            raise ManifestInvalid(
                "question-answering needs postprocessing.max_answer_tokens and preprocessing.pairs",
                "export the bundle again",
            )
        self.max_answer_tokens = limit
        self.null_answers = bool(manifest.postprocessing.null_answers)

    def answer(self, question: str, context: str) -> Answer:
        """The best answer. Raises TextInvalid or EngineFailed."""
        encoded = self.encode_all([{"question": question, "context": context}])
        return self._answer(context, encoded[0], self.outputs(encoded)[0])

    def encode(self, request: Any) -> Encoded:
        if not isinstance(request, dict) or set(request) != {"question", "context"}:
            raise TextInvalid("not a question with its context", 'give {"question": ..., "context": ...}')
        encoded = self.encoder.pair_windows(request["question"], request["context"])
        if self.manifest.preprocessing.long_text == "window":
            return encoded
        row = encoded.rows[0]
        return Encoded((row,), encoded.content, encoded.dropped + len(encoded.content) - row.count)

    def interpret(self, request: Any, encoded: Encoded, outputs: Sequence[Outputs]) -> dict[str, Any]:
        return asdict(self._answer(request["context"], encoded, outputs))

    def _answer(self, context: str, encoded: Encoded, outputs: Sequence[Outputs]) -> Answer:
        best, span = -np.inf, (0, 0)
        null_score = np.inf
        for row, out in zip(encoded.rows, outputs, strict=True):
            starts, ends = out["start_logits"].astype(np.float64), out["end_logits"].astype(np.float64)
            null_score = min(null_score, float(starts[0] + ends[0]))
            inside = slice(row.start, row.start + row.count)
            score, first, last = best_span(starts[inside], ends[inside], self.max_answer_tokens)
            if score > best:
                best, span = score, (row.first + first, row.first + last)
        if not len(encoded.content):  # an empty context: there is nothing to choose from
            return Answer("", 0, 0, float(null_score), float(null_score))
        if self.null_answers and null_score > best:
            return Answer("", 0, 0, float(best), float(null_score))
        offsets = encoded.content.encoding.offsets
        start, end = offsets[span[0]][0], offsets[span[1]][1]
        while start < end and context[start].isspace():
            start += 1
        return Answer(context[start:end], start, end, float(best), float(null_score))


def best_span(starts: Any, ends: Any, limit: int) -> tuple[float, int, int]:
    """(score, first, last) of the best span of at most `limit` tokens; ties go to the first and shortest."""
    best, span = -np.inf, (0, 0)
    for length in range(min(limit, len(starts))):
        scores = starts[: len(starts) - length] + ends[length:]
        first = int(scores.argmax())
        if scores[first] > best:
            best, span = float(scores[first]), (first, first + length)
    return float(best), *span
