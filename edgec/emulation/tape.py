"""Nodes and constants on their way into a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


class Tape:
    """`tape.Add(a, b)` makes a node and returns its output; attributes are keywords.

    prefix: of the names of constants and values.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.recorded = ir.tape.Tape()
        self._constants: dict[bytes, ir.Value] = {}

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        def make(*inputs: ir.Value | None, _domain: str = "", _outputs: int = 1, **attributes: Any) -> Any:
            # Named here: the names that a body gets by itself would be those of the graph around it.
            first = sum(len(node.outputs) for node in self.recorded.nodes)
            outputs = [ir.Value(name=f"{self.prefix}:{first + index}") for index in range(_outputs)]
            self.recorded.op_multi_out(op_type, inputs, attributes, outputs=outputs, domain=_domain)
            return outputs[0] if _outputs == 1 else outputs

        return make

    def constant(self, value: npt.ArrayLike, dtype: Any = np.int64) -> ir.Value:
        """An initializer, the same one for the same value."""
        array = np.asarray(value, dtype)
        key = f"{array.dtype}{array.shape}".encode() + array.tobytes()
        if key not in self._constants:
            name = f"{self.prefix}.{len(self._constants)}"
            self._constants[key] = self.recorded.initializer(ir.tensor(array), name)
        return self._constants[key]

    def insert(self, graph: ir.Graph, before: ir.Node) -> None:
        """Put all into a graph."""
        for value in self.recorded.initializers:
            graph.register_initializer(value)
        graph.insert_before(before, self.recorded.nodes)

    def subgraph(self, inputs: list[ir.Value], outputs: list[ir.Value]) -> ir.Graph:
        """A graph of its own, such as the body of a Scan."""
        recorded = self.recorded
        return ir.Graph(inputs, outputs, nodes=recorded.nodes, initializers=recorded.initializers, name=self.prefix)
