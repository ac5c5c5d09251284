"""A torch model that follows a graph, layer by layer.

Two forms of one int8 model cannot be compared by their answers alone. Float operators differ in their last bits, now
and then that tips a rounding, and one tipped rounding tips others after it: from there on the two are as far apart as
rounding made them. So each layer is compared with what it is given by the graph: its output is held against that of
the same layer in the graph, and the graph's goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from edgec.nn.parts import Part
from edgec.state import LayerQuantization

from .store import open_graph
from .trace import MODULE_KEY

if TYPE_CHECKING:
    from edgec_runtime.engine import Engine

SAME: Final = 1e-4
"""Largest difference within a row, as a share of the tensor's largest element, at which the row counts as the same.

Where no rounding tips, 2e-6 is the most that was found on any family and scheme; where one does, 2e-5 to 6e-3 was.
"""

_PRODUCTS: Final = ("MatMulIntegerToFloat", "MatMulNBits")


Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """Of a layer or an output. runs: how many texts were compared.

    share: of a text's rows (the last axis is one), how many are the same, on average over the texts. largest: the
    largest difference in any row, as a share of the tensor's largest element; infinite where something is no number.
    """

    runs: int = 0
    share: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, expected: Floats, got: Floats) -> Agreement:
        """Of one text's tensor (.., channels)."""
        with np.errstate(invalid="ignore"):
            apart = np.abs(expected - got).reshape(-1, expected.shape[-1]).max(axis=1)
            share = apart / (float(np.abs(expected).max()) or 1.0)
        share = np.where(np.isfinite(share), share, np.inf)
        return cls(1, float((share <= SAME).mean()), float(share.max()))

    def __add__(self, other: Agreement) -> Agreement:
        runs = self.runs + other.runs
        share = (self.runs * self.share + other.runs * other.share) / runs
        return Agreement(runs, share, max(self.largest, other.largest))


class Follower:
    """An edgec_runtime Engine: `part` in torch, each layer followed by what `graph` has after it.

    part: computes what the graph should (edgec.nn.fake_quantize). layers: the decision, by module path; the linear
    ones are compared. One that the graph runs twice, or inside another operator, has no output of its own there and
    is compared through what reads it. engine: makes what runs the graph; by default onnxruntime, whose 8-bit products
    are those of this CPU. agreement: by layer and by output, over all runs so far. Raises what `engine` raises.
    """

    def __init__(
        self,
        graph: ir.Model,
        part: Part,
        layers: Mapping[str, LayerQuantization],
        *,
        engine: Callable[[ir.Model], Engine] = open_graph,
    ) -> None:
        tapped = graph.clone()
        self._names = _tap(tapped, [path for path, layer in layers.items() if layer.kind == "linear"])
        self._engine = engine(tapped)
        self._part = part
        self._smoothing = [np.array(s, np.float32) for s in {layer.smoothing for layer in layers.values()} if s]
        self.agreement: dict[str, Agreement] = {}

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The outputs of `part`, which followed the graph."""
        known = self._engine.run(feeds)
        with torch.inference_mode(), self._following(known):
            values = self._part(*(torch.from_numpy(feeds[name]) for name in self._part.input_names))
        outputs = {name: value.numpy() for name, value in zip(self._part.output_names, values, strict=True)}
        for name, value in outputs.items():
            self._note(name, Agreement.of(value, known[name]))
        return outputs

    @contextmanager
    def _following(self, known: Mapping[str, npt.NDArray[Any]]) -> Iterator[None]:
        def hook(path: str, value: Floats) -> Any:
            def follow(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
                restored, agreement = self._compare(output.numpy(), value)
                self._note(path, agreement)
                return torch.from_numpy(restored)

            return follow

        handles = [
            self._part.get_submodule(path).register_forward_hook(hook(path, known[name]))
            for path, name in self._names.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _compare(self, expected: Floats, got: Floats) -> tuple[Floats, Agreement]:
        """What the graph has, as the layer itself would give it, and how well that agrees.

        The division by the smoothing of a layer that reads it may have gone into it (edgec.graph.fold_smoothing).
        """
        best = got, Agreement.of(expected, got)
        if best[1].share < 1:
            for factors in self._smoothing:
                if len(factors) == got.shape[-1]:
                    restored = got * factors
                    best = max(best, (restored, Agreement.of(expected, restored)), key=lambda found: found[1].share)
        return best

    def _note(self, name: str, agreement: Agreement) -> None:
        self.agreement[name] = self.agreement.get(name, Agreement()) + agreement


def _tap(model: ir.Model, layers: Iterable[str]) -> dict[str, str]:
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
