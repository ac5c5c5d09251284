"""Answers questions from a store: the question is read, the passages were read before."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from edgec_runtime.errors import TextInvalid
from edgec_runtime.notices import TruncationWarning, warn
from edgec_runtime.store import Passage, Store
from edgec_runtime.tasks.answer import best_span

from .bm25 import has_words
from .component import Decoupled, Reading, open_decoupled
from .search import NAMES, Match, Name, Query, Search, open_search

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH: Final = 32
"""At most so many passages run together, so that a large `k` does not need memory for all of them."""


@dataclass(frozen=True)
class PassageAnswer:
    """A span of a passage that answers the question.

    text: context[start:end]. score: the sum of the start and the end logit; null_score: the same for "this passage has
    no answer". document_start, document_end: the span in the document. passage, document, title: where it stands;
    passage and document are ids. context: the text of the passage. match: how well the passage fits the question, in
    the measure of the search that found it.
    """

    text: str
    score: float
    null_score: float
    start: int
    end: int
    document_start: int
    document_end: int
    passage: str
    document: str
    title: str
    context: str
    match: float


@dataclass(frozen=True)
class Answers:
    """What a store answers to a question, the best answer first; a sequence of `answers`.

    null_score: the smallest null score of the passages that were read; None where the search found none. passages:
    how many were read.
    """

    question: str
    answers: tuple[PassageAnswer, ...]
    null_score: float | None
    passages: int

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[PassageAnswer]:
        return iter(self.answers)

    def __getitem__(self, place: int) -> PassageAnswer:
        return self.answers[place]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "answers": [asdict(answer) for answer in self.answers]}


class PassageReader:
    """A decoupled bundle and a store of passages that it has read. Thread-safe; `close`, or a `with` block, ends it."""

    def __init__(self, model: Decoupled, store: Store) -> None:
        """Used by `open`."""
        self.model, self.store = model, store
        self._searches: dict[Name, Search] = {}
        self._lock = threading.Lock()
        # A passage stands in its row between special tokens.
        ids, place = model.encoder.side(1, np.zeros(0, np.int32))
        self._lead, self._trail = place.start, len(ids) - place.start

    @classmethod
    def open(cls, bundle: str | Path, store: str | Path, *, threads: int | None = None) -> Self:
        """threads: CPU threads to use; default all that the process may use.

        Raises TaskMismatch for a bundle that is not decoupled, StoreMismatch for the store of another build,
        StoreEmpty, and what loading a bundle and opening a store raise.
        """
        model = open_decoupled(bundle, threads=threads, schedule="batches")
        try:
            return cls(model, Store.open(store, expect=model.component))
        except BaseException:
            model.reader.close()
            raise

    def ask(self, question: str, k: int = 5, search: Name | None = None) -> Answers:
        """What the `k` passages that fit best say. A span that two overlapping passages have in common comes once.

        Answers are ordered by how far their score is above the null score of their passage. Where the model was made to
        tell that there is no answer, passages without one give none. search: how passages are found, "dense" or "bm25";
        None: dense where the model was trained for it (the option contrastive of decouple) and where no blanks part the
        question's words, else bm25. Raises TextInvalid for a question without a token, StoreDamaged, EngineFailed.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if search is None:
            search = "dense" if self.model.trained_to_search or not has_words(question) else "bm25"
        if search not in NAMES:
            raise ValueError(f"unknown search {search!r}; known are {', '.join(NAMES)}")
        content = self.model.encoder.content(question)
        if not len(content):
            raise TextInvalid("the question has no token", "ask something")
        limit = self.model.manifest.preprocessing.max_length
        reading = self._read(content.ids[: limit // 2])
        matches = self._search(search).find(Query(question, reading.embedding), k)
        if not matches:
            return Answers(question, (), None, 0)
        passages = [self.store.passage(match.row) for match in matches]
        too_many = len(reading.states) + max(len(passage.states) for passage in passages) - limit
        kept = min(limit // 2, len(content)) - max(0, too_many)
        if kept < len(content):
            if kept < 1:
                raise TextInvalid(
                    f"a passage of {self.store.path} leaves no room for a question: the bundle reads {limit} tokens",
                    "index the passages again with this bundle",
                )
            warn(f"the question was cut from {len(content)} to {kept} tokens", TruncationWarning)
        if too_many > 0:
            reading = self._read(content.ids[:kept])
        outputs = self._outputs(reading.states, passages)
        return self._answers(question, matches, passages, outputs)

    def close(self) -> None:
        self._searches.clear()
        self.store.close()
        self.model.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, ids: NDArray[np.int32]) -> Reading:
        return self.model.read(self.model.encoder.side(0, ids)[0], 0)

    def _search(self, name: Name) -> Search:
        with self._lock:
            if name not in self._searches:
                self._searches[name] = open_search(self.store, name)
            return self._searches[name]

    def _outputs(self, question: NDArray[np.float32], passages: Sequence[Passage]) -> list[dict[str, NDArray[Any]]]:
        """start_logits and end_logits of each row, (tokens,); one batch where that may be."""
        together = _BATCH if self.model.together else 1
        groups = [passages[at : at + together] for at in range(0, len(passages), together)]
        outputs: list[dict[str, NDArray[Any]]] = []
        for group in groups:
            sizes = [len(question) + len(passage.states) for passage in group]
            states = np.zeros((len(group), max(sizes), question.shape[1]), np.float32)
            mask = np.zeros(states.shape[:2], np.int64)
            types = np.zeros_like(mask)
            for row, (passage, size) in enumerate(zip(group, sizes, strict=True)):
                states[row, : len(question)] = question
                states[row, len(question) : size] = passage.states
                mask[row, :size] = 1
                types[row, len(question) : size] = 1
            found = self.model.join(states, mask, types)
            outputs += [
                {name: found[name][row, :size].astype(np.float64) for name in ("start_logits", "end_logits")}
                for row, size in enumerate(sizes)
            ]
        return outputs

    def _answers(
        self,
        question: str,
        matches: Sequence[Match],
        passages: Sequence[Passage],
        outputs: Sequence[dict[str, NDArray[Any]]],
    ) -> Answers:
        reader = self.model.reader
        found: dict[tuple[str, int, int], PassageAnswer] = {}
        null_scores = []
        for match, passage, output in zip(matches, passages, outputs, strict=True):
            starts, ends = output["start_logits"], output["end_logits"]
            null_score = float(starts[0] + ends[0])
            null_scores.append(null_score)
            inside = slice(len(starts) - len(passage.offsets) + self._lead, len(starts) - self._trail)
            score, first, last = best_span(starts[inside], ends[inside], reader.max_answer_tokens)
            if reader.null_answers and null_score > score:
                continue
            answer = _answer(passage, match, score, null_score, *self._span(passage, first, last))
            # Where the document is not known the passage is one.
            place = (passage.document or passage.id, answer.document_start, answer.document_end)
            if place not in found or _rank(answer) > _rank(found[place]):
                found[place] = answer
        ordered = sorted(found.values(), key=_rank, reverse=True)
        return Answers(question, tuple(ordered), min(null_scores), len(passages))

    def _span(self, passage: Passage, first: int, last: int) -> tuple[int, int]:
        """The characters of a span of content tokens, without white space at its front."""
        start = int(passage.offsets[self._lead + first, 0])
        end = int(passage.offsets[self._lead + last, 1])
        while start < end and passage.text[start].isspace():
            start += 1
        return start, end


def _rank(answer: PassageAnswer) -> float:
    """Scores of different passages compare only against what else the passage might say."""
    return answer.score - answer.null_score


def _answer(passage: Passage, match: Match, score: float, null_score: float, start: int, end: int) -> PassageAnswer:
    return PassageAnswer(
        text=passage.text[start:end],
        score=score,
        null_score=null_score,
        start=start,
        end=end,
        document_start=passage.start + start,
        document_end=passage.start + end,
        passage=passage.id,
        document=passage.document,
        title=passage.title,
        context=passage.text,
        match=match.score,
    )
