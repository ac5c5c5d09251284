from __future__ import annotations

import itertools
import statistics as stdlib

import numpy as np
import pytest
from edgec_runtime import rounds, statistics
from scipy.stats import median_abs_deviation

RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize("count", [2, 3, 10, 101, 1000])
def test_percentiles_agree_with_the_standard_library(count: int) -> None:
    times = RANDOM.lognormal(size=count).tolist()
    summary = statistics.summarise(times)
    reference = stdlib.quantiles(times, n=100, method="inclusive")
    assert summary.n == count
    assert summary.mean == pytest.approx(stdlib.fmean(times))
    assert (summary.p50, summary.p90, summary.p99) == pytest.approx((reference[49], reference[89], reference[98]))
    assert statistics.median(times) == pytest.approx(stdlib.median(times))


def test_one_time_is_its_own_summary() -> None:
    assert statistics.summarise([4.0]) == statistics.Summary(1, 4.0, 4.0, 4.0, 4.0)
    assert statistics.drift([4.0]) == 0


def test_spread_agrees_with_scipy() -> None:
    times = RANDOM.lognormal(size=51).tolist()
    assert statistics.spread(times) == pytest.approx(median_abs_deviation(times) / np.median(times))


def test_ratio_is_taken_round_by_round() -> None:
    """A machine that gets three times slower half way changes both sides alike: the ratio stays, sharp."""
    slow = np.repeat([1.0, 3.0], 10)
    found = statistics.ratio(8 * slow, 2 * slow)
    assert (found.median, found.p10, found.p90) == pytest.approx((4, 4, 4))
    baseline, times = RANDOM.uniform(1, 2, 20), RANDOM.uniform(1, 2, 20)
    found = statistics.ratio(baseline.tolist(), times.tolist())
    deciles = stdlib.quantiles((baseline / times).tolist(), n=10, method="inclusive")
    assert (found.p10, found.median, found.p90) == pytest.approx((deciles[0], deciles[4], deciles[8]))


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ([10.0] * 20, None),
        ([10.0] * 19 + [500.0], None),  # a single outlier: pyperf's rule would call this unstable
        ([10.0, 10.9] * 10, None),
        ([10.0, 13.0] * 10, "scatter"),
        ([10.0] * 10 + [11.5] * 10, "second half"),
        ([11.5] * 10 + [10.0] * 10, "second half"),
    ],
)
def test_unstable(times: list[float], reason: str | None) -> None:
    found = statistics.unstable(times)
    assert found is None if reason is None else found is not None and reason in found


def test_unstable_ratio() -> None:
    assert statistics.unstable_ratio(statistics.Ratio(2.0, 1.85, 2.2)) is None
    assert statistics.unstable_ratio(statistics.Ratio(2.0, 1.7, 2.2)) is not None


def test_settled_waits_for_falling_times_only() -> None:
    assert not statistics.settled([1.0] * 9)  # too few to tell
    assert statistics.settled([1.0] * 10)
    assert not statistics.settled([2.0] * 5 + [1.0] * 5)
    assert statistics.settled([1.0] * 5 + [2.0] * 5)
    assert statistics.settled([9.0] * 50 + [1.0] * 10)  # only the last ten count


def test_work_takes_turns() -> None:
    calls: list[str] = []
    told: list[str] = []
    series = rounds.interleave([lambda: calls.append("a"), lambda: calls.append("b")], 4, told.append)
    turns = [calls[0]] + [now for before, now in itertools.pairwise(calls) if now != before]
    assert turns == ["a", "b"] * 5  # the warm-up of each, then four rounds
    assert all(len(one.rounds) == 4 and one.settled for one in series)
    # The rest were warm-up calls (ten at least) and one untimed call a round.
    for name, one in zip("ab", series, strict=True):
        assert len(one.calls) + 10 + 4 <= calls.count(name)
    assert told[-1] == "round 4/4"
