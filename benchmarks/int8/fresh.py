"""Cold start and peak memory, in fresh processes that take turns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from edgec_runtime import statistics

from .environments import PeerFailed
from .speed import spread

TEXT = "A fresh process answers its first text."
# Who takes seconds to start needs no ten rounds to be told from who takes a tenth of that.
ENOUGH_MS = 12_000.0

Start = Callable[[], tuple[float, float]]
"""Milliseconds to the first embedding, and MiB of peak memory."""


def measure(starts: Mapping[str, Start], imports: Callable[[], float], rounds: int) -> dict[str, Any]:
    """By name: {"ms", "over_imports", "peak_memory_mb", "rounds"} or {"error"}; "imports": those of the bare imports.

    over_imports: times the bare imports of the same round.
    """
    print("cold starts", file=sys.stderr)
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in starts}
    failures: dict[str, str] = {}
    bare: list[float] = []
    for number in range(rounds + 1):
        base = imports()
        if number:
            bare.append(base)
        for name, start in starts.items():
            taken = times[name]
            if name in failures or sum(one[0] for one in taken) > ENOUGH_MS:
                continue
            try:
                elapsed, memory = start()
            except PeerFailed as error:
                failures[name] = str(error)
                continue
            if number:  # the first round brings the files into memory
                taken.append((elapsed, memory, elapsed / base))
    found: dict[str, Any] = {"imports": {"ms": spread(bare)}}
    for name, taken in times.items():
        if name in failures:
            found[name] = {"error": failures[name]}
            continue
        elapsed_ms, memories, ratios = (list(column) for column in zip(*taken, strict=True))
        found[name] = {
            "ms": spread(elapsed_ms),
            "over_imports": spread(ratios),
            "peak_memory_mb": statistics.median(memories),
            "rounds": len(taken),
        }
    return found
