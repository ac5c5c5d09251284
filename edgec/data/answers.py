"""Exact match and F1 of answers, by the rules of SQuAD 2.0's own script."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION: Final = frozenset(string.punctuation)


def normalized(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, white space made single."""
    text = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(expected: Sequence[str], predicted: str) -> float:
    """1 where the answer is one of those expected; nothing expected means that there is no answer, which "" says."""
    return _best(expected, predicted, lambda gold, given: float(normalized(gold) == normalized(given)))


def answer_f1(expected: Sequence[str], predicted: str) -> float:
    """F1 over the words of the answer, the best among those expected. Where one side is empty, 1 if both are."""
    return _best(expected, predicted, _f1)


def answer_scores(expected: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """The scores of SQuAD 2.0, as shares of 1. expected: the answers of each question, none where there is none.

    "f1" and "exact_match" over all questions, over those with an answer ("..._answerable") and those without
    ("f1_unanswerable", whose exact match is the same), as far as there are such; "always_null_f1": what a model that
    never answers would get, in f1 as in exact match. Raises ValueError for unequal lengths and for no questions.
    """
    if len(expected) != len(predicted) or not len(expected):
        raise ValueError(f"both sides need as many answers, at least one; not {len(expected)} and {len(predicted)}")
    f1 = [answer_f1(gold, given) for gold, given in zip(expected, predicted, strict=True)]
    exact = [exact_match(gold, given) for gold, given in zip(expected, predicted, strict=True)]
    answerable = [i for i, gold in enumerate(expected) if gold]
    unanswerable = [i for i, gold in enumerate(expected) if not gold]
    scores = {"f1": _mean(f1), "exact_match": _mean(exact)}
    if answerable:
        scores["f1_answerable"] = _mean([f1[i] for i in answerable])
        scores["exact_match_answerable"] = _mean([exact[i] for i in answerable])
    if unanswerable:
        scores["f1_unanswerable"] = _mean([f1[i] for i in unanswerable])
    scores["always_null_f1"] = _mean([answer_f1(gold, "") for gold in expected])
    return scores


def _best(expected: Sequence[str], predicted: str, score: Callable[[str, str], float]) -> float:
    # An answer of which nothing is left but articles and punctuation is none.
    golds = [gold for gold in expected if normalized(gold)] or [""]
    return max(score(gold, predicted) for gold in golds)


def _f1(gold: str, given: str) -> float:
    left, right = normalized(gold).split(), normalized(given).split()
    if not left or not right:
        return float(left == right)
    common = sum((Counter(left) & Counter(right)).values())
    return 2 * common / (len(left) + len(right)) if common else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
