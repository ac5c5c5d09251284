"""Windows over tokens are cut from integers: a quarter of the bytes, and each token is quantized once, not once for
every window that it is in."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


def quantize_before_windows(model: ir.Model) -> None:
    """QuantizeLinear(Concat(Slice(x) ...)) becomes Concat(Slice(QuantizeLinear(x)) ...), in place.

    Rounding to one scale is done to each element by itself, so the result is the same to the bit. Where something else
    reads the windows in float, or the scale is not one number, nothing changes.
    """
    for node in list(model.graph):
        windows = _windows(node) if node.op_type == "QuantizeLinear" else None
        if windows is None:
            continue
        joined, slices, zero = windows
        first = _like(node, [slices[0].inputs[0], *node.inputs[1:]], slices[0].inputs[0])
        cut = [_like(one, [first.outputs[0], *one.inputs[1:]], one.outputs[0]) for one in slices]
        last = _like(joined, [one.outputs[0] for one in cut], joined.outputs[0])
        for made in (first, *cut, last):
            made.outputs[0].dtype = zero.dtype
            made.metadata_props.update(node.metadata_props)
        model.graph.insert_before(node, [first, *cut, last])
        node.outputs[0].replace_all_uses_with(last.outputs[0])
        for gone in (node, joined, *slices):
            model.graph.remove(gone, safe=True)


def _windows(node: ir.Node) -> tuple[ir.Node, list[ir.Node], ir.TensorProtocol] | None:
    """The Concat that a QuantizeLinear of one scale reads, the Slices of one tensor that it joins, and the zero point,
    which has the type of the integers."""
    joined = node.inputs[0].producer()
    scale, zero = (value.const_value if value is not None else None for value in node.inputs[1:3])
    if scale is None or zero is None or scale.size != 1:
        return None
    if joined is None or joined.op_type != "Concat" or not _read_once(joined):
        return None
    slices: list[Any] = [value.producer() for value in joined.inputs]
    if any(one is None or one.op_type != "Slice" or not _read_once(one) for one in slices):
        return None
    return (joined, slices, zero) if len({id(one.inputs[0]) for one in slices}) == 1 else None


def _read_once(node: ir.Node) -> bool:
    value = node.outputs[0]
    return len(value.consumers()) == 1 and not value.is_graph_output()


def _like(node: ir.Node, inputs: list[Any], shaped: ir.Value) -> ir.Node:
    """A node that does the same to other inputs; its output has the shape of `shaped`."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    made = ir.node(node.op_type, inputs, attributes, domain=node.domain)
    made.outputs[0].shape = shaped.shape
    return made
