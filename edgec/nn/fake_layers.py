"""Layers that compute in float what their int8 form computes: the reference of the exported graph.

Written from the definition of the schemes (edgec.state.LayerQuantization), not from the graph: neither knows the
other. Products are taken of whole numbers and scaled afterwards, so that sums are exact up to 2**24, as the graph's
are; what differs are the last bits of the scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgec.numerics.weights import (
    FULL_RANGE,
    REDUCED_RANGE,
    quantize_blocks,
    quantize_linear,
    quantize_row_blocks,
    quantize_rows,
)
from edgec.state import LayerQuantization

from .rounding import round_through, steps_of_range, steps_of_rows, steps_of_tensor

Tensors = Mapping[str, npt.NDArray[Any]]

_FOUR_BITS = (-8, 7)


class FakeLinear(nn.Module):
    """A linear layer as `quantization` says: x (.., inputs) -> (.., channels), float32.

    Shares weight and bias with `layer`. In eval mode the weights are those integers that the graph has. In training
    mode they are rounded anew from `weight` in every forward, on the scales that `rescale()` found last, and gradients
    reach x, weight and bias (straight through the rounding, none where a value is clipped); `eval()` finds scales and
    integers anew.

    tensors: "weight" (inputs, channels) and "scale" (blocks, channels) of a weight-only layer whose integers were
    chosen otherwise (GPTQ): they stay as they are, in training too. reduce_range: weights of 8 bits keep to 7, except
    weight-only ones.

    quantization: may be replaced between two forwards by one with another `input_range`. rounding: where it is off,
    the layer computes in float while it is in training mode. note: is told what the range is to span, at every forward:
    the inputs, smoothed, and zero in outlier channels.
    """

    rounding = True
    note: Callable[[torch.Tensor], None] | None = None

    weight: nn.Parameter
    bias: nn.Parameter | None
    smoothing: torch.Tensor | None
    correction: torch.Tensor | None
    outliers: torch.Tensor | None
    scale: torch.Tensor
    integers: torch.Tensor

    def __init__(
        self, layer: nn.Linear, quantization: LayerQuantization, tensors: Tensors, *, reduce_range: bool
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias, self.quantization = layer.weight, layer.bias, quantization
        self.reduce_range, self.given = reduce_range, "weight" in tensors
        self._keep("smoothing", _floats(quantization.smoothing))
        self._keep("correction", _floats(quantization.bias_correction))
        self._keep("outliers", torch.tensor(quantization.outliers) if quantization.outliers else None)
        integers, scale = (tensors["weight"], tensors["scale"]) if self.given else self._quantized()
        self.lowest, self.highest = _levels(quantization, reduce_range)
        self._keep("scale", torch.from_numpy(scale))
        self._keep("integers", torch.from_numpy(integers.astype(np.float32)))
        super().train(layer.training)

    @property
    def searched(self) -> bool:
        """Whether `rescale` tries many scales, which takes long, or takes the extremes of the weights."""
        weight_only = self.quantization.scheme == "weight-only"
        return self.quantization.bits == 4 if weight_only else self.quantization.clip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        smoothed = x if self.smoothing is None else x / self.smoothing
        if self.note is not None:
            self.note(self._without_outliers(smoothed))
        if self.training and not self.rounding:
            return nn.functional.linear(x, self.weight, self.bias)
        integers = self._rounded() if self.training else self.integers
        if self.quantization.scheme == "weight-only":
            y = smoothed @ (integers * self._scale_of_inputs())
        else:
            steps, step = self._steps(smoothed)
            y = (steps @ integers) * self.scale * step
        if self.outliers is not None:
            y = y + x[..., self.outliers] @ self.weight.t()[self.outliers]
        for addend in (self.bias, self.correction):
            if addend is not None:
                y = y + addend
        return y

    def train(self, mode: bool = True) -> FakeLinear:
        if self.training and not mode:
            self.rescale()
        return super().train(mode)

    def rescale(self) -> None:
        """Find the scales and integers of the weights as they are now, as export does."""
        if not self.given:
            integers, scale = self._quantized()
            # New tensors: a gradient that is still to be computed may need the old ones.
            self.scale = torch.from_numpy(scale).to(self.scale.device)
            self.integers = torch.from_numpy(integers.astype(np.float32)).to(self.scale.device)

    def _quantized(self) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        # In the memory order of the graph's constants: sums of squared errors have the same last bits then.
        matrix = np.ascontiguousarray(self._matrix().detach().cpu().numpy())
        if self.quantization.scheme == "weight-only":
            return quantize_blocks(matrix, self.quantization.bits, self.quantization.block_size)
        return quantize_linear(matrix, self.quantization, reduce_range=self.reduce_range)

    def _without_outliers(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.outliers is None else x.index_fill(-1, self.outliers, 0.0)

    def _steps(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        layer = self.quantization
        x = self._without_outliers(x)  # they take no part in a scale that is taken from x
        if layer.scheme == "static":
            assert layer.input_range is not None
            return steps_of_range(x, *layer.input_range, layer.bits)
        return steps_of_tensor(x) if layer.scheme == "dynamic-tensor" else steps_of_rows(x)

    def _matrix(self) -> torch.Tensor:
        """What is rounded, (inputs, channels): a row multiplied by what its input is divided by, none of outliers."""
        matrix = self.weight.t()
        if self.smoothing is not None:
            matrix = matrix * self.smoothing[:, None]
        return matrix if self.outliers is None else matrix.index_fill(0, self.outliers, 0.0)

    def _rounded(self) -> torch.Tensor:
        if self.given:
            return self.integers
        return round_through(self._matrix() / self._scale_of_inputs()).clamp(self.lowest, self.highest)

    def _scale_of_inputs(self) -> torch.Tensor:
        """The scales so that they broadcast with (inputs, channels); the last block may be shorter."""
        if self.quantization.scheme != "weight-only":
            return self.scale
        return self.scale.repeat_interleave(self.quantization.block_size, dim=0)[: self.in_features]

    def _keep(self, name: str, value: torch.Tensor | None) -> None:
        """A tensor that moves with the module and is no part of the model's weights."""
        self.register_buffer(name, value, persistent=False)


class FakeEmbedding(nn.Module):
    """A lookup in a table as `quantization` says: ids (..) -> (.., width), float32.

    Rows are rounded after the lookup: the result is that of a rounded table, at the cost of the rows that are read.
    Shares its weight with `layer`, and with whatever else does (an output layer tied to it stays as it is). The scales
    follow the weights as those of FakeLinear do; `rounding` and `searched` are as there.
    """

    weight: nn.Parameter
    scale: torch.Tensor
    rounding = True

    def __init__(self, layer: nn.Embedding, quantization: LayerQuantization) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.weight, self.padding_idx = layer.weight, layer.padding_idx
        self.searched = quantization.bits == 4
        self.block_size = quantization.block_size if self.searched else layer.embedding_dim
        self.lowest, self.highest = _levels(quantization, False)
        self.register_buffer("scale", torch.from_numpy(self._scale()), persistent=False)
        super().train(layer.training)

    def train(self, mode: bool = True) -> FakeEmbedding:
        if self.training and not mode:
            self.rescale()
        return super().train(mode)

    def rescale(self) -> None:
        """Find the scales of the table as it is now, as export does."""
        self.scale = torch.from_numpy(self._scale()).to(self.scale.device)

    def _scale(self) -> npt.NDArray[np.float32]:
        table = self.weight.detach().cpu().numpy()
        return (quantize_row_blocks(table, self.block_size) if self.searched else quantize_rows(table))[1]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = nn.functional.embedding(ids, self.weight, self.padding_idx)
        if self.training and not self.rounding:
            return rows
        scale = self.scale[ids].repeat_interleave(self.block_size, dim=-1)[..., : self.embedding_dim]
        return round_through(rows / scale).clamp(self.lowest, self.highest) * scale


def _levels(quantization: LayerQuantization, reduce_range: bool) -> tuple[int, int]:
    """The smallest and the largest integer of a weight."""
    if quantization.scheme == "weight-only":
        return _FOUR_BITS if quantization.bits == 4 else (-FULL_RANGE, FULL_RANGE)
    largest = min(2 ** (quantization.bits - 1) - 1, REDUCED_RANGE if reduce_range else FULL_RANGE)
    return -largest, largest


def _floats(values: tuple[float, ...] | None) -> torch.Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float32)
