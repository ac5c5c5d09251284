"""One graph, run under onnxruntime's own profiler: which node ran, on which shapes, for how long."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import edgec_runtime  # noqa: F401  (sets ORT_DISABLE_TELEMETRY before onnxruntime loads)
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from edgec_runtime.engine import OnnxRuntimeEngine
from edgec_runtime.manifest import Part

from .macs import Executed, Shape

MODULE_KEY: Final = "edgec.module"
"""Metadata key of a node, written by edgec.graph.trace: the dotted path of the torch module that it came from."""

_SUFFIX: Final = "_kernel_time"
_NUMPY_NAMES: Final = {"float": "float32", "double": "float64"}


@dataclass(frozen=True)
class NodeRun:
    """A node of the graph as onnxruntime optimised it, in one run.

    position: in the order of the graph, the nodes inside an If or Loop after that one. module: the path of the torch
    module that it came from, "" where the graph does not tell. microseconds: mean over the measured runs. dtypes: of
    the inputs, "" for a missing one.
    """

    name: str
    position: int
    module: str
    provider: str
    executed: Executed
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dtypes: tuple[str, ...]
    constant: frozenset[str]
    microseconds: float


def profile(
    graph: Path,
    feeds: Mapping[str, npt.NDArray[Any]],
    *,
    part: Part | None = None,
    threads: int = 1,
    runs: int = 5,
) -> list[NodeRun]:
    """Run `graph` once to warm up and `runs` times under the profiler; its nodes in the order of the graph.

    It is run by the runtime's own engine. part: the manifest's, whose inputs and outputs the graph has to have. Nodes
    are those that onnxruntime's optimiser leaves: fused ones stand under the fused operator. Raises OperatorRefused,
    EngineFailed, ManifestInvalid; RuntimeError where the profile and the optimised graph do not fit together.
    """
    with tempfile.TemporaryDirectory(prefix="edgec-audit-") as folder:
        optimized = Path(folder, "optimized.onnx")
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        options.optimized_model_filepath = str(optimized)
        name, optimize = (part.name, part.optimize_at_load) if part else (graph.name, False)
        engine = OnnxRuntimeEngine(graph, threads=threads, name=name, options=options, optimize=optimize)
        if part:
            engine.require_fits(part)
        for _ in range(runs + 1):
            engine.run(feeds)
        events = json.loads(Path(engine.session.end_profiling()).read_text())
        # Weights that lie beside the graph are not copied to the folder; their shapes are all that is needed.
        model = onnx.load(optimized, load_external_data=False)
    return _Reader(model, feeds).read(events, runs)


class _Reader:
    """Joins the events of a profile to the nodes of the optimised graph, and follows the shapes of values.

    A profile leaves out inputs that a kernel packed for itself (weights), so shapes come from the
    initialisers, from what was fed, and from the outputs of the nodes that ran before.
    """

    def __init__(self, model: onnx.ModelProto, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        self.shapes: dict[str, Shape] = {name: array.shape for name, array in feeds.items()}
        self.dtypes: dict[str, str] = {name: array.dtype.name for name, array in feeds.items()}
        self.named: dict[str, tuple[int, onnx.NodeProto]] = {}
        self.unnamed: dict[str, list[tuple[int, onnx.NodeProto]]] = {}
        self.constants: set[str] = set()
        for graph in _graphs(model.graph):
            for tensor in graph.initializer:
                self.constants.add(tensor.name)
                self.shapes[tensor.name] = tuple(tensor.dims)
                self.dtypes[tensor.name] = _dtype(tensor.data_type)
        for place in enumerate(_nodes(model.graph)):
            _, node = place
            if node.name:
                self.named[node.name] = place
            else:
                self.unnamed.setdefault(node.op_type, []).append(place)

    def read(self, events: list[dict[str, Any]], runs: int) -> list[NodeRun]:
        first: dict[str, NodeRun] = {}
        total: dict[str, float] = {}
        run = 0
        for event in events:
            if event.get("name") == "model_run":
                run += 1
            if event.get("cat") != "Node" or not event["name"].endswith(_SUFFIX):
                continue
            name = event["name"].removesuffix(_SUFFIX)
            if name not in first:
                first[name] = self._node_run(name, event["args"])
            if run:  # run 0 warmed up
                total[name] = total.get(name, 0.0) + event["dur"]
        nodes = [replace(node, microseconds=total.get(name, 0.0) / runs) for name, node in first.items()]
        return sorted(nodes, key=lambda node: node.position)

    def _node_run(self, name: str, args: Mapping[str, Any]) -> NodeRun:
        position, node = self._node(name, args["op_name"])
        outputs = [output for output in node.output if output]
        for output, described in zip(outputs, args["output_type_shape"], strict=True):
            ((dtype, shape),) = described.items()
            self.shapes[output], self.dtypes[output] = tuple(shape), _NUMPY_NAMES.get(dtype, dtype)
        return NodeRun(
            name=name,
            position=position,
            module=next((entry.value for entry in node.metadata_props if entry.key == MODULE_KEY), ""),
            provider=args["provider"],
            executed=Executed(
                op=node.op_type,
                domain="" if node.domain == "ai.onnx" else node.domain,
                attributes={a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
                inputs=[self.shapes.get(value) if value else None for value in node.input],
                outputs=[self.shapes.get(value) if value else None for value in node.output],
            ),
            input_names=tuple(node.input),
            output_names=tuple(node.output),
            dtypes=tuple(self.dtypes.get(value, "") for value in node.input),
            constant=frozenset(value for value in node.input if value in self.constants),
            microseconds=0.0,
        )

    def _node(self, name: str, op: str) -> tuple[int, onnx.NodeProto]:
        """The node of an event and its position. onnxruntime calls one without a name after its operator and index."""
        place = self.named.get(name)
        if place is None and re.fullmatch(rf"{re.escape(op)}_\d+", name) and self.unnamed.get(op):
            place = self.unnamed[op].pop(0)
        if place is None or place[1].op_type != op:
            raise RuntimeError(f"onnxruntime profiled {op} {name!r}, which its optimised graph does not have")
        return place


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside its If, Loop and Scan nodes."""
    yield graph
    for node in graph.node:
        for body in _bodies(node):
            yield from _graphs(body)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those inside another one right after it."""
    for node in graph.node:
        yield node
        for body in _bodies(node):
            yield from _nodes(body)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def _dtype(code: int) -> str:
    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)).name)
