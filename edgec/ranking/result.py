"""What a ranking tells."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

FAR_APART: Final = 100
"""Drops that span more than this are shown on a logarithmic scale."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What one layer costs where it alone is quantized.

    layer: as Quantization.layers names it, "PART:PATH". drop: 1 - mean cosine of the model's outputs against float;
    min_cosine: of the worst text. bytes, float_bytes: of its weights as they are decided on, and in float.
    """

    layer: str
    scheme: str
    drop: float
    min_cosine: float
    bytes: int
    float_bytes: int

    @property
    def path(self) -> str:
        """The module path, without the part."""
        return self.layer.partition(":")[2]


@dataclass(frozen=True)
class Ranking:
    """The layers of a quantization decision, the worst first.

    name: of the model. metric: "cosine". texts: how many outputs were compared. seconds: of the measurement, those of
    an interrupted run included.
    """

    name: str
    metric: str
    texts: int
    layers: tuple[LayerSensitivity, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; layers go by module path."""
        return {**dataclasses.asdict(self), "layers": [{**dataclasses.asdict(x), "layer": x.path} for x in self.layers]}


def spans(drops: Sequence[float]) -> tuple[float, float, bool]:
    """The scale of a chart of `drops`: its start, its end, and whether it is logarithmic.

    A logarithmic scale starts at the power of ten below the smallest drop that is more than a rounding error of
    float32.
    """
    visible = [drop for drop in drops if drop > 1e-7]
    if not visible:
        return 0.0, 1e-7, False
    low, high = min(visible), max(visible)
    if high / low <= FAR_APART:
        return 0.0, high, False
    return 10.0 ** (math.ceil(math.log10(low)) - 1), high, True
