"""Tensor by tensor: how far each module of a quantized graph is from the same module of the float graph."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from edgec_runtime import golden, integrity, load, loading
from edgec_runtime.engine import OnnxRuntimeEngine
from edgec_runtime.manifest import Part, TargetInfo
from edgec_runtime.notices import BundleWarning
from edgec_runtime.text import Row

from edgec.errors import UserError
from edgec.state import Progress, no_progress

from .profile import MODULE_KEY
from .rows import row_feeds

_WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class TensorError:
    """How far a module's output y is from its output x in the float graph, over all elements of all rows.

    snr_db: the signal-to-noise ratio 10 log10(sum x^2 / sum (x - y)^2) in dB; None where it is no finite number,
    that is where the outputs are equal (cosine 1), or x is zero or y is not finite (cosine 0).
    cosine: sum xy / sqrt(sum x^2 sum y^2).
    """

    module: str
    snr_db: float | None
    cosine: float


Adapt = Callable[[TargetInfo, ir.Model], None]
"""Changes an int8 graph, in place, where that takes it to answer here as its target's CPUs do."""


def tensor_errors(
    bundle: str | Path,
    baseline: str | Path,
    *,
    adapt: Adapt = lambda target, model: None,
    progress: Progress = no_progress,
) -> list[TensorError]:
    """Run both bundles on the golden requests of `bundle`, unpadded, and compare module by module.

    A module's output is that of the last node that carries its path; modules come in the order in which the float
    graph computes these outputs. Compared are the modules whose output is a float tensor of the same shape in both
    graphs. One that a kernel of the quantized graph took into another (queries, keys and values into QAttention) has
    none of its own there: its error is in the output of the module that took it. adapt: see Adapt; edgec.emulation has
    one. Raises UserError where `baseline` is quantized or of another model, or no module is left to compare, and
    BundleError for a bundle that the runtime refuses.
    """
    rows = _golden_rows(Path(bundle))
    references, candidates = (_Graph.read_all(Path(folder), adapt) for folder in (baseline, bundle))
    if len(references) != len(candidates):
        raise UserError(f"{bundle} and {baseline} are not made of the same parts", "compare bundles of one model")
    _require_float_of_one_model(Path(bundle), Path(baseline))
    pairs = list(zip(references, candidates, strict=True))
    expect = _TappedModel([one.engine(other.outputs) for one, other in pairs])
    got = _TappedModel([other.engine(one.outputs) for one, other in pairs])
    sums = {module: _Sums() for part in expect.parts for module in part.modules if module in got.modules}
    done = progress("compare tensors", len(rows))
    for number, row in enumerate(rows, 1):
        # All tensors of one row are in memory at a time, never those of two.
        x, y = expect.run(row), got.run(row)
        for module in [module for module in sums if x[module].shape != y[module].shape]:
            del sums[module]
        for module, total in sums.items():
            total.add(x[module], y[module])
        done(number)
    if not sums:
        raise UserError(
            f"{bundle} and {baseline} have no module in common",
            "compare bundles of one model, such as OUT/bundles/TARGET and OUT/baseline of one build",
        )
    return [total.error(module) for module, total in sums.items()]


def _require_float_of_one_model(bundle: Path, baseline: Path) -> None:
    ours, theirs = integrity.read_manifest(bundle), integrity.read_manifest(baseline)
    if any(part.precision != "fp32" for part in theirs.parts):
        raise UserError(
            f"{baseline} is quantized, and the error is that against float", "give OUT/baseline of the same build"
        )
    if ours.source.sha256 != theirs.source.sha256:
        raise UserError(
            f"{bundle} was made of {ours.source.model}, and {baseline} of {theirs.source.model} with other weights",
            "compare bundles of one model, such as OUT/bundles/TARGET and OUT/baseline of one build",
        )


def worst(errors: Sequence[TensorError], count: int = 1) -> list[TensorError]:
    """The `count` modules that are furthest from float, the furthest first."""

    def nearness(error: TensorError) -> float:
        if error.snr_db is not None:
            return error.snr_db
        return math.inf if error.cosine == 1 else -math.inf

    return sorted(errors, key=nearness)[:count]


def _golden_rows(folder: Path) -> list[Row]:
    with warnings.catch_warnings():
        # The bundle of another machine class is compared here all the same.
        warnings.simplefilter("ignore", BundleWarning)
        with load(folder, threads=1) as model:
            requests = golden.read(folder / model.manifest.golden.file).requests
            return [row for request in requests for row in model.encode(request).rows]


@dataclass(frozen=True)
class _Graph:
    """A bundle's graph. outputs: by module, the first output of its last node."""

    path: Path
    part: Part
    model: ir.Model
    outputs: dict[str, ir.Value]

    @classmethod
    def read_all(cls, folder: Path, adapt: Adapt) -> list[_Graph]:
        """Of every part of a bundle."""
        manifest = integrity.read_manifest(folder)
        integrity.verify_files(folder, manifest)
        graphs = []
        for part in manifest.parts:
            path = loading.check_graph(folder, manifest, part)
            model = ir.load(path)
            if part.precision == "int8":
                adapt(manifest.target, model)
            graphs.append(cls.of(part, path, model))
        return graphs

    @classmethod
    def of(cls, part: Part, path: Path, model: ir.Model) -> _Graph:
        outputs: dict[str, ir.Value] = {}
        for node in model.graph:
            if module := node.metadata_props.get(MODULE_KEY):
                outputs.pop(module, None)  # in the order of the last nodes
                outputs[module] = node.outputs[0]
        return cls(path, part, model, outputs)

    def engine(self, others: dict[str, ir.Value]) -> _Tapped:
        """The graph with an output more for each module that is among `others`."""
        for module, value in self.outputs.items():
            if module in others and not value.is_graph_output():
                self.model.graph.outputs.append(value)
        options = onnxruntime.SessionOptions()
        # The graph is given as bytes, its weights stay where they are.
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(self.path.parent))
        graph = ir.to_proto(self.model).SerializeToString()
        engine = OnnxRuntimeEngine(graph, name=self.part.name, options=options)
        floats = {output.name for output in engine.session.get_outputs() if output.type == "tensor(float)"}
        names = {module: value.name for module, value in self.outputs.items() if value.name in floats}
        return _Tapped(engine, self.part, names)


@dataclass(frozen=True)
class _Tapped:
    """An engine, and the name of each module's output in it."""

    session: OnnxRuntimeEngine
    part: Part
    modules: dict[str, str]

    def run(self, row: Row, states: npt.NDArray[Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """(outputs by module, outputs of the graph). states: (1, tokens, width), of a part that reads those."""
        feeds = row_feeds(self.part, row.ids, row.type_ids)
        values = self.session.run(feeds if states is None else {**feeds, "states": states})
        return {module: values[name] for module, name in self.modules.items()}, values


@dataclass(frozen=True)
class _TappedModel:
    """All graphs of a model: one, or the two components of a decoupled one."""

    parts: list[_Tapped]

    @property
    def modules(self) -> set[str]:
        return {module for part in self.parts for module in part.modules}

    def run(self, row: Row) -> dict[str, npt.NDArray[Any]]:
        """Each module's output on a row. Below the seam, that on the first text and that on the second, joined."""
        if len(self.parts) == 1:
            return self.parts[0].run(row)[0]
        below, cross = self.parts
        sides = [replace(row, ids=row.ids[row.type_ids == n], type_ids=row.type_ids[row.type_ids == n]) for n in (0, 1)]
        runs = [below.run(side) for side in sides if len(side.ids)]
        states = np.concatenate([values["states"] for _, values in runs], axis=1)
        found = {
            module: np.concatenate([values[module].reshape(-1, values[module].shape[-1]) for values, _ in runs])
            for module in below.modules
        }
        return {**found, **cross.run(row, states)[0]}


@dataclass
class _Sums:
    """Sums over all elements so far, in double precision: x^2, y^2, xy and (x - y)^2."""

    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0
    noise: float = 0.0

    def add(self, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
        a, b = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
        self.xx += float(a @ a)
        self.yy += float(b @ b)
        self.xy += float(a @ b)
        self.noise += float((a - b) @ (a - b))

    def error(self, module: str) -> TensorError:
        if self.noise == 0:
            return TensorError(module, None, 1.0)
        if not math.isfinite(self.noise) or self.xx == 0:
            return TensorError(module, None, 0.0)
        cosine = self.xy / math.sqrt(self.xx * self.yy) if self.yy else 0.0
        return TensorError(module, 10 * math.log10(self.xx / self.noise), cosine)
