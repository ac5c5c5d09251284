"""Bias correction: what rounding adds to the mean of a layer's outputs is taken off its bias."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgec.nn.fake_layers import Tensors
from edgec.nn.fake_quantize import quantized_layer
from edgec.passes.layers import module_of
from edgec.passes.observe import observe
from edgec.state import LayerQuantization, ModelState, PassContext, Quantization


class MeanError:
    """The mean of float output minus quantized output of one layer, (channels,), over all rows.

    Inputs count as far as the layer's range reaches. What is cut off is the error of a few rows, not a shift that all
    rows share: made good by the bias, it would be added to every other row.
    """

    def __init__(self, layer: nn.Linear, decision: LayerQuantization, tensors: Tensors) -> None:
        self._layer, self._quantized = layer, quantized_layer(layer, decision, tensors).eval()
        self._limits = _limits(decision, layer.in_features)
        self._sum = torch.zeros(layer.out_features, dtype=torch.float64)
        self._rows = 0

    def add(self, rows: torch.Tensor, text: int) -> None:
        reached = rows.clamp(*self._limits)
        # The function, not the module: this runs in the module's own hook.
        output = nn.functional.linear(reached, self._layer.weight, self._layer.bias)
        self._sum += (output - self._quantized(reached)).sum(dim=0, dtype=torch.float64)
        self._rows += len(rows)

    def mean(self) -> tuple[float, ...]:
        return tuple((self._sum / self._rows).float().tolist())


def _limits(decision: LayerQuantization, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and the largest value of each input channel, (inputs,), that is not cut.

    Outlier channels run in float on both sides, so that their limits do not matter.
    """
    low, high = decision.input_range or (-math.inf, math.inf)
    factors = torch.tensor(decision.smoothing or [1.0] * inputs)
    return min(low, 0.0) * factors, max(high, 0.0) * factors


def bias_corrected(
    state: ModelState, quantization: Quantization, texts: Sequence[Any], ctx: PassContext
) -> dict[str, LayerQuantization]:
    """The linear layers of `quantization`, each with its bias correction (Nagel et al. 2019, section 4.2).

    Inputs are those of the float model, so that the texts run once for all layers; each corrects its own error and
    none of those before it. Weights have their full range: for a target with fewer bits the same values serve. While
    the texts run, the layers' rounded weights are held beside the model.
    """
    means: dict[str, MeanError] = {}
    for key, decision in quantization.layers.items():
        if decision.kind == "linear":
            names = {name: f"{key}/{name}" for name in ("weight", "scale") if f"{key}/{name}" in quantization.tensors}
            rounded = {name: quantization.tensors[full] for name, full in names.items()}
            means[key] = MeanError(module_of(state, key), decision, rounded)
    observe(state, texts, ctx, {key: [mean] for key, mean in means.items()}, "correct biases")
    return {
        key: dataclasses.replace(quantization.layers[key], bias_correction=mean.mean()) for key, mean in means.items()
    }
