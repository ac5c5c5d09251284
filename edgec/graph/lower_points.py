"""Attention and layer norms on small integers: the points of the fully-quantized scheme in the graph.

Attention becomes two products of u8 by s8, which have the fast kernel as in linear layers: queries and probabilities
are u8 with a zero point, keys and values s8 around zero. What a layer norm reads or writes is quantized and restored
in its place. A linear layer that quantizes the restored tensor on the same scale (and clips nothing first, as 8 bits
need not) is given the integers themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import onnx_ir as ir

from edgec.errors import PassError
from edgec.numerics.activations import activation_scale
from edgec.numerics.weights import REDUCED_RANGE
from edgec.state import PointQuantization

from .linear_forms import CONTRIB
from .trace import MODULE_KEY

_SIGNED: Final = ("key", "value")
_HIDDEN: Final = np.finfo(np.float32).min
"""Added to the score of a hidden key. Minus infinity would make a row that sees no key undefined."""


def lower_points(model: ir.Model, points: Mapping[str, PointQuantization], *, reduce_range: bool) -> None:
    """Lower the points of one part (Quantization.of_part) in place. Linear layers are lowered before.

    reduce_range: as the target's int8.reduce_range; keys and values then have magnitudes of at most 64. Raises
    PassError for a point that has no place in the graph: a decision is carried out or fails.
    """
    missing = set(points)
    constants: dict[bytes, ir.Value] = {}
    for node in list(model.graph):
        path = node.metadata_props.get(MODULE_KEY, "")
        if path not in points:
            continue
        place = _Place(model, node, path, points[path], reduce_range, constants)
        if node.op_type == "LayerNormalization":
            _lower_norm(place)
        elif node.op_type == "Attention" and _is_plain(node):
            _lower_attention(place)
        elif node.op_type == "Softmax" and (products := _products_around(node)) is not None:
            _lower_products(place, products)
        else:
            continue
        missing.discard(path)
    if missing:
        raise PassError(
            f"{len(missing)} points have no quantized form in the exported graph, the first is {min(missing)}",
            "leave `export.opset` out, so that the model is exported in its own, or use scheme: static",
        )
    if points:
        model.graph.opset_imports[CONTRIB] = 1


@dataclass(frozen=True)
class _Place:
    """A node in whose place tensors are rounded as `point` says. constants: those made so far, by content."""

    model: ir.Model
    node: ir.Node
    path: str
    point: PointQuantization
    reduce_range: bool
    constants: dict[bytes, ir.Value]

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """The output of a new node before this one."""
        node = ir.node(op_type, inputs, attributes, domain=domain, metadata_props={MODULE_KEY: self.path})
        self.model.graph.insert_before(self.node, node)
        return node.outputs[0]

    def constant(self, value: Any, dtype: Any, name: str) -> ir.Value:
        """One initializer for equal constants, so that equal nodes can be merged."""
        array = np.array(value, dtype)
        key = array.dtype.str.encode() + array.tobytes()
        if key not in self.constants:
            tensor = ir.tensor(array)
            made = ir.Value(
                name=f"{self.path}.{name}", const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
            )
            self.model.graph.register_initializer(made)
            self.constants[key] = made
        return self.constants[key]

    def scale(self, name: str) -> tuple[ir.Value, ir.Value]:
        """The scale of a tensor and its zero point."""
        step, zero, _ = self.levels(name)
        return self.constant(step, np.float32, f"{name}_scale"), self.constant(zero, zero.dtype, f"{name}_zero_point")

    def quantized(self, name: str, x: ir.Value) -> ir.Value:
        """`x` as integers."""
        _, zero, ends = self.levels(name)
        integers = self.op("QuantizeLinear", x, *self.scale(name))
        if ends is None:
            return integers
        return self.op("Clip", integers, *(self.constant(end, zero.dtype, f"{name}_{at}") for at, end in ends.items()))

    def rounded(self, name: str, x: ir.Value) -> ir.Value:
        """`x` as the numbers that its integers stand for; `x` itself where it has no range."""
        if name not in self.point.ranges:
            return x
        return self.op("DequantizeLinear", self.quantized(name, x), *self.scale(name))

    def levels(self, name: str) -> tuple[np.float32, np.generic, dict[str, int] | None]:
        """Scale, zero point, and the lowest and highest level where the integer type holds more."""
        bits = self.point.bits
        low, high = self.point.ranges[name]
        if name not in _SIGNED:
            return *activation_scale(low, high, bits), {"lowest": 0, "highest": 2**bits - 1} if bits < 8 else None
        lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        if self.reduce_range and highest > REDUCED_RANGE:
            lowest, highest = -REDUCED_RANGE, REDUCED_RANGE
        step = np.float32(max(-low, high) / highest if max(-low, high) > 0 else 1)
        return step, np.int8(0), None if lowest == -128 else {"lowest": lowest, "highest": highest}


def _lower_norm(place: _Place) -> None:
    norm, point = place.node, place.point
    if "input" in point.ranges:
        x = norm.inputs[0]
        assert x is not None
        if point.smoothing is None:
            x = place.rounded("input", x)
        else:
            factors = np.array(point.smoothing, np.float32)
            divided = place.op("Mul", x, place.constant(1 / factors, np.float32, "input_divisors"))
            x = place.op("Mul", place.rounded("input", divided), place.constant(factors, np.float32, "input_factors"))
        norm.replace_input_with(0, x)
    if "output" in point.ranges:
        output = norm.outputs[0]
        readers = output.uses()
        integers, scale = place.quantized("output", output), place.scale("output")
        restored = place.op("DequantizeLinear", integers, *scale)
        for use in readers:
            use.node.replace_input_with(use.idx, restored)
        for reader in restored.consumers():
            if reader.op_type == "QuantizeLinear" and _equal(reader.inputs[1:], scale):
                reader.outputs[0].replace_all_uses_with(integers)


def _equal(some: Sequence[ir.Value | None], others: Sequence[ir.Value | None]) -> bool:
    """Whether these are constants of equal content, one by one."""
    arrays = [
        [x.const_value.numpy() for x in values if x is not None and x.const_value is not None]
        for values in (some, others)
    ]
    return len(arrays[0]) == len(some) and all(map(np.array_equal, *arrays))


def _is_plain(node: ir.Node) -> bool:
    """Whether it is softmax(scale * query @ key + mask) @ value of four-dimensional tensors with a Boolean mask."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    return (
        len(node.inputs) <= 4
        and "q_num_heads" not in node.attributes
        and not node.attributes.get_int("is_causal", 0)
        and not node.attributes.get_float("softcap", 0.0)
        and (mask is None or mask.dtype == ir.DataType.BOOL)
    )


def _lower_attention(place: _Place) -> None:
    """One Attention node: its parts, with products of integers."""
    node = place.node
    query, key, value = node.inputs[:3]
    assert query is not None and key is not None and value is not None
    scale = node.attributes.get_float("scale", None) or int(query.shape[-1]) ** -0.5
    scores = _scores(place, query, _quantized_heads(place, "key", key, swap=True), scale)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        numbers = (place.constant(n, np.float32, name) for n, name in ((0, "seen"), (_HIDDEN, "hidden")))
        scores = place.op("Add", scores, place.op("Where", node.inputs[3], *numbers))
    context = _context(place, place.op("Softmax", scores, axis=-1), value)
    _take_over(node.outputs[0], context)


class _Products(NamedTuple):
    """The products before and after a softmax; the first is scale * query @ key, the key (.., size, tokens)."""

    before: ir.Node
    after: ir.Node
    query: ir.Value
    key: ir.Value
    scale: float


def _products_around(softmax: ir.Node) -> _Products | None:
    """Those of attention as torch exports it where ONNX has no operator for it.

    The scale is spread over both operands, (query * c) @ (key * c); then a mask is added, if any. Rows that see no key
    are set to zero after the softmax.
    """
    before = _producer(softmax.inputs[0])
    if before is not None and before.op_type == "Add":
        before = _producer(before.inputs[0])
    if before is None or before.op_type != "MatMul":
        return None
    operands = [_scaled(value) for value in before.inputs]
    probabilities = softmax.outputs[0]
    for reader in probabilities.consumers():
        if reader.op_type == "Where":
            probabilities = reader.outputs[0]
    after = [reader for reader in probabilities.consumers() if reader.op_type == "MatMul"]
    if len(after) != 1 or operands[0] is None or operands[1] is None:
        return None
    (query, c), (key, d) = operands[0], operands[1]
    return _Products(before, after[0], query, key, c * d)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _scaled(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """(x, c) of a product x * c with a constant number."""
    node = _producer(value)
    if node is None or node.op_type != "Mul":
        return None
    x, number = node.inputs
    if x is None or number is None or number.const_value is None or number.const_value.size != 1:
        return None
    return x, number.const_value.numpy().item()


def _lower_products(place: _Place, found: _Products) -> None:
    place = dataclasses.replace(place, node=found.before)
    scores = _scores(place, found.query, place.quantized("key", found.key), found.scale)
    _take_over(found.before.outputs[0], scores)
    probabilities, value = found.after.inputs
    assert probabilities is not None and value is not None
    context = _context(dataclasses.replace(place, node=found.after), probabilities, value)
    _take_over(found.after.outputs[0], context)


def _scores(place: _Place, query: ir.Value, key: ir.Value, scale: float) -> ir.Value:
    """Scaled dot products. query: (batch, heads, tokens, size); key: integers (batch, heads, size, tokens)."""
    (_, zero), (key_step, _) = place.scale("query"), place.scale("key")
    step = place.constant(place.levels("query")[0] * np.float32(scale), np.float32, "score_scale")
    integers = _quantized_heads(place, "query", query)
    return place.rounded(
        "scores", place.op("MatMulIntegerToFloat", integers, key, step, key_step, zero, domain=CONTRIB)
    )


def _context(place: _Place, probabilities: ir.Value, value: ir.Value) -> ir.Value:
    (step, zero), (value_step, _) = place.scale("probabilities"), place.scale("value")
    integers = place.quantized("probabilities", probabilities), _quantized_heads(place, "value", value)
    return place.op("MatMulIntegerToFloat", *integers, step, value_step, zero, domain=CONTRIB)


def _quantized_heads(place: _Place, name: str, x: ir.Value, *, swap: bool = False) -> ir.Value:
    """The integers of `x` (batch, heads, tokens, size); with swap, its last axes change places.

    Rounded before the transposition that made `x`, so that bytes are moved and not floats, and moved once.
    """
    node, order = x.producer(), (0, 1, 2, 3)
    if node is not None and node.op_type == "Transpose" and "perm" in node.attributes:
        x, order = node.inputs[0], tuple(node.attributes["perm"].as_ints())
    if swap:
        order = (*order[:2], order[3], order[2])
    integers = place.quantized(name, x)
    return integers if order == (0, 1, 2, 3) else place.op("Transpose", integers, perm=order)


def _take_over(old: ir.Value, new: ir.Value) -> None:
    new.dtype, new.shape = old.dtype, old.shape
    old.replace_all_uses_with(new)
