"""What a row of measured times says, and whether it can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Two neighbouring stretches of a steady time agree this far: 3 % is what a quiet machine gives.
_SETTLED = 0.03
_WINDOW = 5
_SPREAD_LIMIT = 0.10
_DRIFT_LIMIT = 0.10
_RATIO_LIMIT = 0.20


@dataclass(frozen=True)
class Summary:
    """Milliseconds. n: how many times were taken."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Ratio:
    """The median of the rounds' ratios, and the interval that holds eight rounds in ten; above 1: faster."""

    median: float
    p10: float
    p90: float


def summarise(times: Sequence[float]) -> Summary:
    """Percentiles interpolate linearly between the two nearest times (Hyndman and Fan's type 7)."""
    values = np.asarray(times, np.float64)
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return Summary(len(values), float(values.mean()), float(p50), float(p90), float(p99))


def median(times: Sequence[float]) -> float:
    return float(np.median(np.asarray(times, np.float64)))


def spread(times: Sequence[float]) -> float:
    """The median absolute deviation as a share of the median: a few outliers do not move it."""
    values = np.asarray(times, np.float64)
    middle = np.median(values)
    return float(np.median(np.abs(values - middle)) / middle)


def drift(times: Sequence[float]) -> float:
    """How far the median of the second half is from that of the first half, as a share of the first."""
    values = np.asarray(times, np.float64)
    if len(values) < 2:
        return 0.0
    half = len(values) // 2
    first = np.median(values[:half])
    return float(abs(np.median(values[half:]) - first) / first)


def ratio(baseline: Sequence[float], times: Sequence[float]) -> Ratio:
    """How many times faster `times` are than `baseline`, round by round.

    Both hold one time a round, in the same order: what slows a whole round down slows both, and cancels out.
    """
    rounds = np.asarray(baseline, np.float64) / np.asarray(times, np.float64)
    p10, middle, p90 = np.percentile(rounds, (10, 50, 90))
    return Ratio(float(middle), float(p10), float(p90))


def unstable(rounds: Sequence[float]) -> str | None:
    """Why the times of these rounds are not to be trusted, or None.

    They are unstable where the median absolute deviation is above 10 % of the median, or where the second
    half of the run differs from the first by more than 10 % (a CPU that heats up, a machine that became
    busy). pyperf's rule (a standard deviation above 10 % of the mean) would let a single outlier decide.
    """
    if spread(rounds) > _SPREAD_LIMIT:
        return f"the times of the rounds scatter by {spread(rounds):.0%} around their median"
    if drift(rounds) > _DRIFT_LIMIT:
        return f"the second half of the run differs from the first by {drift(rounds):.0%}"
    return None


def unstable_ratio(found: Ratio) -> str | None:
    """Why this ratio is not to be trusted: p10 to p90 is wider than 20 % of the median. Otherwise None."""
    width = (found.p90 - found.p10) / found.median
    if width > _RATIO_LIMIT:
        return f"the ratio varies by {width:.0%} from round to round"
    return None


def settled(times: Sequence[float]) -> bool:
    """Whether the warm-up is over: the median of the last five times is no more than 3 % below the median of
    the five before them. Only falling times say that a warm-up goes on; rising ones are noise or heat."""
    if len(times) < 2 * _WINDOW:
        return False
    last = np.median(np.asarray(times[-_WINDOW:], np.float64))
    before = np.median(np.asarray(times[-2 * _WINDOW : -_WINDOW], np.float64))
    return bool(last >= (1 - _SETTLED) * before)
