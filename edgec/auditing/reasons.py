"""Why a node multiplies in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from .islands import DEQUANTIZER
from .profile import NodeRun

_NO_INT8_FORM: Final = frozenset(("Attention", "MultiHeadAttention", "Einsum"))


def why_float(
    node: NodeRun, producers: Mapping[str, NodeRun], left_alone: Mapping[str, str], *, quantized: bool
) -> str:
    """The first reason that holds.

    producers: the node that made a value. left_alone: module path to the reason that a pass gave for not
    touching the layer. quantized: whether any quantize pass worked on the graph.
    """
    op = node.executed.op
    if op == "QAttention":
        return "its kernel multiplies queries, keys and values in float; only the projection is int8"
    for path, reason in left_alone.items():
        if _belongs(node, path):
            return f"a pass left it alone: {reason}"
    if op in _NO_INT8_FORM and node.executed.domain in ("", "com.microsoft") and not node.constant:
        return f"onnxruntime has no int8 form of {op}"
    factors = node.input_names[:2]
    if any(producers[name].executed.op == DEQUANTIZER for name in factors if name in producers):
        return "its inputs are dequantized first: onnxruntime fused them into no int8 kernel"
    if not any(name in node.constant for name in factors):
        return "both factors are activations: there is no constant weight to quantize"
    return "no pass quantized it" if quantized else "the graph was not quantized"


def _belongs(node: NodeRun, path: str) -> bool:
    """Nodes are called "module/path/OpType", their weights "module.path.weight"."""
    names: Sequence[str] = (node.name, *node.constant)
    return any(name.startswith((f"{path}/", f"{path}.")) for name in names)
