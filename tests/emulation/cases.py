"""8-bit products as little ONNX graphs, and what onnxruntime answers to them, here or on an emulated CPU."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8}

# Runs under a Python that has nothing but onnxruntime and numpy.
RUNNER = """
import sys
import edgec_runtime
import numpy as np
import onnxruntime as ort
cases, answers = dict(np.load(sys.argv[1])), {}
for name in [key[:-6] for key in cases if key.endswith("|model")]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(cases[name + "|model"].tobytes(), options, providers=["CPUExecutionProvider"])
    feeds = {key.rpartition("|")[2]: cases[key] for key in cases if key.startswith(name + "|feed|")}
    answers[name] = session.run(None, feeds)[0]
np.savez(sys.argv[2], **answers)
"""


@dataclass(frozen=True)
class Case:
    """A graph with the output "y". product: the arguments of edgec.emulation.products.product, where it is one."""

    name: str
    model: bytes
    feeds: Mapping[str, Array]
    product: Mapping[str, Any] = field(default_factory=dict)


def graph(
    op_type: str,
    inputs: Mapping[str, Array | None],
    fed: Sequence[str],
    output: str = "float32",
    rank: int = 2,
    **attributes: Any,
) -> bytes:
    """One node; of its inputs those in `fed` are the graph's, None is a missing one, all others are constants."""
    domain = "" if op_type == "MatMulInteger" else "com.microsoft"
    names = [name if value is not None else "" for name, value in inputs.items()]
    node = helper.make_node(op_type, names, ["y"], name=f"part/{op_type}", domain=domain, **attributes)
    described = [
        helper.make_tensor_value_info(name, TYPES[value.dtype.name], [None] * value.ndim)
        for name, value in inputs.items()
        if name in fed and value is not None
    ]
    constants = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in inputs.items()
        if name not in fed and value is not None
    ]
    y = helper.make_tensor_value_info("y", TYPES[output], [None] * rank)
    made = helper.make_graph([node], "g", described, [y], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()


def some(rng: np.random.Generator, dtype: type[np.generic], shape: tuple[int, ...]) -> Array:
    """Bytes of all sizes, of the extremes alone, or nearly all the greatest: what saturates, or the lowest."""
    info = np.iinfo(dtype)  # type: ignore[type-var]
    extremes = np.array([info.min, info.max, info.min + 1, info.max - 1])
    mostly = np.where(rng.random(shape) < 0.9, info.max, info.min)
    any_size = rng.integers(info.min, info.max + 1, shape)
    lowest = np.where(rng.random(shape) < 0.6, info.min, info.max)
    choices = (any_size, any_size, extremes[rng.integers(0, 4, shape)], mostly, lowest)
    return choices[rng.integers(len(choices))].astype(dtype)


def products() -> list[Case]:
    """MatMulInteger: single rows and more, odd and long inputs, all remainders of channels, zero points, b computed."""
    rng = np.random.default_rng(3)
    shapes = [(1, 1, 1), (1, 2, 3), (1, 7, 16), (1, 33, 17), (1, 385, 32), (1, 1540, 5), (2, 31, 48), (3, 16, 15)]
    shapes += [(4, 64, 33), (5, 127, 1), (8, 1025, 16), (33, 384, 130)]
    found = []
    for (rows, inputs, channels), computed in itertools.product(shapes, (False, True)):
        for a_zero, b_zero in ((0, 0), (128, 0), (77, 3), (128, "columns")):
            a, b = some(rng, np.uint8, (rows, inputs)), some(rng, np.int8, (inputs, channels))
            found.append(_product(rng, a, b, a_zero, b_zero, computed))
    for (rows, inputs, channels), computed in itertools.product(((1, 64, 33), (5, 385, 17)), (False, True)):
        for a_type, b_type in ((np.int8, np.int8), (np.uint8, np.uint8)):
            a, b = some(rng, a_type, (rows, inputs)), some(rng, b_type, (inputs, channels))
            found.append(_product(rng, a, b, 5, 0, computed))
    return [Case(f"product{i}", one.model, one.feeds, one.product) for i, one in enumerate(found)]


def _product(rng: np.random.Generator, a: Array, b: Array, a_zero: int, b_zero: int | str, computed: bool) -> Case:
    zeros = rng.integers(-9, 9, b.shape[1]) if b_zero == "columns" else np.array(b_zero)
    inputs = {"a": a, "b": b, "a_zero": np.array(a_zero, a.dtype), "b_zero": zeros.astype(b.dtype)}
    feeds = {"a": a, "b": b} if computed else {"a": a}
    arguments = {"a": a, "b": b, "a_zero": a_zero, "b_zero": zeros}
    return Case("", graph("MatMulInteger", inputs, tuple(feeds), "int32"), feeds, arguments)


def with_float() -> list[Case]:
    """The operators that go on in float: their weights have all eight bits."""
    rng = np.random.default_rng(4)
    hidden, heads = 24, 3
    cases = []
    for bias in (rng.normal(size=9).astype(np.float32), None):
        tail = {"a_zero": np.uint8(120), "b_zero": None, "bias": bias}
        scales = {"a_scale": np.float32(0.013), "b_scale": rng.uniform(0.001, 0.1, 9).astype(np.float32)}
        inputs = {"a": some(rng, np.uint8, (2, 5, 40)), "b": some(rng, np.int8, (40, 9)), **scales, **tail}
        cases.append(("MatMulIntegerToFloat", inputs, ("a",), {}))
    # As in attention: four axes, both factors computed.
    scales = {"a_scale": np.float32(0.1), "b_scale": np.float32(0.2), "a_zero": np.uint8(0), "b_zero": None}
    heads_of = {"a": some(rng, np.uint8, (2, 3, 4, 40)), "b": some(rng, np.int8, (2, 3, 40, 7))}
    cases.append(("MatMulIntegerToFloat", {**heads_of, **scales}, ("a", "b"), {}))
    x = (rng.normal(size=(4, 50)) * 3).astype(np.float32)
    dynamic = {"x": x, "b": some(rng, np.int8, (50, 6)), "b_scale": np.float32(0.02)}
    cases.append(("DynamicQuantizeMatMul", dynamic, ("x",), {}))
    attention = {
        "x": some(rng, np.uint8, (2, 5, hidden)),
        "weight": rng.choice(np.array([-128, 127, 60, -90], np.int8), (hidden, 3 * hidden)),
        "bias": rng.normal(size=3 * hidden).astype(np.float32),
        "x_scale": np.float32(0.01),
        "scale": rng.uniform(0.001, 0.01, 3 * hidden).astype(np.float32),
        "mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32),
        "x_zero": np.uint8(90),
        "zero": np.zeros(3 * hidden, np.int8),
    }
    cases.append(("QAttention", attention, ("x", "mask"), {"num_heads": heads}))
    found = []
    for i, (op_type, inputs, fed, attributes) in enumerate(cases):
        rank = 3 if op_type == "QAttention" else np.ndim(inputs[fed[0]])
        model = graph(op_type, inputs, fed, rank=rank, **attributes)
        found.append(Case(f"{op_type}{i}", model, {name: inputs[name] for name in fed}))
    return found


def answers(
    python: Sequence[str], environment: Mapping[str, str], cases: Sequence[Case], folder: Path
) -> dict[str, Array]:
    """By the name of a case, what onnxruntime answers in a process of `python`."""
    stored: dict[str, Array] = {}
    for case in cases:
        stored[f"{case.name}|model"] = np.frombuffer(case.model, np.uint8)
        stored |= {f"{case.name}|feed|{name}": value for name, value in case.feeds.items()}
    np.savez(folder / "cases.npz", **stored)
    (folder / "runner.py").write_text(RUNNER)
    command = [*python, str(folder / "runner.py"), str(folder / "cases.npz"), str(folder / "answers.npz")]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "answers.npz"))
