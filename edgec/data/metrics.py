"""Metrics, in numpy alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = str | frozenset[str]
"""What a row has: one label, or all of them where it may have several."""


def accuracy(expected: Sequence[object], predicted: Sequence[object]) -> float:
    """Share of rows where both agree. Raises ValueError for unequal lengths and for no rows."""
    _same_length(expected, predicted)
    return sum(a == b for a, b in zip(expected, predicted, strict=True)) / len(expected)


def macro_f1(expected: Sequence[Labels], predicted: Sequence[Labels]) -> float:
    """Mean F1 over every label that occurs on either side, each label counting the same.

    A row is one label, or a set of them. A label that is expected but never predicted, or the reverse, has F1 0
    (scikit-learn's default); where there are no labels at all the mean is 0. Raises ValueError for unequal lengths and
    for no rows.
    """
    counts = _counts(expected, predicted)
    return float(np.mean([2 * hits / occurrences for hits, occurrences in counts.values()])) if counts else 0.0


def micro_f1(expected: Sequence[Labels], predicted: Sequence[Labels]) -> float:
    """F1 over all labels together, each occurrence counting the same; rows as in `macro_f1`.

    With one label a row it is the accuracy. Raises ValueError for unequal lengths and for no rows.
    """
    counts = _counts(expected, predicted).values()
    occurrences = sum(count for _, count in counts)
    return 2 * sum(hits for hits, _ in counts) / occurrences if occurrences else 0.0


def pearson(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation. nan where one side is constant."""
    _same_length(a, b)
    return _correlation(np.asarray(a, np.float64), np.asarray(b, np.float64))


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; ties share the mean of their ranks. nan where one side is constant."""
    _same_length(a, b)
    return _correlation(_ranks(np.asarray(a, np.float64)), _ranks(np.asarray(b, np.float64)))


def cosines(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Cosine similarity by row: (n, d) and (n, d) to (n,). A row of zeros is like no row but one of zeros."""
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if left.shape != right.shape or left.ndim != 2:
        raise ValueError(f"two arrays of one shape (n, d) are needed, not {left.shape} and {right.shape}")
    norms = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)
    product = norms[0] * norms[1]
    # Rounding can carry the cosine of equal rows past 1.
    cosine = np.clip((left * right).sum(axis=1) / np.where(product == 0, 1, product), -1.0, 1.0)
    return np.where((norms[0] == 0) & (norms[1] == 0), 1.0, cosine)


def mean_cosine(reference: npt.ArrayLike, embeddings: npt.ArrayLike) -> float:
    """Mean over the rows of `cosines`."""
    values = cosines(reference, embeddings)
    if not values.size:
        raise ValueError("no rows")
    return float(values.mean())


def _correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    # A mean is rounded, so what is left of equal values may be a little above 0.
    if (a == a[0]).all() or (b == b[0]).all():
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / norm) if norm else float("nan")


def _counts(expected: Sequence[Labels], predicted: Sequence[Labels]) -> dict[str, tuple[int, int]]:
    """(rows in which both sides have it, occurrences on both sides together) of every label that occurs."""
    _same_length(expected, predicted)
    hits: Counter[str] = Counter()
    occurrences: Counter[str] = Counter()
    for a, b in zip(expected, predicted, strict=True):
        left, right = ({row} if isinstance(row, str) else set(row) for row in (a, b))
        hits.update(left & right)
        occurrences.update(left)
        occurrences.update(right)
    return {label: (hits[label], count) for label, count in occurrences.items()}


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1, ties averaged: (n,) to (n,)."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: npt.NDArray[np.float64] = last - (counts - 1) / 2
    return mean_rank[group]


def _same_length(a: Sequence[Any], b: Sequence[Any]) -> None:
    if len(a) != len(b) or not len(a):
        raise ValueError(f"both sides need as many rows, at least one; there are {len(a)} and {len(b)}")
