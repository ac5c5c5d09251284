"""Windows are cut from integers where that changes nothing, and from floats elsewhere."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import of_type, parse, values_inside

from edgec.graph.windows import quantize_before_windows

WIDTH = 3
CONSTANTS = {
    "pads": np.array([0, 1, 0, 0, 1, 0], np.int64),
    "tokens": np.array([1], np.int64),
    "zero": np.array([0], np.int64),
    "one": np.array([1], np.int64),
    "two": np.array([2], np.int64),
    "last": np.array([-1], np.int64),
    "last_but_one": np.array([-2], np.int64),
    "end": np.array([1000], np.int64),
    "scale": np.array(0.03, np.float32),
    "level": np.array(117, np.uint8),
    "scales": np.full(3 * WIDTH, 0.03, np.float32),
    "levels": np.full(3 * WIDTH, 117, np.uint8),
}
CUT = """padded = Pad(x, pads)
 left = Slice(padded, zero, last_but_one, tokens)
 middle = Slice(padded, one, last, tokens)
 right = Slice({right}, two, end, tokens)
 joined = Concat<axis = -1>(left, middle, right)
 rounded = QuantizeLinear{axis}(joined, {scale}, {level})
 out = Identity(rounded)"""


def _graph(more: str = "", right: str = "padded", scale: str = "scale", level: str = "level") -> ir.Model:
    axis = "<axis = 2>" if scale == "scales" else ""
    body = CUT.format(right=right, scale=scale, level=level, axis=axis) + more
    outputs = "uint8[b, t, n] out" + (", float[b, t, n] again" if more else "")
    text = f'<ir_version: 10, opset_import: ["" : 23]>\ng (float[b, t, {WIDTH}] x) => ({outputs}) {{\n {body}\n}}'
    used = {name: value for name, value in CONSTANTS.items() if f" {name}," in body or f" {name})" in body}
    return parse(text, used, {"rounded": "adapter.hidden"})


def _out(model: ir.Model, tokens: int) -> np.ndarray:
    x = np.random.default_rng(tokens).standard_normal((2, tokens, WIDTH)).astype(np.float32) * 3
    return values_inside(model, ["out"], {"x": x})["out"]


def test_windows_of_integers_are_the_same() -> None:
    model = _graph()
    (rounded,) = of_type(model, "QuantizeLinear")
    rounded.outputs[0].type = None  # as lowering leaves it
    before = [_out(model, tokens) for tokens in (1, 2, 7)]
    quantize_before_windows(model)
    (rounded,) = of_type(model, "QuantizeLinear")
    assert rounded.inputs[0] is not None and rounded.inputs[0].name == "padded"
    for one in (*of_type(model, "Slice"), *of_type(model, "Concat")):
        assert one.outputs[0].dtype == ir.DataType.UINT8
    for number, node in enumerate(model.graph):  # onnxruntime wants a name for every value
        for value in node.outputs:
            value.name = value.name or f"value_{number}"
    found = [_out(model, tokens) for tokens in (1, 2, 7)]
    assert all(map(np.array_equal, before, found))


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param({"more": "\n again = Relu(joined)"}, id="the windows are read in float, too"),
        pytest.param({"right": "x"}, id="they are of two tensors"),
        pytest.param({"scale": "scales", "level": "levels"}, id="a scale a channel"),
    ],
)
def test_other_graphs_stay_as_they_are(kept: dict[str, str]) -> None:
    model = _graph(**kept)
    before = [(node.op_type, [value.name for value in node.inputs if value is not None]) for node in model.graph]
    quantize_before_windows(model)
    after = [(node.op_type, [value.name for value in node.inputs if value is not None]) for node in model.graph]
    assert before == after
