"""Float graph + quantization decision + target -> int8 graph for stock onnxruntime.

Every quantized linear layer becomes `QuantizeLinear` (static) or `DynamicQuantizeLinear` (dynamic) and one
`com.microsoft.MatMulIntegerToFloat` with int8 weights, a scale a channel and the bias inside: u8 activations x s8
weights is the product with a fast kernel on x86 and on arm64 (u8 x u8 has none). Layers that read the same tensor
share its quantization. An embedding table becomes int8 rows with a scale a row, dequantized after the lookup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import RewriteRuleClassBase, RewriteRuleSet

from edgec.errors import PassError
from edgec.numerics.weights import activation_scale, quantize_per_channel, quantize_rows
from edgec.state import LayerQuantization, Quantization
from edgec.target import Target

from .float_graph import SumBeforeLayerNorm, finish
from .trace import MODULE_KEY

CONTRIB = "com.microsoft"


@dataclass
class _Lowering:
    """What the rules share: the decision, the target's weight range, and what is made once however often it is used.

    weights: by module path, the int8 weights and their scales; a layer that runs twice (DeBERTa projects tokens and
    positions with the same matrix) reads them twice.
    """

    layers: Mapping[str, LayerQuantization]
    reduce_range: bool
    weights: dict[str, tuple[ir.Value, ir.Value]] = field(default_factory=dict)
    constants: dict[bytes, ir.Value] = field(default_factory=dict)

    def layer_of(self, node: ir.Node, kind: str) -> LayerQuantization | None:
        layer = self.layers.get(_path(node))
        return layer if layer is not None and layer.kind == kind else None

    def stored(
        self, op: Any, path: str, quantize: Callable[[], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[ir.Value, ir.Value]:
        """The initializers of a layer's int8 weights and scales."""
        if path not in self.weights:
            names = (f"{path}.weight_int8", f"{path}.weight_scale")
            values, scales = (op.initializer(ir.tensor(a), n) for a, n in zip(quantize(), names, strict=True))
            self.weights[path] = (values, scales)
        return self.weights[path]

    def shared(self, op: Any, value: np.ndarray, name: str) -> ir.Value:
        """One initializer for equal constants: layers that read the same tensor then quantize it once."""
        key = value.dtype.str.encode() + value.tobytes()
        if key not in self.constants:
            self.constants[key] = op.initializer(ir.tensor(value), name)
        return self.constants[key]

    def linear(self, op: Any, node: ir.Node, x: ir.Value, weight: np.ndarray, bias: ir.Value | None) -> ir.Value:
        """The int8 form of x (.., inputs) @ weight (inputs, channels) + bias (channels,)."""
        path = _path(node)
        layer = self.layers[path]
        if layer.smoothing is not None:
            factors = np.array(layer.smoothing, np.float32)
            weight = weight * factors[:, None]
            x = op.Mul(x, self.shared(op, 1 / factors, f"{path}.input_smoothing"))
        weights, scales = self.stored(op, path, lambda: quantize_per_channel(weight, reduce_range=self.reduce_range))
        if layer.scheme == "dynamic-tensor":
            activations, x_scale, x_zero = op.DynamicQuantizeLinear(x, _outputs=3)
        else:
            assert layer.input_range is not None, f"{path} has no calibrated range"
            step, zero = activation_scale(*layer.input_range)
            x_scale = self.shared(op, np.array(step), f"{path}.input_scale")
            x_zero = self.shared(op, np.array(zero), f"{path}.input_zero_point")
            activations = op.QuantizeLinear(x, x_scale, x_zero)
        return op.MatMulIntegerToFloat(activations, weights, x_scale, scales, x_zero, None, bias, _domain=CONTRIB)


class _Rule(RewriteRuleClassBase):
    def __init__(self, lowering: _Lowering) -> None:
        super().__init__()
        self.lowering = lowering


class MatMulWithBias(_Rule):
    """Add(MatMul(x, W), b) -> int8, the bias inside the kernel."""

    def pattern(self, op, x, weight, bias):  # type: ignore[no-untyped-def]
        return op.Add(op.MatMul(x, weight, _outputs=["product"]), bias)

    def check(self, context, x, weight, bias, product):  # type: ignore[no-untyped-def]
        matrix = _matrix(weight)
        return (
            matrix is not None
            and _one_each(bias, matrix.shape[1])
            and self.lowering.layer_of(product.producer(), "linear") is not None
        )

    def rewrite(self, op, x, weight, bias, product):  # type: ignore[no-untyped-def]
        matrix = _matrix(weight)
        assert matrix is not None
        return self.lowering.linear(op, product.producer(), x, matrix, bias)


class MatMulAlone(_Rule):
    """MatMul(x, W) of a layer without bias (ModernBERT) -> int8."""

    def pattern(self, op, x, weight):  # type: ignore[no-untyped-def]
        return op.MatMul(x, weight, _outputs=["product"])

    def check(self, context, x, weight, product):  # type: ignore[no-untyped-def]
        return _matrix(weight) is not None and self.lowering.layer_of(product.producer(), "linear") is not None

    def rewrite(self, op, x, weight, product):  # type: ignore[no-untyped-def]
        matrix = _matrix(weight)
        assert matrix is not None
        return self.lowering.linear(op, product.producer(), x, matrix, None)


class GemmLayer(_Rule):
    """Gemm, with or without a bias, the form that torch exports for two-dimensional inputs (a pooled row) -> int8."""

    def pattern(self, op, x, weight):  # type: ignore[no-untyped-def]
        # The bias is an input that may be absent.
        return op.Gemm(x, weight, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["product"])

    def check(self, context, x, weight, product):  # type: ignore[no-untyped-def]
        node = product.producer()
        matrix, bias = self._operands(node)
        plain = _attribute(node, "alpha", 1.0) == 1.0 and _attribute(node, "beta", 1.0) == 1.0
        return (
            plain
            and not _attribute(node, "transA", 0)
            and matrix is not None
            and (bias is None or _one_each(bias, matrix.shape[1]))
            and self.lowering.layer_of(node, "linear") is not None
        )

    def rewrite(self, op, x, weight, product):  # type: ignore[no-untyped-def]
        node = product.producer()
        matrix, bias = self._operands(node)
        assert matrix is not None
        return self.lowering.linear(op, node, x, matrix, bias)

    @staticmethod
    def _operands(node: ir.Node) -> tuple[np.ndarray | None, ir.Value | None]:
        """The weight (inputs, channels) and the bias."""
        matrix = _matrix(node.inputs[1])
        if matrix is not None and _attribute(node, "transB", 0):
            matrix = matrix.T
        return matrix, node.inputs[2] if len(node.inputs) > 2 else None


class EmbeddingTable(_Rule):
    """Gather(table, ids) -> int8 rows and their scales, multiplied after the lookup."""

    def pattern(self, op, table, ids):  # type: ignore[no-untyped-def]
        return op.Gather(table, ids, _allow_other_attributes=True, _outputs=["rows"])

    def check(self, context, table, ids, rows):  # type: ignore[no-untyped-def]
        node = rows.producer()
        return (
            _constant(table, 2)
            # The lookups that this rule makes carry the layer's path too.
            and not any(table is made for made in self.lowering.weights.get(_path(node), ()))
            and _attribute(node, "axis", 0) == 0
            and self.lowering.layer_of(node, "embedding") is not None
        )

    def rewrite(self, op, table, ids, rows):  # type: ignore[no-untyped-def]
        path = _path(rows.producer())
        values, scales = self.lowering.stored(op, path, lambda: quantize_rows(table.const_value.numpy()))
        looked_up = op.Cast(op.Gather(values, ids, axis=0), to=ir.DataType.FLOAT)
        return op.Mul(looked_up, op.Gather(scales, ids, axis=0))


def lower_int8(model: ir.Model, quantization: Quantization, target: Target) -> ir.Model:
    """Lower a copy of the traced float `model`.

    quantization: of this part (Quantization.of_part). Raises PassError if a layer that was decided to run in int8
    has no place in the graph, or runs in float in one of its places: a decision is carried out or fails, it is never
    dropped in silence.
    """
    model = model.clone()
    layers = quantization.layers
    lowering = _Lowering(layers, target.int8.reduce_range)
    model.graph.opset_imports[CONTRIB] = 1
    # A matrix product is visited before the bias that follows it, so the larger pattern needs a sweep of its own.
    RewriteRuleSet([MatMulWithBias.rule(lowering)], commute=True).apply_to_model(model)
    RewriteRuleSet([rule.rule(lowering) for rule in (MatMulAlone, GemmLayer, EmbeddingTable)]).apply_to_model(model)
    RewriteRuleSet([SumBeforeLayerNorm.rule()]).apply_to_model(model)
    missing = set(layers) - set(lowering.weights)
    # A layer may run in several places. The only product that comes from a linear module is that with its weight.
    left = {
        _path(node)
        for node in model.graph.all_nodes()
        if node.op_type in ("MatMul", "Gemm") and lowering.layer_of(node, "linear") is not None
    }
    if failed := sorted(missing | left):
        raise PassError(
            f"{len(failed)} quantized layers have no int8 form in the exported graph, the first is {failed[0]}",
            f"leave it in float: add `skip: ['{failed[0]}']` to the quantize pass",
        )
    finish(model)
    return model


def _path(node: ir.Node) -> str:
    path: str = node.metadata_props.get(MODULE_KEY, "")
    return path


def _constant(value: ir.Value, rank: int) -> bool:
    return value.const_value is not None and len(value.const_value.shape) == rank


def _matrix(value: ir.Value) -> np.ndarray | None:
    """A constant matrix, as it stands or as the transpose of one.

    torch folds the transpose of a weight away, except where another node reads the same weight: that of an output
    layer which is the embedding table.
    """
    node = value.producer()
    if node is not None and node.op_type == "Transpose" and node.inputs[0] is not None and _constant(node.inputs[0], 2):
        perm = node.attributes.get("perm")
        return np.transpose(node.inputs[0].const_value.numpy(), None if perm is None else perm.value)
    return value.const_value.numpy() if _constant(value, 2) else None


def _one_each(bias: ir.Value, channels: int) -> bool:
    """Whether a constant has one value a channel: the kernel broadcasts no single number."""
    return _constant(bias, 1) and bias.const_value.shape[0] == channels


def _attribute(node: ir.Node, name: str, default: float | int) -> float | int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value
