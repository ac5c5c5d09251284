"""Ranges of activations, against brute force and plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.numerics.activations import activation_scale
from edgec.numerics.histogram import Histogram
from edgec.numerics.ranges import MovingAverage, least_squares_range, percentile_range


def histogram(values: np.ndarray) -> Histogram:
    made = Histogram()
    for batch in np.array_split(values.astype(np.float32), 17):
        made.add(batch)
    return made


def squared_error(values: np.ndarray, low: float, high: float, bits: int) -> float:
    """Of rounding `values` on the scale of [low, high], as QuantizeLinear and DequantizeLinear do, each on its own."""
    scale, zero = activation_scale(low, high, bits)
    levels = np.clip(np.rint(values / float(scale)) + int(zero), 0, 2**bits - 1)
    return float(np.mean(np.square((levels - int(zero)) * float(scale) - values)))


def with_outliers(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(40_000)
    values[:30] *= 25
    return values


def near_zero(seed: int) -> np.ndarray:
    """Most values within a level of zero, which then err by less than a level's share."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(40_000) * np.where(rng.random(40_000) < 0.02, 4, 0.01)


def after_gelu(seed: int) -> np.ndarray:
    """Bounded on one side, with a tail on the other."""
    x = np.random.default_rng(seed).standard_normal(40_000) * 2
    return x / (1 + np.exp(-1.702 * x))


def test_percentiles_cut_one_half_on_each_side() -> None:
    values = with_outliers(0)
    low, high = percentile_range(histogram(values), 99.0)
    assert (low, high) == pytest.approx(tuple(np.quantile(values, [0.005, 0.995])), abs=0.05)
    assert percentile_range(histogram(values), 100) == pytest.approx((values.min(), values.max()))


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("make", [with_outliers, near_zero, after_gelu])
def test_no_range_of_a_grid_errs_less(make: object, bits: int) -> None:
    values = make(bits)  # type: ignore[operator]
    found = least_squares_range(histogram(values), bits)
    lows = np.append(values.min() * np.linspace(0.02, 1, 40), 0.0)
    highs = values.max() * np.linspace(0.02, 1, 40)
    best = min(squared_error(values, low, high, bits) for low in lows for high in highs)
    # The histogram knows a value to a bin.
    assert squared_error(values, *found, bits) <= best * 1.03


def test_outliers_are_cut_only_where_levels_are_few() -> None:
    values = with_outliers(1)
    widths = [high - low for low, high in (least_squares_range(histogram(values), bits) for bits in (4, 6, 8))]
    assert widths[0] < widths[1] < widths[2] < np.ptp(values)
    assert widths[0] < np.ptp(values) / 8


@pytest.mark.parametrize("sign", [1, -1])
def test_values_of_one_sign_keep_zero(sign: int) -> None:
    values = sign * np.random.default_rng(2).uniform(5, 6, 5000)
    low, high = least_squares_range(histogram(values), 8)
    inner, outer = (low, high) if sign > 0 else (high, low)
    assert inner == 0.0 and 5.8 < abs(outer) <= 6


def test_nothing_but_zeros() -> None:
    assert least_squares_range(histogram(np.zeros(50)), 8) == (0.0, 0.0)
    assert percentile_range(histogram(np.zeros(50)), 99.9) == (0.0, 0.0)


def test_undefined_values_give_no_range() -> None:
    values = np.array([0.0, np.nan] * 20)
    for found in (least_squares_range(histogram(values), 8), percentile_range(histogram(values), 99)):
        assert np.isnan(found).all()


def test_a_moving_average_starts_at_the_first_batch() -> None:
    batches = [(-1.0, 2.0), (-3.0, 1.0), (-2.0, 5.0)]
    average = MovingAverage(0.9)
    for low, high in batches:
        average.add(low, high)
    assert average.range == pytest.approx(
        (0.81 * -1 + 0.09 * -3 + 0.1 * -2, 0.81 * 2 + 0.09 * 1 + 0.1 * 5),
    )
    latest = MovingAverage(0.0)
    latest.add(-1, 1)
    latest.add(-0.5, 4)
    assert latest.range == (-0.5, 4)
