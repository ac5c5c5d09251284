"""Float graph + quantization decision + target -> int8 graph for stock onnxruntime.

Rules find the places where the decided layers run; edgec/graph/linear_forms.py has what each scheme puts there. u8
activations x s8 weights is the product with a fast kernel on x86 and on arm64 (u8 x u8 has none). Layers that read the
same tensor share its quantization. An embedding table becomes int8 rows with a scale a row, dequantized after the
lookup, or with 4 bits `com.microsoft.GatherBlockQuantized`, which does both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import RewriteRuleClassBase, RewriteRuleSet

from edgec.errors import PassError
from edgec.numerics.weights import quantize_row_blocks, quantize_rows
from edgec.state import LayerQuantization, Quantization
from edgec.target import Target

from .float_graph import SumBeforeLayerNorm, finish
from .fold_smoothing import fold_smoothing
from .linear_forms import CONTRIB, Linear, LinearForms
from .lower_points import lower_points
from .trace import MODULE_KEY
from .windows import quantize_before_windows


@dataclass(frozen=True)
class _Lowering:
    """What the rules share: the decision, and what builds the forms."""

    layers: Mapping[str, LayerQuantization]
    forms: LinearForms

    def layer_of(self, node: ir.Node, kind: str) -> LayerQuantization | None:
        layer = self.layers.get(_path(node))
        return layer if layer is not None and layer.kind == kind else None

    def product_of_layer(self, node: ir.Node) -> bool:
        """Whether a float product is that of a linear layer with its weight, and not that of a form with outliers."""
        return self.layer_of(node, "linear") is not None and node.inputs[1] not in self.forms.constants.made

    def linear(self, op: Any, node: ir.Node, x: ir.Value, weight: np.ndarray, bias: ir.Value | None) -> ir.Value:
        path = _path(node)
        return self.forms.build(op, Linear(path, self.layers[path], x, weight, bias))


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
            and self.lowering.product_of_layer(product.producer())
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
        return _matrix(weight) is not None and self.lowering.product_of_layer(product.producer())

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
            and self.lowering.product_of_layer(node)
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
    """Gather(table, ids) -> int8 rows and their scales, multiplied after the lookup; or rows of 4 bits."""

    def pattern(self, op, table, ids):  # type: ignore[no-untyped-def]
        return op.Gather(table, ids, _allow_other_attributes=True, _outputs=["rows"])

    def check(self, context, table, ids, rows):  # type: ignore[no-untyped-def]
        node = rows.producer()
        return (
            _constant(table, 2)
            # The lookups that this rule makes carry the layer's path too.
            and table not in self.lowering.forms.constants.made
            and _attribute(node, "axis", 0) == 0
            and self.lowering.layer_of(node, "embedding") is not None
        )

    def rewrite(self, op, table, ids, rows):  # type: ignore[no-untyped-def]
        path = _path(rows.producer())
        layer, constants, floats = self.lowering.layers[path], self.lowering.forms.constants, table.const_value
        if layer.bits == 4:
            values, scales = constants.stored(op, path, "int4", lambda: _four_bits(floats.numpy(), layer.block_size))
            attributes = {"bits": 4, "block_size": layer.block_size, "gather_axis": 0, "quantize_axis": 1}
            return op.GatherBlockQuantized(values, ids, scales, **attributes, _domain=CONTRIB)
        values, scales = constants.stored(op, path, "int8", lambda: quantize_rows(floats.numpy()))
        looked_up = op.Cast(op.Gather(values, ids, axis=0), to=ir.DataType.FLOAT)
        return op.Mul(looked_up, op.Gather(scales, ids, axis=0))


def _four_bits(table: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    integers, scales = quantize_row_blocks(table, block_size)
    return integers.astype(ir.DataType.INT4.numpy()), scales


def lower_int8(model: ir.Model, quantization: Quantization, target: Target) -> ir.Model:
    """Lower a copy of the traced float `model`.

    quantization: of this part (Quantization.of_part). Raises PassError if a layer that was decided to run in int8
    has no place in the graph, or runs in float in one of its places: a decision is carried out or fails, it is never
    dropped in silence.
    """
    model = model.clone()
    layers = quantization.layers
    opset = model.graph.opset_imports[""]
    lowering = _Lowering(layers, LinearForms(target.int8.reduce_range, quantization.tensors, opset))
    model.graph.opset_imports[CONTRIB] = 1
    # A matrix product is visited before the bias that follows it, so the larger pattern needs a sweep of its own.
    RewriteRuleSet([MatMulWithBias.rule(lowering)], commute=True).apply_to_model(model)
    RewriteRuleSet([rule.rule(lowering) for rule in (MatMulAlone, GemmLayer, EmbeddingTable)]).apply_to_model(model)
    RewriteRuleSet([SumBeforeLayerNorm.rule()]).apply_to_model(model)
    missing = set(layers) - set(lowering.forms.constants.of_layer)
    # A layer may run in several places. The only product that comes from a linear module is that with its weight.
    products = [node for node in model.graph.all_nodes() if node.op_type in ("MatMul", "Gemm")]
    left = {_path(node) for node in products if lowering.product_of_layer(node)}
    if failed := sorted(missing | left):
        raise PassError(
            f"{len(failed)} quantized layers have no int8 form in the exported graph, the first is {failed[0]}",
            f"leave it in float: add `skip: ['{failed[0]}']` to the quantize pass",
        )
    # Before smoothing is folded: ranges are those of the tensors as the model has them.
    lower_points(model, quantization.points, reduce_range=target.int8.reduce_range)
    fold_smoothing(model)
    quantize_before_windows(model)
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
