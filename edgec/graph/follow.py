"""A torch model that follows a graph, layer by layer.

Two forms of one int8 model cannot be compared by their answers alone. Float operators differ in their last bits, now
and then that tips a rounding, and one tipped rounding tips others after it: from there on the two are as far apart as
rounding made them. So each layer is compared with what it is given by the graph: its output is held against that of
the same layer in the graph, and the graph's goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from edgec.nn.parts import Part

from .store import open_graph
from .trace import MODULE_KEY

SAME: Final = 1e-4
"""Largest difference within a row, as a share of the output's largest element, that is one of last bits.

Where no rounding tips, 2e-6 is the most that was found on any family and scheme; where one does, from 3e-4 on.
"""

_PRODUCTS: Final = ("MatMulIntegerToFloat", "MatMulNBits")


@dataclass
class Agreement:
    """Of a layer or an output: how many rows (its last axis) were compared, and how many of them are the same.

    largest: the largest difference in any row, as a share of the output's largest element.
    """

    rows: int = 0
    same: int = 0
    largest: float = 0.0

    def add(self, expected: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> None:
        with np.errstate(invalid="ignore"):
            apart = np.abs(expected - got).reshape(-1, expected.shape[-1]).max(axis=1)
            share = apart / (float(np.abs(expected).max()) or 1.0)
        share = np.where(np.isfinite(share), share, np.inf)
        self.rows += len(share)
        self.same += int((share <= SAME).sum())
        self.largest = max(self.largest, float(share.max()))


class Follower:
    """An edgec_runtime Engine: `part` in torch, each layer followed by what `graph` has after it.

    part: computes what the graph should (edgec.nn.fake_quantize). layers: module paths of the layers to compare; one
    that the graph runs twice, or inside another operator, has no output of its own there and is compared through those
    that read it. agreement: by layer and by output, over all runs so far. Raises what open_graph raises.
    """

    def __init__(self, graph: ir.Model, part: Part, layers: Collection[str]) -> None:
        tapped = graph.clone()
        self._values = _tap(tapped, layers)
        self._engine = open_graph(tapped, "followed")
        self._part = part
        self.agreement: dict[str, Agreement] = {}

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The outputs of `part`, which followed the graph."""
        known = self._engine.run(feeds)
        with torch.inference_mode(), self._following(known):
            values = self._part(*(torch.from_numpy(feeds[name]) for name in self._part.input_names))
        outputs = {name: value.numpy() for name, value in zip(self._part.output_names, values, strict=True)}
        for name, value in outputs.items():
            self._note(name, value, known[name])
        return outputs

    @contextmanager
    def _following(self, known: Mapping[str, npt.NDArray[Any]]) -> Iterator[None]:
        def hook(path: str, value: npt.NDArray[np.float32]) -> Any:
            def follow(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
                self._note(path, output.numpy(), value)
                return torch.from_numpy(value)

            return follow

        handles = [
            self._part.get_submodule(path).register_forward_hook(hook(path, known[name]))
            for path, name in self._values.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, name: str, expected: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> None:
        self.agreement.setdefault(name, Agreement()).add(expected, got)


def _tap(model: ir.Model, layers: Collection[str]) -> dict[str, str]:
    """Make the outputs of `layers` outputs of the graph. Returns the names of those it has, by layer."""
    products = dict.fromkeys(layers, 0)
    last: dict[str, ir.Value] = {}
    for node in model.graph:
        path = node.metadata_props.get(MODULE_KEY, "")
        if path in products:
            products[path] += node.op_type in _PRODUCTS
            last[path] = node.outputs[0]
    values = {path: last[path] for path, count in products.items() if count == 1}
    for value in values.values():
        if not value.is_graph_output():
            model.graph.outputs.append(value)
    return {path: str(value.name) for path, value in values.items()}
