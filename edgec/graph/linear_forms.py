"""What a quantized linear layer becomes in the graph: one form for each scheme of edgec.state.LayerQuantization.

| scheme | operators |
|---|---|
| static | QuantizeLinear (below 8 bits Clip before it), MatMulIntegerToFloat with the bias inside |
| dynamic-tensor | DynamicQuantizeLinear, MatMulIntegerToFloat with the bias inside |
| dynamic-token | a scale a row by ReduceMax and ReduceMin, QuantizeLinear, MatMulIntegerToFloat, Mul, Add |
| llm-int8 | the same, the outlier channels set to zero before |
| weight-only | MatMulNBits with the bias inside |

Smoothing is one Mul before any of them; outliers, static or llm-int8, are Gather and MatMul beside it, added by Sum.
MatMulIntegerToFloat and MatMulNBits are of the domain com.microsoft.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from edgec.numerics.activations import activation_scale
from edgec.numerics.weights import quantize_blocks, quantize_linear
from edgec.state import LayerQuantization

CONTRIB: Final = "com.microsoft"

_LEAST_MAGNITUDE: Final = np.float32(1e-30)
"""Stands for the largest magnitude of a row of zeros, which would be divided by otherwise."""

_BLOCKED_OPSET: Final = 21
"""The first ONNX opset whose QuantizeLinear takes a scale a row of a tensor of any rank."""


@dataclass
class Initializers:
    """Constants of the graph that are made once however often they are used.

    of_layer: by module path, integers and their scales; a layer that runs twice (DeBERTa projects tokens and positions
    with the same matrix) reads them twice. by_content: equal arrays are one, so that layers that read the same tensor
    quantize it once. made: all of them.
    """

    of_layer: dict[str, tuple[ir.Value, ir.Value]] = field(default_factory=dict)
    by_content: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = field(default_factory=dict)
    made: set[ir.Value] = field(default_factory=set)

    def stored(
        self, op: Any, path: str, kind: str, quantize: Callable[[], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[ir.Value, ir.Value]:
        """Integers "PATH.weight_KIND" and scales "PATH.weight_scale" of a layer."""
        if path not in self.of_layer:
            integers, scales = quantize()
            self.of_layer[path] = (
                self._make(op, integers, f"{path}.weight_{kind}"),
                self._make(op, scales, f"{path}.weight_scale"),
            )
        return self.of_layer[path]

    def shared(self, op: Any, array: np.ndarray, name: str) -> ir.Value:
        """The one of this content; `name` is that of the first."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.by_content:
            self.by_content[key] = self._make(op, array, name)
        return self.by_content[key]

    def _make(self, op: Any, array: np.ndarray, name: str) -> ir.Value:
        value: ir.Value = op.initializer(ir.tensor(array), name)
        self.made.add(value)
        return value


@dataclass(frozen=True)
class Linear:
    """x (.., inputs) @ weight (inputs, channels) + bias (channels,): a place where a layer runs."""

    path: str
    decision: LayerQuantization
    x: ir.Value
    weight: np.ndarray
    bias: ir.Value | None


@dataclass(frozen=True)
class LinearForms:
    """Builds the forms for one graph and target.

    reduce_range: the target's. tensors: of this part (edgec.state.Quantization). opset: of the graph, 18 at least.
    """

    reduce_range: bool
    tensors: Mapping[str, np.ndarray]
    opset: int
    constants: Initializers = field(default_factory=Initializers)

    def build(self, op: Any, layer: Linear) -> ir.Value:
        """The nodes of `layer` in the form that its scheme asks for; returns their output (.., channels)."""
        smooth = self._corrected(op, self._smoothed(op, layer))
        beside = self._outliers(op, layer)
        match layer.decision.scheme:
            case "static":
                product = self._static(op, smooth)
            case "dynamic-tensor":
                product = self._dynamic_tensor(op, smooth)
            case "weight-only":
                product = self._weight_only(op, smooth)
            case _:  # dynamic-token, llm-int8: the scale of a row is no constant that the product could take in
                terms = [self._rows(op, smooth), *beside, *([] if smooth.bias is None else [smooth.bias])]
                return _sum(op, terms)
        return _sum(op, [product, *beside])

    def _smoothed(self, op: Any, layer: Linear) -> Linear:
        if layer.decision.smoothing is None:
            return layer
        factors = np.array(layer.decision.smoothing, np.float32)
        divided = op.Mul(layer.x, self.constants.shared(op, 1 / factors, f"{layer.path}.input_smoothing"))
        return replace(layer, x=divided, weight=layer.weight * factors[:, None])

    def _corrected(self, op: Any, layer: Linear) -> Linear:
        if layer.decision.bias_correction is None:
            return layer
        bias = np.array(layer.decision.bias_correction, np.float32)
        if layer.bias is not None:
            bias = bias + layer.bias.const_value.numpy()
        return replace(layer, bias=self.constants.shared(op, bias, f"{layer.path}.bias_corrected"))

    def _outliers(self, op: Any, layer: Linear) -> list[ir.Value]:
        """The product of the input channels in `outliers` in float (Dettmers et al. 2022, equation 8)."""
        outliers = np.array(layer.decision.outliers, np.int64)
        if not len(outliers):
            return []
        channels = self.constants.shared(op, outliers, f"{layer.path}.outliers")
        weight = self.constants.shared(op, layer.weight[outliers], f"{layer.path}.weight_outliers")
        return [op.MatMul(op.Gather(layer.x, channels, axis=-1), weight)]

    def _static(self, op: Any, layer: Linear) -> ir.Value:
        decision, path = layer.decision, layer.path
        assert decision.input_range is not None, f"{path} has no calibrated range"
        step, zero_point = activation_scale(*decision.input_range, decision.bits)
        x = layer.x
        if decision.bits < 8:
            # u8 has more levels than there are bits.
            low, high = (np.array(end, np.float32) for end in decision.input_range)
            lowest = self.constants.shared(op, low, f"{path}.input_low")
            highest = self.constants.shared(op, high, f"{path}.input_high")
            x = op.Clip(x, lowest, highest)
        scale = self.constants.shared(op, np.array(step), f"{path}.input_scale")
        zero = self.constants.shared(op, np.array(zero_point), f"{path}.input_zero_point")
        # An outlier's level, whatever it is, meets a row of zeros.
        return self._product(op, layer, op.QuantizeLinear(x, scale, zero), scale, zero, layer.bias)

    def _dynamic_tensor(self, op: Any, layer: Linear) -> ir.Value:
        levels, scale, zero = op.DynamicQuantizeLinear(layer.x, _outputs=3)
        return self._product(op, layer, levels, scale, zero, layer.bias)

    def _weight_only(self, op: Any, layer: Linear) -> ir.Value:
        bits, block_size, path = layer.decision.bits, layer.decision.block_size, layer.path

        def quantize() -> tuple[np.ndarray, np.ndarray]:
            if f"{path}/weight" in self.tensors:
                integers, scales = self.tensors[f"{path}/weight"], self.tensors[f"{path}/scale"]
            else:
                integers, scales = quantize_blocks(layer.weight, bits, block_size)
            return pack_blocks(integers, bits, block_size), np.ascontiguousarray(scales.T)

        weights, scales = self.constants.stored(op, path, f"int{bits}", quantize)
        inputs, channels = layer.weight.shape
        operands = [layer.x, weights, scales, *([] if layer.bias is None else [None, None, layer.bias])]
        return op.MatMulNBits(*operands, K=inputs, N=channels, bits=bits, block_size=block_size, _domain=CONTRIB)

    def _rows(self, op: Any, layer: Linear) -> ir.Value:
        """x @ weight without bias, x in 255 levels around zero, each row on a scale of its own."""
        last = self._constant(op, "axis", np.array([-1], np.int64))
        least = self._constant(op, "least", np.array(_LEAST_MAGNITUDE))
        levels = self._constant(op, "levels", np.array(127, np.float32))
        one = self._constant(op, "one", np.array(1, np.float32))
        zero = self._constant(op, "zero_point", np.array(128, np.uint8))
        x = layer.x
        if layer.decision.outliers:  # they must not stretch the scales
            kept = np.ones(len(layer.weight), np.float32)
            kept[list(layer.decision.outliers)] = 0
            x = op.Mul(x, self.constants.shared(op, kept, f"{layer.path}.input_kept"))
        # Of both extremes and not of Abs, which would write another copy of x.
        lowest, highest = op.ReduceMin(x, last, keepdims=1), op.ReduceMax(x, last, keepdims=1)
        scale = op.Div(op.Max(highest, op.Neg(lowest), least), levels)
        if self.opset >= _BLOCKED_OPSET:
            zeros = op.Expand(zero, op.Shape(scale))
            quantized = op.QuantizeLinear(x, scale, zeros, axis=-1, block_size=len(layer.weight))
        else:
            quantized = op.QuantizeLinear(op.Div(x, scale), one, zero)
        return op.Mul(self._product(op, layer, quantized, one, zero, None), scale)

    def _product(
        self, op: Any, layer: Linear, x: ir.Value, scale: ir.Value, zero: ir.Value, bias: ir.Value | None
    ) -> ir.Value:
        """(x - zero) * scale @ weight + bias, u8 by s8; the weights of outliers are zero."""

        def quantize() -> tuple[np.ndarray, np.ndarray]:
            weight = layer.weight
            if layer.decision.outliers:
                weight = weight.copy()
                weight[list(layer.decision.outliers)] = 0
            return quantize_linear(weight, layer.decision, reduce_range=self.reduce_range)

        weights, scales = self.constants.stored(op, layer.path, "int8", quantize)
        return op.MatMulIntegerToFloat(x, weights, scale, scales, zero, None, bias, _domain=CONTRIB)

    def _constant(self, op: Any, name: str, array: np.ndarray) -> ir.Value:
        return self.constants.shared(op, array, f"int8_rows.{name}")


def _sum(op: Any, terms: list[ir.Value]) -> ir.Value:
    if len(terms) == 1:
        return terms[0]
    return op.Add(*terms) if len(terms) == 2 else op.Sum(*terms)


def pack_blocks(ints: np.ndarray, bits: int, block_size: int) -> np.ndarray:
    """Weights (inputs, channels) of 4 or 8 bits as MatMulNBits stores them: u8 (channels, blocks, bytes of a block).

    Zero is the level 2**(bits - 1), which also fills a last block that is shorter; of two values that share a byte the
    first is in the low half.
    """
    inputs, channels = ints.shape
    blocks = -(-inputs // block_size)
    levels = np.full((channels, blocks * block_size), 2 ** (bits - 1), np.uint8)
    levels[:, :inputs] = (ints.T.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    levels = levels.reshape(channels, blocks, block_size)
    return levels if bits == 8 else levels[..., 0::2] | levels[..., 1::2] << 4
