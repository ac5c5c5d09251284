"""token-classification: labelled spans of a text, in characters.

A word's label is that of its first subword, as these models are trained. Words are found in the text itself
rather than in the tokenizer's word numbers, which a SentencePiece tokenizer may give to a whole sentence: a
new word starts after white space, and where letters and punctuation meet, and at every ideograph.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec_runtime.errors import ManifestInvalid
from edgec_runtime.manifest import Manifest
from edgec_runtime.runner import Runner
from edgec_runtime.text import Content, Encoded, Encoder, require_text

from .base import TextModel, require_labels, require_list, require_outputs, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgec_runtime.runner import Outputs

SCHEMES = ("BIO", "plain")

# IOBES and BILOU say more than BIO: S- and U- are a span of one word, E- and L- the last word of a longer one.
_PREFIXES = {"B": "B", "S": "B", "U": "B", "I": "I", "E": "I", "L": "I"}


@dataclass(frozen=True)
class Span:
    """text[start:end] has this label. score: mean probability of the label over the span's words."""

    text: str
    label: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Word:
    """A word of the text: its characters [start, end) and the index of its first token."""

    start: int
    end: int
    token: int


class Tagger(TextModel):
    task = "token-classification"
    long_text = ("truncate", "window")

    def __init__(self, manifest: Manifest, encoder: Encoder, runner: Runner) -> None:
        super().__init__(manifest, encoder, runner)
        require_outputs(manifest, "logits")
        self.labels = require_labels(manifest)
        self.scheme = manifest.postprocessing.label_scheme
        if self.scheme not in SCHEMES:
            raise ManifestInvalid(
                f"postprocessing.label_scheme is {self.scheme!r}; known are {', '.join(SCHEMES)}",
                "export again",
            )

    def tag(self, text: str) -> list[Span]:
        """The spans of a text in order. "BIO": the entities; "plain": every word. Raises TextInvalid or
        EngineFailed."""
        encoded = self.encode_all([text])
        return self._spans(text, encoded[0], self.outputs(encoded)[0])

    def label_words(self, words: Sequence[str]) -> list[str]:
        """The label of each word of a sentence that is split into words already: that of the word's first token.

        The model reads the words with a space between each two. A word that has no token (it is beyond what the model
        reads, or the tokenizer drops it) gets "O", or the first label where there is no "O". Raises TextInvalid or
        EngineFailed.
        """
        require_list(words)
        for word in words:
            require_text(word)
        encoded = self.encode_all([" ".join(words)])
        return self.word_labels(words, encoded[0], self.outputs(encoded)[0])

    def word_labels(self, words: Sequence[str], encoded: Encoded, outputs: Sequence[Outputs]) -> list[str]:
        """As `label_words`, from the outputs of " ".join(words)."""
        logits = merge_windows(encoded, [out["logits"] for out in outputs])
        tokens = word_tokens(words, encoded.content, len(logits))
        best = logits.argmax(axis=-1)
        none = "O" if "O" in self.labels else self.labels[0]
        return [none if token is None else self.labels[best[token]] for token in tokens]

    def encode(self, request: Any) -> Encoded:
        windowed = self.manifest.preprocessing.long_text == "window"
        return self.encoder.windows(request) if windowed else self.encoder.single(request)

    def interpret(self, request: Any, encoded: Encoded, outputs: Sequence[Outputs]) -> list[dict[str, Any]]:
        return [asdict(span) for span in self._spans(request, encoded, outputs)]

    def _spans(self, text: str, encoded: Encoded, outputs: Sequence[Outputs]) -> list[Span]:
        logits = merge_windows(encoded, [out["logits"] for out in outputs])
        if not len(logits):
            return []
        probabilities = softmax(logits)
        best = probabilities.argmax(axis=-1)
        spans: list[Span] = []
        scores: list[list[float]] = []
        open_kind: str | None = None  # the entity that an I- label would continue
        for word in words(text, encoded.content, len(logits)):
            label, score = self.labels[best[word.token]], float(probabilities[word.token].max())
            prefix, kind = ("B", label) if self.scheme == "plain" else _bio(label)
            if prefix == "O":
                open_kind = None
                continue
            if prefix == "I" and kind == open_kind:
                last = spans[-1]
                spans[-1] = Span(text[last.start : word.end], kind, last.start, word.end, 0.0)
                scores[-1].append(score)
            else:
                spans.append(Span(text[word.start : word.end], kind, word.start, word.end, 0.0))
                scores.append([score])
            open_kind = kind
        return [
            Span(s.text, s.label, s.start, s.end, float(np.mean(values)))
            for s, values in zip(spans, scores, strict=True)
        ]


def merge_windows(encoded: Encoded, logits: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """(content tokens, labels): each token from the window in which it stands farthest from a cut edge.

    The beginning and the end of the text are no cut edges: nothing is missing there.
    """
    total = max(row.first + row.count for row in encoded.rows)
    merged = np.zeros((total, logits[0].shape[-1]), np.float32)
    context = np.full(total, -1)
    for row, values in zip(encoded.rows, logits, strict=True):
        token = np.arange(row.first, row.first + row.count)
        before = token - row.first if row.first else np.full(row.count, total)
        after = token[-1] - token if row.count and token[-1] + 1 < total else np.full(row.count, total)
        nearest = np.minimum(before, after)
        better = nearest > context[token]
        merged[token[better]] = values[row.start : row.start + row.count][better]
        context[token[better]] = nearest[better]
    return merged


def word_tokens(sentence: Sequence[str], content: Content, tokens: int) -> list[int | None]:
    """The token whose label counts for each word of " ".join(sentence), of the first `tokens`; None: there is none."""
    found = {word.start: word.token for word in words(" ".join(sentence), content, tokens)}
    result: list[int | None] = []
    start = 0
    for word in sentence:
        # A character that the tokenizer drops may stand first.
        result.append(next((found[place] for place in range(start, start + len(word)) if place in found), None))
        start += len(word) + 1
    return result


def words(text: str, content: Content, tokens: int) -> list[Word]:
    """The words of a text from the offsets of its first `tokens` tokens, white space excluded."""
    result: list[Word] = []
    offsets, numbers = content.encoding.offsets, content.encoding.word_ids
    first = 0  # the token whose label counts: a lone word-start mark before the word, if there is one
    fresh = True
    previous_end = 0
    for token in range(tokens):
        raw_start, end = offsets[token]
        start = raw_start
        while start < end and text[start].isspace():
            start += 1
        gap = text[previous_end:start]
        if token == 0 or gap.strip() != gap or numbers[token] != numbers[token - 1]:
            first, fresh = token, True
        if start == end:
            previous_end = max(previous_end, start)
            continue
        while text[end - 1].isspace():
            end -= 1
        while end < len(text) and unicodedata.category(text[end])[0] == "M":
            end += 1  # an accent that the tokenizer dropped belongs to its letter
        if result and end <= result[-1].end:
            continue  # another token of the same characters: bytes of one, or an accent
        last = result[-1] if result and not fresh else None
        if last is None or _border(text[last.end - 1], text[start]):
            result.append(Word(start, end, token if last is not None else first))
        else:
            result[-1] = Word(last.start, end, last.token)
        fresh, previous_end = False, end
    return result


def _border(left: str, right: str) -> bool:
    a, b = _class(left), _class(right)
    return a != b or a != "letter"


def _class(character: str) -> str:
    if unicodedata.category(character)[0] in "PS":
        return "sign"
    # Scripts written without spaces, in which a token's label stands for itself: ideographs and kana.
    if "\u3040" <= character <= "\u30ff" or "\u3400" <= character <= "\u9fff" or character >= "\U00020000":
        return "ideograph"
    return "letter"


def _bio(label: str) -> tuple[str, str]:
    """("B" | "I" | "O", kind). A label without a prefix is taken as inside its kind."""
    if label == "O":
        return "O", ""
    prefix, separator, kind = label.partition("-")
    return (_PREFIXES[prefix], kind) if separator and prefix in _PREFIXES else ("I", label)
