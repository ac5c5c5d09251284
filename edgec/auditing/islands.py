"""Quantizing and dequantizing that serves no int8 product: time spent and precision lost for nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .profile import NodeRun

QUANTIZERS: Final = ("QuantizeLinear", "DynamicQuantizeLinear")
DEQUANTIZER: Final = "DequantizeLinear"
_MOVERS: Final = frozenset(
    (
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    )
)


@dataclass(frozen=True)
class Island:
    """Nodes that change the number format to no use.

    kind: "quantized for nothing" (the integers are only dequantized again) or "dequantized and quantized
    again".
    """

    kind: str
    nodes: tuple[str, ...]
    microseconds: float


def find_islands(nodes: Sequence[NodeRun]) -> tuple[Island, ...]:
    """The islands of an executed graph. Nodes that only move data (Reshape, Gather ...) are seen through."""
    consumers: dict[str, list[NodeRun]] = defaultdict(list)
    for node in nodes:
        for name in dict.fromkeys(node.input_names):
            consumers[name].append(node)
    islands = []
    for node in nodes:
        readers = list(_readers(node.output_names[0], consumers)) if node.output_names else []
        if node.executed.op in QUANTIZERS and readers:
            if all(reader.executed.op == DEQUANTIZER for reader in readers):
                islands.append(_island("quantized for nothing", node, readers))
        elif node.executed.op == DEQUANTIZER:
            again = [reader for reader in readers if reader.executed.op in QUANTIZERS]
            if again:
                islands.append(_island("dequantized and quantized again", node, again))
    return tuple(islands)


def _readers(value: str, consumers: Mapping[str, Sequence[NodeRun]]) -> Iterator[NodeRun]:
    """The nodes that read `value`, directly or after it was moved."""
    for node in consumers.get(value, ()):
        if node.executed.op in _MOVERS:
            for output in node.output_names:
                yield from _readers(output, consumers)
        else:
            yield node


def _island(kind: str, node: NodeRun, others: Sequence[NodeRun]) -> Island:
    members = {member.name: member for member in (node, *others)}
    return Island(kind, tuple(members), sum(member.microseconds for member in members.values()))
