"""The ranges of a model's inner tensors on the calibration texts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from edgec.errors import PassError
from edgec.numerics.ranges import Range
from edgec.passes.layers import candidates
from edgec.passes.observe import Divided, Extremes, Factors, Observer, observe
from edgec.state import LayerQuantization, ModelState, PassContext

MakeObserver = Callable[[], Observer]


def observe_inputs(
    state: ModelState, texts: Sequence[Any], ctx: PassContext, make: MakeObserver | None
) -> tuple[dict[str, Extremes], dict[str, Observer]]:
    """The extremes of what every matrix and table is given, and an observer of each matrix where `make` makes one."""
    modules = candidates(state)
    seen = {key: Extremes() for key in modules}
    observers = {key: make() for key, module in modules.items() if isinstance(module, nn.Linear)} if make else {}
    both = {key: [extremes, *([observers[key]] if key in observers else [])] for key, extremes in seen.items()}
    observe(state, texts, ctx, both)
    return seen, observers


def with_ranges(
    state: ModelState,
    layers: Mapping[str, LayerQuantization],
    seen: Mapping[str, Extremes],
    observers: Mapping[str, Observer],
    texts: Sequence[Any],
    ctx: PassContext,
    make: MakeObserver | None,
) -> dict[str, LayerQuantization]:
    """`layers`, those of the static scheme with the range of their inputs: smoothed, and without outlier channels.

    seen, observers, make: as of `observe_inputs`. From extremes by channel that range follows. Any other observer has
    to see the inputs as they are quantized: where they are smoothed, or have outliers, the texts run again.
    """
    static = {key: layer for key, layer in layers.items() if layer.scheme == "static"}
    if make is None:
        ranges = {key: seen[key].range(_factors(layer), layer.outliers) for key, layer in static.items()}
    else:
        changed = {key: layer for key, layer in static.items() if layer.smoothing or layer.outliers}
        again = {key: Divided(make(), _factors(layer), layer.outliers) for key, layer in changed.items()}
        if again:
            observe(state, texts, ctx, {key: [observer] for key, observer in again.items()}, "calibrate once more")
        ranges = {key: again[key].range() if key in again else observers[key].range() for key in static}
    return {**layers, **{key: dataclasses.replace(static[key], input_range=found) for key, found in ranges.items()}}


def _factors(layer: LayerQuantization) -> Factors:
    return np.array(layer.smoothing or 1, np.float32)


def require_range(key: str, found: Range | None) -> None:
    """Raises PassError where it is none."""
    low, high = found or (math.nan, math.nan)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise PassError(
            f"the inputs of {key} span [{low}, {high}], which is no range",
            "the model gives infinite or undefined values on the calibration texts: check its weights",
        )
