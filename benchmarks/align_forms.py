"""The alignment adapter's window as a concatenation and as a convolution, float and int8, one thread, interleaved.

The two are one function: the convolution has the weights of the first matrix. int8 is what `edgec export` makes of the
concatenation, and, of both forms, what onnxruntime's quantize_static makes, whose quantized nodes onnxruntime fuses
when it loads the graph.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from edgec_runtime import machine, statistics  # before onnxruntime: it switches the telemetry off
from edgec_runtime.rounds import interleave

# isort: split
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from edgec.graph.lower_int8 import lower_int8
from edgec.graph.trace import MODULE_KEY, module_path
from edgec.nn.alignment import AlignmentAdapter
from edgec.state import LayerQuantization, Quantization
from edgec.target import load_target

WIDTH: Final = 384
SHAPES: Final = ((1, 16), (1, 128), (8, 128))
OPSET: Final = 23
FIRST: Final = "concatenation, fp32"


class Convolution(nn.Module):
    """`adapter` with its window as a convolution over the tokens."""

    def __init__(self, adapter: AlignmentAdapter) -> None:
        super().__init__()
        window, inputs = adapter.window, adapter.inputs
        self.convolution = nn.Conv1d(inputs, adapter.units, window, padding=window // 2)
        self.output = adapter.output
        with torch.no_grad():
            weight = adapter.hidden.weight.view(adapter.units, window, inputs)
            self.convolution.weight.copy_(weight.transpose(1, 2))
            self.convolution.bias.copy_(adapter.hidden.bias)

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        masked = states * attention_mask.unsqueeze(-1).to(states.dtype)
        hidden = self.convolution(masked.transpose(1, 2)).transpose(1, 2)
        return self.output(nn.functional.gelu(hidden))


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.rest: Iterator[dict[str, np.ndarray]] = iter([_feed((4, 64), seed) for seed in range(8)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rest, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="x86_64-vnni", help="one that this machine is of")
    parser.add_argument("--windows", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, help="write the result here; default: stdout")
    options = parser.parse_args()

    result: dict[str, Any] = {
        "suite": "align-forms",
        "command": shlex.join(["python", "-m", "benchmarks.align_forms", *sys.argv[1:]]),
        "machine": machine.facts(),
        "threads": 1,
        "rounds": options.rounds,
        "width": WIDTH,
        "windows": {},
    }
    for window in options.windows:
        with tempfile.TemporaryDirectory(prefix="edgec-align-") as folder:
            sessions = forms(window, options.target, Path(folder))
            result["windows"][str(window)] = {
                "apart": apart(sessions),
                "shapes": [measure(sessions, shape, options.rounds) for shape in SHAPES],
            }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")
        print(summary(result))


def forms(window: int, target: str, folder: Path) -> dict[str, ort.InferenceSession]:
    torch.manual_seed(0)
    adapter = AlignmentAdapter(WIDTH, WIDTH, window=window).eval()
    concatenated, convolved = _exported(adapter), _exported(Convolution(adapter).eval())
    ranges = _ranges(adapter)
    layers = {name: LayerQuantization("linear", input_range=found) for name, found in ranges.items()}
    lowered = lower_int8(concatenated, Quantization("static", layers), load_target(target))
    return {
        FIRST: _session(concatenated),
        "convolution, fp32": _session(convolved),
        "concatenation, int8 as exported": _session(lowered),
        "concatenation, int8 by quantize_static": _session(_by_onnxruntime(concatenated, folder / "concatenated")),
        "convolution, int8 by quantize_static": _session(_by_onnxruntime(convolved, folder / "convolved")),
    }


def apart(sessions: dict[str, ort.InferenceSession]) -> dict[str, float]:
    """The largest difference to the first form, as a share of the largest output."""
    feed = _feed((2, 24), 100)
    outputs = {name: one.run(None, feed)[0] for name, one in sessions.items()}
    first = outputs[FIRST]
    return {name: float(np.abs(found - first).max() / np.abs(first).max()) for name, found in outputs.items()}


def measure(sessions: dict[str, ort.InferenceSession], shape: tuple[int, int], rounds: int) -> dict[str, Any]:
    feed = _feed(shape, 0)
    work = [partial(one.run, None, feed) for one in sessions.values()]
    series = dict(zip(sessions, interleave(work, rounds, lambda line: None), strict=True))
    ratios = {name: statistics.ratio(series[FIRST].rounds, found.rounds) for name, found in series.items()}
    return {
        "batch": shape[0],
        "tokens": shape[1],
        "p50_ms": {name: round(statistics.summarise(found.calls).p50, 4) for name, found in series.items()},
        "speedup": {name: {"median": r.median, "p10": r.p10, "p90": r.p90} for name, r in ratios.items()},
        "unstable": [name for name, found in ratios.items() if statistics.unstable_ratio(found)],
    }


def summary(result: dict[str, Any]) -> str:
    """A table in Markdown: how many times as fast as the concatenation in float."""
    windows = result["windows"]
    columns = [f"{one['batch']} x {one['tokens']}" for one in next(iter(windows.values()))["shapes"]]
    lines = [f"| window | form | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for window, found in windows.items():
        for name in found["apart"]:
            speeds = " | ".join(f"{one['speedup'][name]['median']:.2f}x" for one in found["shapes"])
            lines.append(f"| {window} | {name} | {speeds} |")
    return "\n".join(lines)


def _exported(module: nn.Module) -> ir.Model:
    """With dynamic batch and tokens; nodes carry the path of their module, as those of edgec.graph.trace do."""
    example = torch.randn(2, 16, WIDTH), torch.ones(2, 16, dtype=torch.int32)
    axes = {0: torch.export.Dim("batch", max=1 << 16), 1: torch.export.Dim("tokens", max=512)}
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "onnxscript.optimizer")]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["states", "attention_mask"],
            output_names=["aligned"],
            dynamic_shapes=(axes, dict(axes)),
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        path = module_path(node.metadata_props.get("pkg.torch.onnx.name_scopes"))
        node.metadata_props.clear()
        if path:
            node.metadata_props[MODULE_KEY] = path
    return program.model


def _ranges(adapter: AlignmentAdapter) -> dict[str, tuple[float, float]]:
    """What the two linear layers are given, by their names."""
    seen: dict[str, list[float]] = {}

    def note(name: str) -> Any:
        return lambda module, inputs: seen.setdefault(name, []).extend(map(float, torch.aminmax(inputs[0])))

    for name in ("hidden", "output"):
        adapter.get_submodule(name).register_forward_pre_hook(note(name))
    with torch.inference_mode():
        for seed in range(8):
            feed = _feed((4, 64), seed)
            adapter(torch.from_numpy(feed["states"]), torch.from_numpy(feed["attention_mask"]))
    return {name: (min(values), max(values)) for name, values in seen.items()}


def _by_onnxruntime(model: ir.Model, folder: Path) -> Path:
    folder.mkdir()
    source, made = folder / "float.onnx", folder / "int8.onnx"
    source.write_bytes(_bytes(model))
    quantize_static(
        str(source),
        str(made),
        _Feeds(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Conv"],
    )
    return made


def _session(model: ir.Model | Path) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else _bytes(model)
    return ort.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


def _bytes(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def _feed(shape: tuple[int, int], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.ones(shape, np.int32)
    mask[1:, shape[1] * 3 // 4 :] = 0
    return {"states": rng.standard_normal((*shape, WIDTH), np.float32), "attention_mask": mask}


if __name__ == "__main__":
    main()
