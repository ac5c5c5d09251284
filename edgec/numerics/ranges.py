"""Ranges of activations: what a scale is made to span."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgec.numerics.histogram import Histogram

Range = tuple[float, float]


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """The range that holds `percentile` per cent of the values; of the others one half lies below, one above."""
    outside = (1 - percentile / 100) / 2
    return histogram.quantile(outside), histogram.quantile(1 - outside)


def least_squares_range(histogram: Histogram, bits: int) -> Range:
    """The range whose 2**bits levels hold the values of the histogram with the least squared error.

    Each bin counts as its centre: rounded to the nearest level, cut where it lies beyond the range. Both ends are
    searched between all and a hundredth of the extreme, first in steps of an eighth, then finer around the best.
    Zero is always inside and has a level, as in `edgec.numerics.activations.activation_scale`.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if not low < high:  # nothing but zeros, or NaN
        return low, high
    fractions = np.geomspace(1, 0.01, 40)
    low, high = _best_range(histogram, low * fractions, high * fractions, bits)
    around = fractions[1] ** np.linspace(-0.75, 0.75, 7)
    return _best_range(
        histogram,
        np.maximum(low * around, min(histogram.low, 0.0)),
        np.minimum(high * around, max(histogram.high, 0.0)),
        bits,
    )


def _best_range(
    histogram: Histogram, lows: npt.NDArray[np.float64], highs: npt.NDArray[np.float64], bits: int
) -> Range:
    """The pair of a low and a high end whose levels err least."""
    levels = 2**bits - 1
    filled = np.flatnonzero(histogram.counts)
    edges = histogram.edges()
    values, counts = ((edges[:-1] + edges[1:]) / 2)[filled], histogram.counts[filled]
    best_error, best = np.inf, (float(lows[0]), float(highs[0]))
    ends = np.unique(highs)[:, None]
    for low in np.unique(lows):
        scale = (ends - low) / levels
        zero = np.rint(-low / scale)
        rounded = np.clip(np.rint(values / scale), -zero, levels - zero) * scale
        errors = np.square(rounded - values) @ counts
        if errors.min() < best_error:
            best_error, best = errors.min(), (float(low), float(ends[np.argmin(errors), 0]))
    return best


class MovingAverage:
    """The exponential moving average of batch minima and maxima, which starts at those of the first batch.

    momentum: the weight of what was, 0 to 1 (the smoothing parameter of Bie et al. 2020, section 3.1).
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.range: Range | None = None

    def add(self, low: float, high: float) -> None:
        """One batch."""
        before_low, before_high = self.range or (low, high)
        kept = self.momentum
        self.range = kept * before_low + (1 - kept) * low, kept * before_high + (1 - kept) * high
