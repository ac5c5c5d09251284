"""The operators of onnxruntime that multiply 8-bit matrices, as another kind of CPU answers them.

Each is made exact on every CPU first: its factors are shifted from int8 to uint8, for which all kernels are exact.
Where the other CPU loses something, the operator is then taken apart: its integer product, the correction of that, and
what the operator does afterwards in float.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import onnx_ir as ir

from edgec.errors import UserError

from .corrections import INT32, Correction, by_computed, by_constant, risky_pairs
from .kinds import Kind
from .products import SPAN
from .tape import Tape

CONTRIB: Final = "com.microsoft"
INT8, UINT8 = ir.DataType.INT8, ir.DataType.UINT8
_SHIFT: Final = 128
_NOT_COVERED: Final = ("ConvInteger", "DynamicQuantizeLSTM", "QGemm", "QLinearConv", "QLinearMatMul", "QMoE")


class _Places(NamedTuple):
    """Which inputs of an operator are its factors and their zero points, in MatMulInteger's order."""

    a: int
    b: int
    a_zero: int
    b_zero: int


_PLACES: Final = {
    "MatMulInteger": _Places(0, 1, 2, 3),
    "MatMulIntegerToFloat": _Places(0, 1, 4, 5),
    "QAttention": _Places(0, 1, 6, 7),
}
_WITH_FLOAT: Final = "DynamicQuantizeMatMul"
_SAME_FORMAT: Final = ("Clip", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def rewrite(model: ir.Model, kind: Kind) -> dict[str, str]:
    """Make the 8-bit products of a model answer as a CPU of `kind` does, in place.

    Returns, by the name of an output that the graph gets, the module that it tells of: int64 (3,), sums of two products
    that did not fit in 16 bits, elements of the product, inputs of each. Raises UserError for operators that are not
    covered.
    """
    rewriter = _Rewriter(model.graph, kind)
    for node in list(model.graph.all_nodes()):
        inside = node.graph is not model.graph and node.op_type in (*_PLACES, _WITH_FLOAT)
        # By default it multiplies in float.
        in_bytes = node.op_type == "MatMulNBits" and node.attributes.get_int("accuracy_level", 0) == 4
        if inside or in_bytes or node.op_type in _NOT_COVERED:
            raise UserError(
                f"the emulation does not cover {node.op_type}{' in a branch' if inside else ''} ({node.name})",
                "replay the bundle on an emulated CPU: `edgec verify BUNDLE --on qemu://Haswell`",
            )
        if node.op_type == _WITH_FLOAT:
            node = rewriter.expand(node)
        if node.op_type in _PLACES:
            rewriter.product(node, _PLACES[node.op_type])
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    return rewriter.told


@dataclass
class _Rewriter:
    graph: ir.Graph
    kind: Kind
    told: dict[str, str] = field(default_factory=dict)
    unsigned: dict[ir.Value, ir.Value] = field(default_factory=dict)
    identities: dict[int, ir.Value] = field(default_factory=dict)

    def product(self, node: ir.Node, at: _Places) -> None:
        node.resize_inputs(max(len(node.inputs), max(at) + 1))
        a, b = node.inputs[at.a], node.inputs[at.b]
        assert a is not None and b is not None
        a_dtype, b_dtype = _dtype(node, at.a, at.a_zero), _dtype(node, at.b, at.b_zero)
        if b_dtype == UINT8:
            return
        self._make_unsigned(node, at, a_dtype)
        if self.kind not in SPAN or (self.kind == "avx2" and a_dtype == INT8):
            return
        weights = None if b.const_value is None or len(b.const_value.shape) != 2 else b.const_value.numpy()
        risky = None if weights is None else risky_pairs(self.kind, weights)
        if weights is not None and risky is None:
            return
        op = Tape(f"{node.name}.emulated")
        exact = op.MatMulInteger(*(node.inputs[place] for place in at))
        if weights is not None and risky is not None:
            lost = by_constant(op, self.kind, a, a_dtype, weights, risky, exact)
        else:
            lost = by_computed(op, self.kind, a, a_dtype, b, exact)
        result = self._finish(op, node, op.Add(exact, lost.sums))
        self._tell(op, node, lost, exact, a)
        self._replace(op, node, result)

    def expand(self, node: ir.Node) -> ir.Node:
        """DynamicQuantizeMatMul as DynamicQuantizeLinear and MatMulIntegerToFloat, which it computes."""
        op = Tape(f"{node.name}.expanded")
        x, weights, scale, zero, bias = (*node.inputs, None, None)[:5]
        quantized, x_scale, x_zero = op.DynamicQuantizeLinear(x, _outputs=3)
        quantized.dtype = x_zero.dtype = UINT8
        inputs = (quantized, weights, x_scale, scale, x_zero, zero, bias)
        result = op.MatMulIntegerToFloat(*inputs, _domain=CONTRIB)
        new: ir.Node = result.producer()
        new.name = node.name
        new.metadata_props.update(node.metadata_props)
        self._replace(op, node, result)
        return new

    def _make_unsigned(self, node: ir.Node, at: _Places, a_dtype: ir.DataType) -> None:
        op = Tape(f"{node.name}.unsigned")
        for factor, zero, dtype in ((at.a, at.a_zero, a_dtype), (at.b, at.b_zero, INT8)):
            if dtype == INT8:
                node.replace_input_with(factor, self._shifted(op, node.inputs[factor]))
                node.replace_input_with(zero, self._shifted(op, node.inputs[zero]))
        op.insert(self.graph, node)

    def _shifted(self, op: Tape, value: ir.Value | None) -> ir.Value:
        """An int8 value as uint8, 128 higher; no zero point is 0."""
        if value is None:
            return op.constant(_SHIFT, np.uint8)
        if value not in self.unsigned:
            if value.const_value is not None:
                shifted = value.const_value.numpy().astype(np.int16) + _SHIFT
                self.unsigned[value] = op.constant(shifted, np.uint8)
            else:
                up = op.constant(_SHIFT, np.int32)
                self.unsigned[value] = op.Cast(op.Add(op.Cast(value, to=INT32), up), to=UINT8)
        return self.unsigned[value]

    def _finish(self, op: Tape, node: ir.Node, sums: ir.Value) -> ir.Value:
        """What the operator makes of its integer product."""
        if node.op_type == "MatMulInteger":
            return sums
        if node.op_type == "MatMulIntegerToFloat":
            return _in_float(op, sums, scales=node.inputs[2:4], bias=(*node.inputs, None)[6])
        _, _, bias, x_scale, scale, mask, _, _, past = (*node.inputs, None)[:9]
        projected = _in_float(op, sums, scales=(x_scale, scale), bias=bias)
        # com.microsoft.Attention is the same kernel without the 8-bit projection: here it projects by one.
        none = op.constant(np.zeros(bias.shape[0]), np.float32)  # onnxruntime 1.31 crashes without a bias
        inputs = (projected, self._identity(op, bias.shape[0]), none, mask, past)
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        return op.Attention(*inputs, **attributes, _domain=CONTRIB)

    def _identity(self, op: Tape, size: int) -> ir.Value:
        if size not in self.identities:
            self.identities[size] = op.constant(np.eye(size), np.float32)
        return self.identities[size]

    def _tell(self, op: Tape, node: ir.Node, lost: Correction, exact: ir.Value, a: ir.Value) -> None:
        one = op.constant([1])
        figures = [op.Reshape(figure, one) for figure in (lost.pairs, op.Size(exact), op.Shape(a, start=-1))]
        told = op.Concat(*figures, axis=0)
        told.name = f"{node.name}.told"
        told.dtype, told.shape = ir.DataType.INT64, ir.Shape([3])
        self.graph.outputs.append(told)
        # Nodes are called after their module (edgec.graph): "PATH/OPERATOR".
        self.told[told.name] = str(node.name).rpartition("/")[0] or str(node.name)

    def _replace(self, op: Tape, node: ir.Node, result: ir.Value) -> None:
        op.insert(self.graph, node)
        output = node.outputs[0]
        result.name, output.name = output.name, result.name  # an output of the graph keeps its name
        result.type, result.shape = output.type, output.shape
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        self.graph.remove(node)


def _dtype(node: ir.Node, factor: int, zero: int) -> ir.DataType:
    """uint8 or int8: that of the zero point, or of what made the factor."""
    value = node.inputs[zero] if node.inputs[zero] is not None else node.inputs[factor]
    while value is not None and value.dtype is None:
        maker = value.producer()
        if maker is not None and maker.op_type == "DynamicQuantizeLinear":
            return UINT8
        if maker is not None and maker.op_type == "QuantizeLinear" and len(maker.inputs) > 2:
            value = maker.inputs[2]
        else:
            value = maker.inputs[0] if maker is not None and maker.op_type in _SAME_FORMAT else None
    if value is None or value.dtype not in (INT8, UINT8):
        raise UserError(f"the graph does not tell whether input {factor} of {node.name} is uint8 or int8")
    return value.dtype


def _in_float(op: Tape, sums: ir.Value, *, scales: Any, bias: ir.Value | None) -> ir.Value:
    """As onnxruntime does it on x86: multiplied by the product of the scales, then the bias added, both rounded."""
    scaled = op.Mul(op.Cast(sums, to=ir.DataType.FLOAT), op.Mul(*scales))
    return scaled if bias is None else op.Add(scaled, bias)
