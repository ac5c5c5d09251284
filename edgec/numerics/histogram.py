"""A histogram of a stream of values, in memory that does not grow with the stream."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

BINS: Final = 4096


class Histogram:
    """Counts of values in BINS bins of equal width.

    The bins start as wide as the first values need. Values beyond them double the span: neighbouring bins are merged
    in pairs, which keeps every count, and the freed half of the bins is put on the side where it is needed.

    counts: (BINS,). low, high: the smallest and the largest value so far; NaN once a value was not finite, and the
    counts then mean nothing.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.low = self.high = 0.0
        self._start = self._span = 0.0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count `values`, of any shape."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low + high + self.low):
            self.low = self.high = float("nan")
            return
        if self._span == 0:
            self.low, self.high = low, high
            # One value alone has no width: a thousandth of it, or nearly nothing, which the next values double.
            self._start, self._span = low, (high - low) or max(abs(low) / 1024, 1e-30)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen()
        places = (values.reshape(-1) - self._start) * (BINS / self._span)
        self.counts += np.bincount(np.clip(places.astype(np.int64), 0, BINS - 1), minlength=BINS)

    def edges(self) -> npt.NDArray[np.float64]:
        """The borders of the bins, (BINS + 1,)."""
        return self._start + np.arange(BINS + 1, dtype=np.float64) * (self._span / BINS)

    def quantile(self, fraction: float) -> float:
        """The value below which `fraction` (0 to 1) of all lie, as if each bin's values were spread evenly in it.

        NaN where a value was not finite.
        """
        below = np.concatenate([[0], np.cumsum(self.counts)])
        value = np.interp(fraction * below[-1], below, self.edges())
        return float(np.clip(value, self.low, self.high))

    def _widen(self) -> None:
        """Double the span until it holds all values seen."""
        while self.low < self._start or self.high > self._start + self._span:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            free = np.zeros_like(merged)
            if self.low < self._start:
                self.counts = np.concatenate([free, merged])
                self._start -= self._span
            else:
                self.counts = np.concatenate([merged, free])
            self._span *= 2
