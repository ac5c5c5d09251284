"""The audit of one graph: what ran in int8, what in float and why, and what was quantized for nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
from edgec_runtime.manifest import Part

from .islands import Island, find_islands
from .macs import UNCOUNTED, Macs, count
from .profile import NodeRun, profile
from .reasons import why_float

# The time of these is that of the nodes inside them, which stand in the profile themselves.
_CONTAINERS: Final = ("If", "Loop", "Scan")
_WEIGHT_INPUT: Final = {"QLinearMatMul": 3, "QGemm": 3, "QLinearConv": 3}


@dataclass(frozen=True)
class OperatorRow:
    """All nodes of one operator. share: of the graph's multiply-accumulates; time_share: of the nodes' time.

    factors: the number formats that met in its products, such as "uint8 x int8"; empty where there are none.
    """

    op: str
    domain: str
    provider: str
    count: int
    macs: Macs
    share: float
    time_share: float
    factors: tuple[str, ...]


@dataclass(frozen=True)
class LayerMacs:
    """The multiply-accumulates of one module's own nodes, those of the modules inside it not counted.

    layer: the module's path; the name of the node where the graph does not tell a module.
    """

    layer: str
    int8: int
    float: int
    weight_only: int


@dataclass(frozen=True)
class FloatNode:
    """A node that multiplies in float: how much, and why."""

    name: str
    op: str
    macs: int
    reason: str


@dataclass(frozen=True)
class GraphAudit:
    """What onnxruntime did with a graph.

    int8_share, float_share and weight_only_share: of all multiply-accumulates of one run, 0 where there are
    none. layers: those that multiply, in the order of the graph. uncounted: operators that ran, multiply
    matrices, and are in no figure. milliseconds: the time of the nodes in one run, under the profiler.
    """

    macs: Macs
    int8_share: float
    float_share: float
    weight_only_share: float
    layers: tuple[LayerMacs, ...]
    operators: tuple[OperatorRow, ...]
    float_nodes: tuple[FloatNode, ...]
    islands: tuple[Island, ...]
    uncounted: tuple[str, ...]
    milliseconds: float


def audit_graph(
    graph: Path,
    feeds: Mapping[str, npt.NDArray[Any]],
    *,
    left_alone: Mapping[str, str] | None = None,
    quantized: bool = True,
    part: Part | None = None,
    threads: int = 1,
) -> GraphAudit:
    """Run `graph` on `feeds` under onnxruntime's profiler and count.

    left_alone: module path to the reason that a pass left the layer in float. quantized: whether any pass
    quantized the graph. part: the manifest's, which the graph has to fit. Raises a BundleError where the runtime
    could not run it.
    """
    nodes = profile(graph, feeds, part=part, threads=threads)
    nodes = [node for node in nodes if node.executed.op not in _CONTAINERS]
    macs = {node.name: count(node.executed) for node in nodes}
    producers = {output: node for node in nodes for output in node.output_names}
    total = sum(macs.values(), Macs())
    float_nodes = [
        FloatNode(
            node.name,
            node.executed.op,
            macs[node.name].float,
            why_float(node, producers, left_alone or {}, quantized=quantized),
        )
        for node in nodes
        if macs[node.name].float
    ]
    return GraphAudit(
        macs=total,
        int8_share=_ratio(total.int8, total.total),
        float_share=_ratio(total.float, total.total),
        weight_only_share=_ratio(total.weight_only, total.total),
        layers=_layers(nodes, macs),
        operators=_operators(nodes, macs, total),
        float_nodes=tuple(sorted(float_nodes, key=lambda node: -node.macs)),
        islands=find_islands(nodes),
        uncounted=tuple(sorted({node.executed.op for node in nodes} & UNCOUNTED)),
        milliseconds=sum(node.microseconds for node in nodes) / 1000,
    )


def _layers(nodes: Sequence[NodeRun], macs: Mapping[str, Macs]) -> tuple[LayerMacs, ...]:
    layers: dict[str, Macs] = {}
    for node in nodes:
        if macs[node.name].total:
            layer = node.module or node.name
            layers[layer] = layers.get(layer, Macs()) + macs[node.name]
    return tuple(LayerMacs(layer, own.int8, own.float, own.weight_only) for layer, own in layers.items())


def _operators(nodes: Sequence[NodeRun], macs: Mapping[str, Macs], total: Macs) -> tuple[OperatorRow, ...]:
    """One row an operator, the one with the most multiply-accumulates first, then by time."""
    groups: dict[tuple[str, str, str], list[NodeRun]] = defaultdict(list)
    for node in nodes:
        groups[node.executed.op, node.executed.domain, node.provider].append(node)
    time = sum(node.microseconds for node in nodes)
    rows = []
    for (op, domain, provider), members in groups.items():
        own = sum((macs[node.name] for node in members), Macs())
        rows.append(
            OperatorRow(
                op=op,
                domain=domain or "ai.onnx",
                provider=provider,
                count=len(members),
                macs=own,
                share=_ratio(own.total, total.total),
                time_share=_ratio(sum(node.microseconds for node in members), time),
                factors=tuple(sorted({_factors(node) for node in members if macs[node.name].total})),
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.macs.total, -row.time_share, row.op)))


def _factors(node: NodeRun) -> str:
    if node.executed.op == "DynamicQuantizeMatMul":  # it reads float and quantizes inside
        return f"uint8 x {node.dtypes[1]}"
    weight = _WEIGHT_INPUT.get(node.executed.op, 1)
    return " x ".join(node.dtypes[index] for index in (0, weight) if index < len(node.dtypes))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
