"""A bundle's graph, changed so that its 8-bit products answer as another kind of CPU's do."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
from edgec_runtime.engine import Engine

from edgec.graph.store import open_graph

from .kinds import Kind
from .operators import rewrite


@dataclass(frozen=True)
class Pairs:
    """Of one module's products: how many sums of two were computed, and how many of them did not fit in 16 bits."""

    computed: int = 0
    lost: int = 0

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(self.computed + other.computed, self.lost + other.lost)


class EmulatedEngine:
    """An edgec_runtime Engine whose `run` answers as a CPU of `kind` does.

    pairs: by module path, over all runs so far; only of the modules whose sums may be too large for that CPU. Where
    it is empty, that CPU computes every product exactly.
    """

    def __init__(self, kind: Kind, engine: Engine, told: Mapping[str, str]) -> None:
        """told: outputs of `engine` to the modules that they tell of (edgec.emulation.operators.rewrite)."""
        self.kind = kind
        self.pairs = dict.fromkeys(told.values(), Pairs())
        self._engine, self._told = engine, dict(told)
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """All outputs of the bundle's graph by name. Raises EngineFailed. May be called from many threads at once."""
        outputs = self._engine.run(feeds)
        with self._lock:
            for output, module in self._told.items():
                lost, sums, inputs = (int(figure) for figure in outputs.pop(output))
                self.pairs[module] += Pairs(sums * -(-inputs // 2), lost)
        return outputs


def emulate(graph: Path | ir.Model, kind: Kind) -> EmulatedEngine:
    """The engine of a graph, a file or a model in memory, for a CPU of this kind, whatever CPU this machine has.

    Only 8-bit products are emulated: the last bits of float operators are this machine's. Raises UserError for 8-bit
    operators that are not covered, and what loading a graph raises.
    """
    model = ir.load(graph) if isinstance(graph, Path) else graph.clone()
    told = rewrite(model, kind)
    return EmulatedEngine(kind, open_graph(model, "emulated"), told)
