"""Metrics, in numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def accuracy(expected: Sequence[object], predicted: Sequence[object]) -> float:
    """Share of rows where both agree. Raises ValueError for unequal lengths and for no rows."""
    _same_length(expected, predicted)
    return sum(a == b for a, b in zip(expected, predicted, strict=True)) / len(expected)


def macro_f1(expected: Sequence[str], predicted: Sequence[str]) -> float:
    """Mean F1 over every label that occurs on either side, each label counting the same.

    A label that is expected but never predicted, or the reverse, has F1 0 (scikit-learn's default).
    Raises ValueError for unequal lengths and for no rows.
    """
    _same_length(expected, predicted)
    scores = []
    for label in {*expected, *predicted}:
        hits = sum(a == label == b for a, b in zip(expected, predicted, strict=True))
        occurrences = sum(a == label for a in expected) + sum(b == label for b in predicted)
        scores.append(2 * hits / occurrences)
    return float(np.mean(scores))


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation; ties share the mean of their ranks. nan where one side is constant."""
    _same_length(a, b)
    rank_a, rank_b = _ranks(np.asarray(a, np.float64)), _ranks(np.asarray(b, np.float64))
    rank_a, rank_b = rank_a - rank_a.mean(), rank_b - rank_b.mean()
    norm = float(np.sqrt((rank_a**2).sum() * (rank_b**2).sum()))
    return float((rank_a * rank_b).sum() / norm) if norm else float("nan")


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


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1, ties averaged: (n,) to (n,)."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: npt.NDArray[np.float64] = last - (counts - 1) / 2
    return mean_rank[group]


def _same_length(a: Sequence[Any], b: Sequence[Any]) -> None:
    if len(a) != len(b) or not len(a):
        raise ValueError(f"both sides need as many rows, at least one; there are {len(a)} and {len(b)}")
