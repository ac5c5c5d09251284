"""What the user will not give up, and whether it was kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgec_runtime.manifest import Manifest

from edgec.devices.compare import BenchReport, BundleFigures
from edgec.recipe import Budget

JUDGED_SHAPE: Final = (1, 128)
"""Batch and tokens that `speedup` and `p50_ms` are judged at."""


def judged_shape(measured: BundleFigures) -> tuple[int, int]:
    """JUDGED_SHAPE, or the longest row that was measured where the model takes none that long."""
    return max(shape for shape in measured.shapes if shape <= JUDGED_SHAPE)


@dataclass(frozen=True)
class Verdict:
    """One limit for one target. value and met are None where there was nothing to measure it on.

    group: the worst one, which the value is of; "" where quality was not measured by group, and for other limits.
    """

    target: str
    what: str
    limit: float
    value: float | None
    met: bool | None
    group: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.target}: {self.what} was not measured"
        kept = "within" if self.met else "misses"
        where = f" (group {self.group})" if self.group else ""
        return f"{self.target}: {self.what} {self.value:.4g}{where} {kept} the budget of {self.limit:g}"


def judge(
    budget: Budget, bundles: Mapping[str, Manifest], bench: BenchReport | None, measured: str | None
) -> list[Verdict]:
    """A verdict for every limit that is set and every target. accuracy_drop is that of the worst group.

    bench: of the baseline and the bundle of the target `measured`. Speed is judged on that one alone.
    """
    verdicts: list[Verdict] = []
    timed = bench.bundles[1] if bench is not None else None
    figures = timed.shapes[judged_shape(timed)] if timed is not None else None
    for name, manifest in bundles.items():
        drop, group = (manifest.quality.drop, manifest.quality.group) if manifest.quality is not None else (None, "")
        at_hand = figures if name == measured else None
        found: list[tuple[str, float | None, float | None, bool]] = [
            ("accuracy_drop", budget.accuracy_drop, drop, False),
            ("size_mb", budget.size_mb, manifest.total_bytes / 1e6, False),
            ("speedup", budget.speedup, at_hand.ratio.median if at_hand else None, True),
            ("p50_ms", budget.p50_ms, at_hand.p50_ms if at_hand else None, False),
        ]
        for what, limit, value, more_is_better in found:
            if limit is None:
                continue
            met = None if value is None else (value >= limit if more_is_better else value <= limit)
            verdicts.append(Verdict(name, what, limit, value, met, group if what == "accuracy_drop" else ""))
    return verdicts


def worst_drop(bundles: Mapping[str, Manifest]) -> float | None:
    """The largest accuracy drop of these bundles, by target; None where none was evaluated."""
    return max((m.quality.drop for m in bundles.values() if m.quality is not None), default=None)


def room(budget: Budget, bundles: Mapping[str, Manifest]) -> float | None:
    """Bytes by which the largest of these bundles may grow within size_mb, negative where it misses it; None: any."""
    if budget.size_mb is None:
        return None
    return budget.size_mb * 1e6 - max(manifest.total_bytes for manifest in bundles.values())
