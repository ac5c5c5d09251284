"""Times pieces of work side by side, A B A B: what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import statistics

Work = Callable[[], object]
Tell = Callable[[str], None]

_WARM_UP_SECONDS = 3.0
_MOST_WARM_UP_CALLS = 200
# A round of one contender takes about so long: enough calls for a median, short enough to alternate often.
_ROUND_MS = 40.0
_MOST_CALLS = 20
# What ran in between has filled the caches with its own weights; one untimed call brings ours back. A call
# that takes longer than this hardly notices.
_SETTLE_BELOW_MS = 200.0


@dataclass(frozen=True)
class Series:
    """calls: every timed call, in ms. rounds: the median of each round's calls, in ms. settled: whether the
    warm-up ended because the times were stable (`statistics.settled`), not because it had taken long
    enough."""

    calls: list[float]
    rounds: list[float]
    settled: bool


def interleave(work: Sequence[Work], rounds: int, tell: Tell) -> list[Series]:
    """Warm every piece of work up until it is stable, then time all of them in turn, `rounds` times."""
    plans = []
    for number, one in enumerate(work):
        tell(f"warming up {number + 1}/{len(work)}")
        plans.append(_warm_up(one))
    series = [Series([], [], settled) for _, settled in plans]
    for number in range(rounds):
        tell(f"round {number + 1}/{rounds}")
        for one, (typical, _), found in zip(work, plans, series, strict=True):
            if typical < _SETTLE_BELOW_MS:
                one()
            count = min(_MOST_CALLS, max(1, math.ceil(_ROUND_MS / typical)))
            times = [_timed(one) for _ in range(count)]
            found.calls.extend(times)
            found.rounds.append(statistics.median(times))
    return series


def _warm_up(work: Work) -> tuple[float, bool]:
    """The typical time of one call in ms, and whether it settled."""
    times: list[float] = []
    deadline = time.monotonic() + _WARM_UP_SECONDS
    while not statistics.settled(times):
        if len(times) == _MOST_WARM_UP_CALLS or (len(times) >= 2 and time.monotonic() > deadline):
            return statistics.median(times[-5:]), False
        times.append(_timed(work))
    return statistics.median(times[-5:]), True


def _timed(work: Work) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3
