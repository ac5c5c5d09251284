"""The seam between a bundle's parts and what executes them: onnxruntime today, other engines beside it
later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime as ort

from .errors import EngineFailed, ManifestInvalid, OperatorRefused
from .manifest import Part

if TYPE_CHECKING:
    from numpy.typing import NDArray  # a millisecond of every cold start

    Array = NDArray[Any]


class Engine(Protocol):
    """Executes one part. `run` may be called from many threads at once."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name. Raises EngineFailed."""
        ...


class OnnxRuntimeEngine:
    """One onnxruntime session on the CPU.

    model: the path of the ONNX file, or its bytes. The runtime gives the path: from bytes, onnxruntime holds
    the file twice at the peak (111 MB instead of 88 MB for a 23 MB model). threads: how many one `run` may
    use. name: the part, for errors. options: to start from, such as with the profiler on. optimize: let
    onnxruntime's optimizer change the graph. Raises OperatorRefused or EngineFailed.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int = 1,
        name: str = "model",
        options: ort.SessionOptions | None = None,
        optimize: bool = False,
    ) -> None:
        options = options or ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A bundle's graph is in its final form: what was verified is what runs, whatever the optimizer of the next
        # onnxruntime would make of it (one that fuses Add and LayerNormalization costs 14 % in float), and the session
        # opens sooner.
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # failures come back as exceptions; stderr is the caller's
        # Never guess from the file's name or first bytes: what was scanned as ONNX is read as ONNX.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        self.name = name
        try:
            self.session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise _load_failure(name, error) from error
        self._outputs = [output.name for output in self.session.get_outputs()]

    @classmethod
    def of(cls, part: Part, graph: Path, threads: int) -> OnnxRuntimeEngine:
        """That of a manifest's part. graph: its file, checked. Raises ManifestInvalid too, as `require_fits`."""
        engine = cls(graph, threads=threads, name=part.name, optimize=part.optimize_at_load)
        engine.require_fits(part)
        return engine

    def require_fits(self, part: Part) -> None:
        """Raises ManifestInvalid where the graph's inputs and outputs are not those of the manifest."""
        sides = (
            ("inputs", self.session.get_inputs(), part.inputs),
            ("outputs", self.session.get_outputs(), part.outputs),
        )
        for side, actual, listed in sides:
            has = {(a.name, _ONNX_TYPES.get(a.type, a.type), len(a.shape)) for a in actual}
            says = {(t.name, t.dtype, len(t.shape)) for t in listed}
            if has != says:
                raise ManifestInvalid(
                    f"part {self.name!r}: the graph's {side} are {_listed(has)}, the manifest says {_listed(says)}",
                    "export the bundle again",
                )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            values = self.session.run(self._outputs, dict(feeds))
        except Exception as error:  # as above
            shapes = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in feeds.items())
            raise EngineFailed(f"onnxruntime failed in part {self.name!r} on {shapes}: {_short(error)}") from error
        return dict(zip(self._outputs, (np.asarray(value) for value in values), strict=True))


_ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}
_UNKNOWN_OPERATOR = (
    "is not a registered function/op",
    "No Op registered for",
    "Could not find an implementation for",
    "No opset import for domain",
    "No schema registered",
)


def _load_failure(name: str, error: Exception) -> EngineFailed | OperatorRefused:
    message = _short(error)
    if any(text in str(error) for text in _UNKNOWN_OPERATOR):
        return OperatorRefused(
            f"part {name!r} asks for what onnxruntime {ort.__version__} does not bring: {message}",
            "update onnxruntime, or export the bundle again",
        )
    return EngineFailed(
        f"onnxruntime {ort.__version__} cannot load part {name!r}: {message}",
        "update onnxruntime, or export again",
    )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _listed(tensors: set[tuple[str, str, int]]) -> str:
    return ", ".join(f"{name} ({dtype}, {rank} axes)" for name, dtype, rank in sorted(tensors)) or "none"
