"""Products by smoothing factors that the operators before them can take over: the same function, one node less.

A smoothed layer divides its input, channel by channel. Where that input comes from a LayerNormalization, or from
attention's product with the values, the division goes into constants that are there anyway (Xiao et al. 2023,
section 4, where the layer before a smoothed one takes it over).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

Edits = list[tuple[ir.Value, np.ndarray]]
"""Constants, and what each is to be multiplied by."""

_HEADS_FIRST: Final = (0, 2, 1, 3)


def fold_smoothing(model: ir.Model) -> None:
    """Fold Mul(x, constant (channels,)) into what x is made of, in place. What remains is the same function.

    Folded are (a) a layer norm's output: into its scale and bias; (b) attention's output, (batch, tokens, heads *
    size): into the output channels of the value projection, from where each channel of a head comes through unmixed.
    Neither is folded where something else reads a tensor or a constant on the way. Readers of x that are products by
    the same constant are folded together.
    """
    for node in list(model.graph):
        if node.graph is None or not _multiplies_channels(node):  # removed together with an earlier one, or another
            continue
        x, factors = node.inputs
        assert x is not None and factors is not None
        readers = list(x.consumers())
        if x.is_graph_output() or not all(_multiplies_channels(n) and n.inputs[1] is factors for n in readers):
            continue
        if any(reader.outputs[0].is_graph_output() for reader in readers):  # its name is the model's
            continue
        edits = _into_norm(x, _array(factors)) or _into_values(x, _array(factors))
        if not edits or not all(_read_once(constant) for constant, _ in edits):
            continue
        for constant, by in edits:
            constant.const_value = ir.tensor(_array(constant) * by, name=constant.name)
        for reader in readers:
            reader.outputs[0].replace_all_uses_with(x)
            model.graph.remove(reader, safe=True)


def _multiplies_channels(node: ir.Node) -> bool:
    """Whether it is Mul(x, constant (channels,))."""
    if node.op_type != "Mul" or node.domain or node.inputs[0] is None or node.inputs[0].const_value is not None:
        return False
    constant = node.inputs[1]
    return constant is not None and constant.const_value is not None and len(constant.const_value.shape) == 1


def _into_norm(x: ir.Value, factors: np.ndarray) -> Edits | None:
    norm = x.producer()
    if norm is None or norm.op_type != "LayerNormalization" or x is not norm.outputs[0]:
        return None
    constants = [value for value in norm.inputs[1:] if value is not None]
    if any(value.const_value is None or _array(value).shape != factors.shape for value in constants):
        return None
    return [(value, factors) for value in constants]


def _into_values(x: ir.Value, factors: np.ndarray) -> Edits | None:
    joined = _made_by("Reshape", x)
    context = _made_by("Transpose", joined)
    attention = context.producer() if context is not None else None
    if joined is None or attention is None or attention.domain or context is not attention.outputs[0]:
        return None
    # A product whose heads come together again is that of the probabilities (left) with the values (right).
    index = {"Attention": 2, "MatMul": 1}.get(attention.op_type)
    value = attention.inputs[index] if index is not None else None
    if value is None or not _read_once(value):
        return None
    split = _made_by("Transpose", value)
    projected = _made_by("Reshape", split)
    if split is None or projected is None or not _same_heads(split, joined):
        return None
    return _channel_edits(projected, factors)


def _made_by(op_type: str, value: ir.Value | None) -> ir.Value | None:
    """What a node of this type made `value` of, where nothing else reads it. A Transpose swaps tokens and heads."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != op_type or node.inputs[0] is None or not _read_once(node.inputs[0]):
        return None
    if op_type == "Transpose":
        perm = node.attributes.get("perm")
        if perm is None or tuple(perm.as_ints()) != _HEADS_FIRST:
            return None
    return node.inputs[0]


def _same_heads(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values (batch, tokens, heads, size) have the same heads of the same size."""
    if a.shape is None or b.shape is None or not len(a.shape) == len(b.shape) == 4:
        return False
    return all(isinstance(n, int) and n == m for n, m in zip(a.shape[2:], b.shape[2:], strict=True))


def _channel_edits(value: ir.Value, factors: np.ndarray) -> Edits | None:
    """After which `value` (.., channels), a product with constant weights, comes out times `factors` (channels,)."""
    node = value.producer()
    if node is None or not _read_once(value):
        return None
    match node.op_type:
        case "MatMulIntegerToFloat":  # scales and bias
            return _edits_of(node, {3: factors, 6: factors})
        case "MatMulNBits":
            return _edits_of(node, {2: factors[:, None], 5: factors})
        case "MatMul":
            return _edits_of(node, {1: factors})
        case "Mul":  # by the scales of rows
            return _channel_edits(node.inputs[0], factors) if node.inputs[0] is not None else None
        case "Add" | "Sum":
            edits: Edits = []
            for term in node.inputs:
                assert term is not None
                part = [(term, factors)] if term.const_value is not None else _channel_edits(term, factors)
                if part is None:
                    return None
                edits += part
            return edits
        case _:
            return None


def _edits_of(node: ir.Node, factors: dict[int, np.ndarray]) -> Edits | None:
    """Of those of the inputs `factors` that the node has; None where one is no constant."""
    edits: Edits = []
    for index, by in factors.items():
        constant = node.inputs[index] if index < len(node.inputs) else None
        if constant is None:
            continue
        if constant.const_value is None:
            return None
        edits.append((constant, by))
    return edits


def _read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _array(constant: ir.Value) -> np.ndarray:
    assert constant.const_value is not None
    array: np.ndarray = constant.const_value.numpy()
    return array
