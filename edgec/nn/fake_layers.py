"""Layers that compute in float what their int8 form computes: the reference of the exported graph.

Written from the definition of the schemes (edgec.state.LayerQuantization), not from the graph: neither knows the
other. Products are taken of whole numbers and scaled afterwards, so that sums are exact up to 2**24, as the graph's
are; what differs are the last bits of the scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    mode they are rounded anew from `weight` in every forward, on the scales found at the start, and gradients reach
    x, weight and bias (straight through the rounding, none where a value is clipped); `eval()` takes them over.

    tensors: "weight" (inputs, channels) and "scale" (blocks, channels) of a weight-only layer whose integers were
    chosen otherwise (GPTQ): they stay as they are, in training too. reduce_range: weights of 8 bits keep to 7, except
    weight-only ones.
    """

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
        self.given = "weight" in tensors
        self._keep("smoothing", _floats(quantization.smoothing))
        self._keep("correction", _floats(quantization.bias_correction))
        self._keep("outliers", torch.tensor(quantization.outliers) if quantization.outliers else None)
        if self.given:
            integers, scale = tensors["weight"], tensors["scale"]
        else:
            matrix = self._matrix().detach().numpy()
            if quantization.scheme == "weight-only":
                integers, scale = quantize_blocks(matrix, quantization.bits, quantization.block_size)
            else:
                integers, scale = quantize_linear(matrix, quantization, reduce_range=reduce_range)
        self.lowest, self.highest = _levels(quantization, reduce_range)
        self._keep("scale", torch.from_numpy(scale))
        self._keep("integers", torch.from_numpy(integers.astype(np.float32)))
        super().train(layer.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        integers = self._rounded() if self.training else self.integers
        smoothed = x if self.smoothing is None else x / self.smoothing
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
            self.integers = self._rounded().detach()
        return super().train(mode)

    def _steps(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        layer = self.quantization
        if self.outliers is not None:
            # They take no part in a scale that is taken from x.
            x = x.index_fill(-1, self.outliers, 0.0)
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
    Shares its weight with `layer`, and with whatever else does (an output layer tied to it stays as it is).
    """

    weight: nn.Parameter
    scale: torch.Tensor

    def __init__(self, layer: nn.Embedding, quantization: LayerQuantization) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.weight, self.padding_idx = layer.weight, layer.padding_idx
        table = layer.weight.detach().numpy()
        if quantization.bits == 4:
            self.block_size = quantization.block_size
            _, scale = quantize_row_blocks(table, self.block_size)
        else:
            self.block_size = layer.embedding_dim
            _, scale = quantize_rows(table)
        self.lowest, self.highest = _levels(quantization, False)
        self.register_buffer("scale", torch.from_numpy(scale), persistent=False)
        super().train(layer.training)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = nn.functional.embedding(ids, self.weight, self.padding_idx)
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
