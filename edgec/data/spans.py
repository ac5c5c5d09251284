"""Spans that tags spell, and their F1: what seqeval's default mode counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

# IOBES and BILOU say more than BIO: S- and U- are a span of one word, E- and L- the last word of a longer one.
_PREFIXES: Final = {"B": "B", "S": "S", "U": "S", "I": "I", "E": "E", "L": "E"}

Span = tuple[str, int, int]
"""Type, first word and last word."""


def of_spans(labels: Sequence[str]) -> bool:
    """Whether labels are parts of spans. They need no prefixes for that: O, PER, LOC."""
    return any(label == "O" or label.startswith(("B-", "I-")) for label in labels)


def spans(tags: Sequence[str]) -> list[Span]:
    """The spans of a sentence. An I- or E- that follows no span of its type begins one; a tag without a prefix is
    inside its type."""
    found: list[Span] = []
    first, before, kind_before = 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, kind = _split(tag)
        joined = before in "BI" and prefix in "IE" and kind == kind_before
        if before != "O" and not joined:
            found.append((kind_before, first, place - 1))
        if prefix != "O" and not joined:
            first = place
        before, kind_before = prefix, kind
    return found


def span_f1(expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """F1 over the spans of all sentences: type and both ends have to be right. 0 where neither side has a span.

    Raises ValueError for unequal lengths and for no sentences.
    """
    counts = _counts(expected, predicted).values()
    total = sum(count for _, count in counts)
    return 2 * sum(hits for hits, _ in counts) / total if total else 0.0


def span_macro_f1(expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Mean of the F1 of every type that occurs on either side, each counting the same."""
    counts = _counts(expected, predicted).values()
    return sum(2 * hits / count for hits, count in counts) / len(counts) if counts else 0.0


def _counts(expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, tuple[int, int]]:
    """(spans that both sides have, spans of both sides together) of every type."""
    if len(expected) != len(predicted) or not len(expected):
        raise ValueError(f"both sides need as many sentences, at least one; not {len(expected)} and {len(predicted)}")
    hits: Counter[str] = Counter()
    occurrences: Counter[str] = Counter()
    for a, b in zip(expected, predicted, strict=True):
        if len(a) != len(b):
            raise ValueError(f"a sentence has {len(a)} tags on one side and {len(b)} on the other")
        left, right = set(spans(a)), set(spans(b))
        hits.update(kind for kind, _, _ in left & right)
        occurrences.update(kind for kind, _, _ in [*left, *right])
    return {kind: (hits[kind], count) for kind, count in occurrences.items()}


def _split(tag: str) -> tuple[str, str]:
    """("B" | "I" | "E" | "S" | "O", type)."""
    if tag == "O":
        return "O", ""
    prefix, separator, kind = tag.partition("-")
    return (_PREFIXES[prefix], kind) if separator and prefix in _PREFIXES else ("I", tag)
