"""Speed: all workers take turns, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from edgec_runtime import statistics

from .contenders import FLOAT_FORMS
from .environments import PeerFailed
from .workers import Worker

FLOATS = tuple(one.name for one in FLOAT_FORMS)
WARM_UP_MS = 1000.0
MOST_WARM_UP_CALLS = 40
# A turn takes about so long: enough calls for a median, short enough to alternate often.
TURN_MS = 40.0
MOST_CALLS = 20

Call = Callable[[int], list[float]]
"""Run so many times; milliseconds of each."""


@dataclass
class Series:
    """Milliseconds. calls: of every timed call. rounds: the median of each round's calls."""

    calls: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)


def shape_calls(workers: Mapping[str, Worker], shape: tuple[int, int]) -> dict[str, Call]:
    def call(worker: Worker) -> Call:
        def times(count: int) -> list[float]:
            found: list[float] = worker.ask("time", batch=shape[0], tokens=shape[1], calls=count)["ms"]
            return found

        return times

    return {name: call(worker) for name, worker in workers.items()}


def text_calls(workers: Mapping[str, Worker], texts: Sequence[str]) -> dict[str, Call]:
    def call(worker: Worker) -> Call:
        return lambda count: [worker.ask("texts", texts=list(texts))["ms"] for _ in range(count)]

    return {name: call(worker) for name, worker in workers.items()}


def take_turns(calls: Mapping[str, Call], rounds: int) -> tuple[dict[str, Series], dict[str, str]]:
    """Warm all up, then `rounds` rounds in which everyone has a turn, every second one in the opposite order.

    Returns the times and, by name, why somebody failed: it takes part no longer, and its times are dropped.
    """
    counts: dict[str, int] = {}
    failures: dict[str, str] = {}
    for name, call in calls.items():
        try:
            counts[name] = warm_up(call)
        except PeerFailed as error:
            failures[name] = str(error)
    series = {name: Series() for name in counts}
    for number in range(rounds):
        for name in list(series)[:: -1 if number % 2 else 1]:
            try:
                # One more, which is not counted: what ran in between has filled the caches with its own weights.
                times = calls[name](counts[name] + 1)[1:]
            except PeerFailed as error:
                failures[name] = str(error)
                del series[name]
                continue
            series[name].calls += times
            series[name].rounds.append(statistics.median(times))
    return series, failures


def warm_up(call: Call) -> int:
    """The calls of a turn."""
    typical = min(call(3))
    if typical < WARM_UP_MS:
        typical = statistics.median(call(min(MOST_WARM_UP_CALLS, math.ceil(WARM_UP_MS / typical)))[-5:])
    return min(MOST_CALLS, max(1, math.ceil(TURN_MS / typical)))


def summarise(series: Mapping[str, Series], baseline: str) -> dict[str, dict[str, Any]]:
    """Of each: milliseconds, and how many times faster than `baseline` it was in the same round."""
    found = {}
    for name, one in series.items():
        ratio = statistics.ratio(series[baseline].rounds, one.rounds)
        found[name] = {
            "ms": spread(one.calls),
            "speedup": {"median": ratio.median, "p10": ratio.p10, "p90": ratio.p90},
            "unstable": statistics.unstable_ratio(ratio) if name != baseline else statistics.unstable(one.rounds),
        }
    return found


def fastest_float(series: Mapping[str, Series]) -> str:
    """The float form with the smallest median of rounds. Raises SystemExit where every one failed."""
    there = [name for name in FLOATS if name in series]
    if not there:
        raise SystemExit("no float form of onnxruntime ran: there is nothing to compare with")
    return min(there, key=lambda name: statistics.median(series[name].rounds))


def spread(times: Sequence[float]) -> dict[str, float]:
    """p10, median and p90."""
    p10, middle, p90 = map(float, np.percentile(np.asarray(times), (10, 50, 90)))
    return {"p50": middle, "p10": p10, "p90": p90}


def measure_shape(workers: Mapping[str, Worker], shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    """{"batch", "tokens", "baseline", "peers", "failures"}."""
    print(f"{shape[0]} x {shape[1]} tokens", file=sys.stderr)
    series, failures = take_turns(shape_calls(workers, shape), rounds)
    baseline = fastest_float(series)
    return {
        "batch": shape[0],
        "tokens": shape[1],
        "baseline": baseline,
        "peers": summarise(series, baseline),
        "failures": failures,
    }
