"""The same computation in other operators. Which form is faster depends on the machine: edgec.costs measures it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from edgec.target import Forms

from .float_graph import finish
from .trace import MODULE_KEY

CONTRIB: Final = "com.microsoft"
_HEADS_FIRST: Final = (0, 2, 1, 3)
_MASKED: Final = np.float32(-1e9)
"""Added to the score of a padded key; -inf would make a row of nothing but padding undefined."""


DEFAULT_FORMS: Final = Forms()
"""Supported by every onnxruntime, and the fastest that were measured on x86-64 with VNNI."""


def apply_forms(model: ir.Model, forms: Forms) -> dict[str, str]:
    """Bring `model` into these forms, in place. Returns those that it has now, {"norm": "sum", "gelu": "exact"}.

    A choice that the model has no operators for is not in the result. Attention that is not one node in the graph
    (families without plain scaled dot products) is left as it is.
    """
    made: dict[str, str] = {}
    blocks = list(_attention_blocks(model))
    if forms.attention == "qattention":
        merged = [block for block in blocks if _to_qattention(model, block)]
        made |= {"attention": "qattention", "mask": "always"} if merged else {}
        blocks = [block for block in blocks if block not in merged]
    if forms.attention == "mha":
        biases: dict[ir.Value | None, ir.Value | None] = {}
        for block in blocks:
            _to_mha(model, block, biases)
        made |= {"attention": "mha", "mask": "always"} if blocks else {}
    else:
        padded: dict[ir.Value, ir.Value] = {}
        for block in blocks:
            node = _packed(block, block.mask)
            if forms.mask == "if-padded" and block.mask is not None and (mask := _padding(block.mask)) is not None:
                node = _if_padded(model, block, _any_padding(model, mask, padded))
                made["mask"] = "if-padded"
            _replace(model, block, node)
        made = {"attention": "packed", "mask": "always", **made} if blocks else made
    sums = list(_normed_sums(model))
    if forms.norm == "skip":
        for addition, norm in sums:
            _to_skip(model, addition, norm)
    made |= {"norm": forms.norm} if sums else {}
    gelus = list(_exact_gelus(model))
    if forms.gelu == "tanh":
        for node in gelus:
            node.attributes.add(ir.AttrString("approximate", "tanh"))
    made |= {"gelu": forms.gelu} if gelus else {}
    if made.get("attention") in ("mha", "qattention") or made.get("norm") == "skip":
        model.graph.opset_imports[CONTRIB] = 1
    finish(model)
    return made


@dataclass(frozen=True, eq=False)
class _Block:
    """An Attention node between the layout changes around it.

    query, key, value: (batch, tokens, hidden). mask: (batch, 1, tokens, tokens), true where a key counts, or None.
    output: (batch, tokens, hidden), made by the last node.
    """

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None
    heads: int
    output: ir.Value

    @property
    def scale(self) -> float | None:
        scale = self.node.attributes.get("scale")
        return None if scale is None else scale.as_float()


def _attention_blocks(model: ir.Model) -> Iterator[_Block]:
    for node in model.graph:
        if node.op_type != "Attention" or node.domain or "q_num_heads" in node.attributes:
            continue
        if len(node.inputs) > 4 or node.attributes.get_int("is_causal", 0) or node.attributes.get_float("softcap", 0.0):
            continue
        operands = [_before_heads(value) for value in node.inputs[:3]]
        output = _after_heads(node.outputs[0])
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if output is None or any(operand is None for operand in operands):
            continue
        if mask is not None and mask.dtype != ir.DataType.BOOL:
            continue
        (query, heads), (key, key_heads), (value, value_heads) = (operand for operand in operands if operand)
        if heads == key_heads == value_heads:
            yield _Block(node, query, key, value, mask, heads, output)


def _before_heads(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """(batch, tokens, hidden) and the heads, of a value that is its (batch, heads, tokens, size)."""
    transpose = value.producer() if value is not None else None
    reshape = _input_producer(transpose) if _is_heads_first(transpose) else None
    if reshape is None or reshape.op_type != "Reshape":
        return None
    packed, split = reshape.inputs[0], reshape.outputs[0]
    if packed is None or packed.shape is None or split.shape is None or (len(packed.shape), len(split.shape)) != (3, 4):
        return None
    hidden, heads, size = packed.shape[2], split.shape[2], split.shape[3]
    if not isinstance(heads, int) or not isinstance(size, int) or hidden != heads * size:
        return None
    return packed, heads


def _after_heads(value: ir.Value) -> ir.Value | None:
    """(batch, tokens, hidden) made of the attention's (batch, heads, tokens, size), where nobody else reads that."""
    for op_type in ("Transpose", "Reshape"):
        readers = value.consumers()
        if value.is_graph_output() or len(readers) != 1 or readers[0].op_type != op_type:
            return None
        if op_type == "Transpose" and not _is_heads_first(readers[0]):
            return None
        value = readers[0].outputs[0]
    return value if value.shape is not None and len(value.shape) == 3 else None


def _is_heads_first(node: ir.Node | None) -> bool:
    if node is None or node.op_type != "Transpose":
        return False
    perm = node.attributes.get("perm")
    return perm is not None and tuple(perm.as_ints()) == _HEADS_FIRST


def _input_producer(node: ir.Node | None) -> ir.Node | None:
    return None if node is None or node.inputs[0] is None else node.inputs[0].producer()


def _packed(block: _Block, mask: ir.Value | None) -> ir.Node:
    inputs = [block.query, block.key, block.value, *([mask] if mask is not None else [])]
    kept = {name: attribute.value for name, attribute in block.node.attributes.items()}
    return ir.node("Attention", inputs, {**kept, "q_num_heads": block.heads, "kv_num_heads": block.heads})


def _if_padded(model: ir.Model, block: _Block, condition: ir.Value) -> ir.Node:
    branches = {}
    for name, mask in (("then_branch", block.mask), ("else_branch", None)):
        node = _packed(block, mask)
        node.metadata_props.update(block.node.metadata_props)
        node.outputs[0].dtype, node.outputs[0].shape = block.output.dtype, block.output.shape
        opsets = dict(model.graph.opset_imports)
        branches[name] = ir.Graph([], [node.outputs[0]], nodes=[node], opset_imports=opsets, name=name)
    return ir.node("If", [condition], branches)


def _any_padding(model: ir.Model, mask: ir.Value, made: dict[ir.Value, ir.Value]) -> ir.Value:
    """A boolean scalar: whether any element of the mask (batch, tokens) is 0."""
    if mask not in made:
        zero = _initializer(model, "padding", np.array(0, np.int32))
        smallest = ir.node("ReduceMin", [mask], {"keepdims": 0})
        equal = ir.node("Equal", [smallest.outputs[0], zero])
        for node, dtype in ((smallest, ir.DataType.INT32), (equal, ir.DataType.BOOL)):
            node.outputs[0].dtype, node.outputs[0].shape = dtype, ir.Shape(())
        model.graph.extend([smallest, equal])
        made[mask] = equal.outputs[0]
    return made[mask]


def _to_mha(model: ir.Model, block: _Block, biases: dict[ir.Value | None, ir.Value | None]) -> None:
    if block.mask is not None and block.mask not in biases:
        values = [
            _initializer(model, name, np.array(number, np.float32))
            for name, number in (("attention_bias.kept", 0), ("attention_bias.masked", _MASKED))
        ]
        where = ir.node("Where", [block.mask, *values])
        where.outputs[0].dtype, where.outputs[0].shape = ir.DataType.FLOAT, block.mask.shape
        model.graph.insert_before(block.node, where)
        biases[block.mask] = where.outputs[0]
    inputs = [block.query, block.key, block.value, None, None, biases.get(block.mask)]
    _replace(model, block, ir.node("MultiHeadAttention", inputs, _contrib(block), domain=CONTRIB))


def _to_qattention(model: ir.Model, block: _Block) -> bool:
    """Where query, key and value are int8 products of one quantized tensor, and the mask is the rows' padding."""
    products = [value.producer() for value in (block.query, block.key, block.value)]
    if any(p is None or p.op_type != "MatMulIntegerToFloat" or len(p.outputs[0].consumers()) != 1 for p in products):
        return False
    nodes = [product for product in products if product is not None]
    # Input, its scale and its zero point: the kernel quantizes nothing and takes one of each.
    if any(len({id(node.inputs[index]) for node in nodes}) != 1 for index in (0, 2, 4)):
        return False
    mask = _padding(block.mask)
    if block.mask is not None and mask is None:
        return False
    arrays = []
    for node in nodes:
        weight, scale, bias = (_constant(node, index) for index in (1, 3, 6))
        if weight is None or scale is None or scale.ndim != 1:
            return False
        arrays.append((weight, scale, np.zeros(len(scale), np.float32) if bias is None else bias))
    weights, scales, shifts = (
        np.concatenate(group, axis=axis) for group, axis in zip(zip(*arrays, strict=True), (1, 0, 0), strict=True)
    )
    path = block.node.metadata_props.get(MODULE_KEY, "attention")
    first = nodes[0].inputs
    constants = [
        _initializer(model, f"{path}.{name}", array)
        for name, array in (
            ("projections_int8", weights),
            ("projections_bias", shifts),
            ("projections_scale", scales),
            ("projections_zero_point", np.zeros(len(scales), np.int8)),
        )
    ]
    weight, bias, scale, zero = constants
    inputs = [first[0], weight, bias, first[2], scale, mask, first[4], zero]
    _replace(model, block, ir.node("QAttention", inputs, _contrib(block), domain=CONTRIB))
    return True


def _padding(mask: ir.Value | None) -> ir.Value | None:
    """The graph's input that a mask is only another layout of, (batch, tokens) int32."""
    while mask is not None and (node := mask.producer()) is not None:
        if node.op_type not in ("Expand", "Cast", "Unsqueeze"):
            return None
        mask = node.inputs[0]
    return mask if mask is not None and mask.is_graph_input() and mask.dtype == ir.DataType.INT32 else None


def _contrib(block: _Block) -> dict[str, int | float]:
    return {"num_heads": block.heads, **({} if block.scale is None else {"scale": block.scale})}


def _constant(node: ir.Node, index: int) -> np.ndarray | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array)
    value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    model.graph.register_initializer(value)
    return value


def _replace(model: ir.Model, block: _Block, new: ir.Node) -> None:
    new.metadata_props.update(block.node.metadata_props)
    new.outputs[0].dtype, new.outputs[0].shape = block.output.dtype, block.output.shape
    last = block.output.producer()
    assert last is not None
    model.graph.insert_before(last, new)
    _take_over(block.output, new.outputs[0])


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """`new` is read wherever `old` was; as an output of the graph it has its name."""
    if old.is_graph_output():
        name, old.name = old.name, None
        new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _normed_sums(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Sum of two tensors, and the LayerNormalization over the last axis that alone reads it."""
    for norm in model.graph:
        addition = _input_producer(norm) if norm.op_type == "LayerNormalization" else None
        if addition is None or addition.op_type != "Sum" or len(addition.inputs) != 2:
            continue
        if (
            len(norm.inputs) > 1
            and len(addition.outputs[0].consumers()) == 1
            and norm.attributes.get_int("axis", -1) == -1
        ):
            yield addition, norm


def _to_skip(model: ir.Model, addition: ir.Node, norm: ir.Node) -> None:
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    new = ir.node("SkipLayerNormalization", [*addition.inputs, *norm.inputs[1:]], {"epsilon": epsilon}, domain=CONTRIB)
    new.metadata_props.update(norm.metadata_props)
    new.outputs[0].dtype, new.outputs[0].shape = norm.outputs[0].dtype, norm.outputs[0].shape
    model.graph.insert_before(norm, new)
    _take_over(norm.outputs[0], new.outputs[0])


def _exact_gelus(model: ir.Model) -> Iterator[ir.Node]:
    """Since opset 20 there is an operator for it; before, torch writes it as several, which are left alone."""
    for node in model.graph.all_nodes():
        approximate = node.attributes.get("approximate")
        if node.op_type == "Gelu" and not node.domain and (approximate is None or approximate.as_string() == "none"):
            yield node
