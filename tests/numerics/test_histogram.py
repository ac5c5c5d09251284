"""The streaming histogram: every value is counted, wherever it lies, and no stream makes it larger."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from edgec.numerics.histogram import BINS, Histogram


def histogram(*batches: np.ndarray) -> Histogram:
    made = Histogram()
    for batch in batches:
        made.add(batch)
    return made


def skewed(count: int, seed: int = 0) -> np.ndarray:
    """Values of a long upper tail, some of them negative."""
    return (np.random.default_rng(seed).lognormal(0, 1.5, count) - 0.5).astype(np.float32)


def of_growing_size(batches: int) -> Iterator[np.ndarray]:
    """Batches of unequal length, each reaching further than all before it, to both sides."""
    rng = np.random.default_rng(3)
    for i in range(batches):
        yield (rng.standard_normal(rng.integers(1, 400)) * 1.01 ** min(i, 1000)).astype(np.float32)


def test_no_count_is_lost_and_the_extremes_are_exact() -> None:
    batches = list(of_growing_size(300))
    values = np.concatenate(batches)
    made = histogram(*batches)
    assert made.counts.sum() == values.size and made.counts.shape == (BINS,)
    assert (made.low, made.high) == (values.min(), values.max())
    edges = made.edges()
    assert edges[0] <= made.low and made.high <= edges[-1]
    # At least a quarter of the bins spans what was seen: a span is doubled only where it has to be.
    assert made.high - made.low > (edges[-1] - edges[0]) / 4 - 1e-9


def test_merged_bins_hold_what_they_held() -> None:
    """After growth to both sides each bin counts the values between its edges; a value on an edge may go either way."""
    batches = list(of_growing_size(40))
    values = np.sort(np.concatenate(batches).astype(np.float64))
    made = histogram(*batches)
    below = np.concatenate([[0], np.cumsum(made.counts)])
    width = made.edges()[1] - made.edges()[0]
    fewest = np.searchsorted(values, made.edges() - width / 1000)
    most = np.searchsorted(values, made.edges() + width / 1000)
    assert ((fewest <= below) & (below <= most)).all()


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.5, 0.99, 0.9999, 1.0])
def test_quantiles_are_those_of_the_values(fraction: float) -> None:
    values = skewed(200_000)
    made = histogram(*np.array_split(values, 71))
    bin_width = made.edges()[1] - made.edges()[0]
    # Where values are sparse a quantile lies anywhere between two of them.
    next_to = np.clip([fraction - 1 / values.size, fraction + 1 / values.size], 0, 1)
    least, most = np.quantile(values, next_to)
    assert least - bin_width <= made.quantile(fraction) <= most + bin_width


def test_the_order_of_batches_hardly_matters() -> None:
    batches = np.array_split(skewed(20_000), 13)
    forth, back = histogram(*batches), histogram(*reversed(batches))
    assert forth.quantile(0.9) == pytest.approx(back.quantile(0.9), rel=0.02)


@pytest.mark.parametrize("value", [0.0, 5.0, -3e-7])
def test_one_value_over_and_over(value: float) -> None:
    made = histogram(*[np.full((3, 4), value, np.float32)] * 5)
    assert made.counts.sum() == 60 and np.count_nonzero(made.counts) == 1
    assert made.quantile(0.5) == pytest.approx(value, rel=1e-6)
    made.add(np.array([value + 1, value - 1], np.float32))
    assert made.counts.sum() == 62 and made.quantile(0.5) == pytest.approx(value, abs=0.002)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_every_quantile(bad: float) -> None:
    made = histogram(np.array([1, 2], np.float32), np.array([1, bad], np.float32), np.array([3, 4], np.float32))
    assert np.isnan(made.low) and np.isnan(made.high)
    assert np.isnan(made.quantile(0.5))


def test_ten_thousand_batches_need_no_more_memory_than_a_hundred() -> None:
    def peak(batches: int) -> int:
        made = Histogram()
        tracemalloc.start()
        for batch in of_growing_size(batches):
            made.add(batch)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert made.counts.nbytes == 8 * BINS
        return most

    peak(100)  # what numpy allocates once
    assert peak(10_000) <= peak(100) + 8192
