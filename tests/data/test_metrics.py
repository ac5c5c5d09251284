"""Metrics against scikit-learn and scipy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics
from sklearn.metrics.pairwise import cosine_similarity

from edgec.data.metrics import accuracy, cosines, macro_f1, mean_cosine, micro_f1, pearson, spearman


@pytest.mark.parametrize("seed", range(5))
def test_classification(seed: int) -> None:
    random = np.random.default_rng(seed)
    # Labels that are only expected, and labels that are only predicted.
    expected = random.choice(["a", "b", "c", "only expected"], 60).tolist()
    predicted = random.choice(["a", "b", "c", "only predicted"], 60).tolist()
    assert accuracy(expected, predicted) == pytest.approx(sklearn_metrics.accuracy_score(expected, predicted))
    reference = sklearn_metrics.f1_score(expected, predicted, average="macro", zero_division=0)
    assert macro_f1(expected, predicted) == pytest.approx(reference)
    micro = sklearn_metrics.f1_score(expected, predicted, average="micro", zero_division=0)
    assert micro_f1(expected, predicted) == pytest.approx(micro) == pytest.approx(accuracy(expected, predicted))


@pytest.mark.parametrize("seed", range(5))
def test_several_labels_a_row(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = ["a", "b", "c", "expected", "predicted", "never"]
    expected, predicted = (random.random((40, 6)) < 0.4 for _ in range(2))
    expected[:, 4:] = predicted[:, 3] = predicted[:, 5] = False
    sides = [[frozenset(labels[i] for i in np.flatnonzero(row)) for row in side] for side in (expected, predicted)]
    assert frozenset() in sides[0]
    assert accuracy(*sides) == pytest.approx(sklearn_metrics.accuracy_score(expected, predicted))
    for metric, average in (micro_f1, "micro"), (macro_f1, "macro"):
        # A label that never occurs does not count.
        reference = sklearn_metrics.f1_score(expected[:, :5], predicted[:, :5], average=average, zero_division=0)
        assert metric(*sides) == pytest.approx(reference)
    nothing = [frozenset[str]()] * 3
    assert micro_f1(nothing, nothing) == macro_f1(nothing, nothing) == 0.0


def test_classification_at_the_edges() -> None:
    assert accuracy(["a"], ["a"]) == macro_f1(["a"], ["a"]) == 1.0
    assert accuracy(["a"], ["b"]) == macro_f1(["a"], ["b"]) == 0.0
    for metric in (accuracy, macro_f1, micro_f1, spearman, pearson):
        with pytest.raises(ValueError, match="as many rows"):
            metric([], [])
        with pytest.raises(ValueError, match="as many rows"):
            metric(["1"], ["1", "2"])


@pytest.mark.parametrize("levels", [3, 10, 10_000])
def test_spearman_with_and_without_ties(levels: int) -> None:
    random = np.random.default_rng(levels)
    a, b = random.integers(0, levels, 200) / 7, random.integers(0, levels, 200) / 3
    b = b + a
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(a, -a) == pytest.approx(-1)
    assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)


@pytest.mark.parametrize("metric", [spearman, pearson])
def test_a_correlation_with_a_constant_is_not_a_number(metric: Callable[..., float]) -> None:
    assert math.isnan(metric([0.1, 0.1, 0.1], [1, 2, 3]))
    assert math.isnan(metric([1, 2, 3], [0.1, 0.1, 0.1]))
    assert math.isnan(metric([1], [2]))


def test_cosines() -> None:
    random = np.random.default_rng(0)
    a, b = random.standard_normal((20, 7)), random.standard_normal((20, 7)).astype(np.float32)
    reference = np.diag(cosine_similarity(a, b))
    np.testing.assert_allclose(cosines(a, b), reference, atol=1e-12)
    assert mean_cosine(a, b) == pytest.approx(reference.mean())
    assert mean_cosine(a, 3 * a) == pytest.approx(1) and mean_cosine(a, a) <= 1
    np.testing.assert_array_equal(cosines([[0, 0], [0, 0]], [[0, 0], [1, 0]]), [1, 0])
    with pytest.raises(ValueError, match="one shape"):
        cosines(a, b[:3])
    with pytest.raises(ValueError, match="no rows"):
        mean_cosine(a[:0], b[:0])
