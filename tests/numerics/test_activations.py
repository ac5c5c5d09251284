"""Scales and zero points of activations, against onnxruntime's own operators."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from edgec.numerics.activations import activation_scale


def _run(operator: str, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
    types = {name: onnx.helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in inputs.items()}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, list(inputs), outputs)],
        "one",
        [onnx.helper.make_tensor_value_info(n, types[n], list(v.shape)) for n, v in inputs.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)  # type: ignore[no-any-return]


RANGES = [(-1.25, 3.1), (0.5, 4.0), (-6.0, -0.25), (-0.17, 2.9), (-1e-3, 1e4), (-2.0, 2.0), (0.0, 1.0)]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_activations_are_quantized_as_onnxruntime_does_it(low: float, high: float) -> None:
    x = np.linspace(low, high, 1001, dtype=np.float32)
    scale, zero = activation_scale(float(x[0]), float(x[-1]))
    assert scale.dtype == np.float32 and zero.dtype == np.uint8
    # The operator that takes its range from the tensor itself chooses the same.
    _, dynamic_scale, dynamic_zero = _run("DynamicQuantizeLinear", {"x": x}, ["q", "s", "z"])
    assert float(scale) == pytest.approx(float(dynamic_scale), rel=1e-6)
    assert abs(int(zero) - int(dynamic_zero)) <= 1
    (q,) = _run("QuantizeLinear", {"x": x, "s": np.array(scale), "z": np.array(zero)}, ["q"])
    restored = (q.astype(np.float32) - zero) * scale
    assert np.abs(restored - x).max() <= scale * 1.001  # half a step, and at the ends the rounding of zero
    assert len(set(q.tolist())) > 30


@pytest.mark.parametrize("bits", range(4, 9))
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_fewer_bits(low: float, high: float, bits: int) -> None:
    scale, zero = activation_scale(low, high, bits)
    levels = 2**bits - 1
    span = max(high, 0.0) - min(low, 0.0)
    assert float(scale) == pytest.approx(span / levels, rel=1e-6)
    assert 0 <= int(zero) <= levels
    # The ends of the range lie within half a step of the lowest and the highest level.
    assert abs((0 - int(zero)) * float(scale) - min(low, 0.0)) <= float(scale) * 0.5001
    assert abs((levels - int(zero)) * float(scale) - max(high, 0.0)) <= float(scale) * 0.5001


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_zero_has_an_exact_value(low: float, high: float) -> None:
    scale, zero = activation_scale(low, high)
    feed: dict[str, np.ndarray] = {"x": np.zeros(1, np.float32), "s": np.array(scale), "z": np.array(zero)}
    assert _run("QuantizeLinear", feed, ["q"])[0].tolist() == [int(zero)]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_range_of_nothing_but_zeros(bits: int) -> None:
    scale, zero = activation_scale(0.0, 0.0, bits)
    assert (float(scale), int(zero)) == (1.0, 0)
