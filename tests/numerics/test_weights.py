"""int8 weights and u8 activations, against plain loops and onnxruntime's own operators."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest

from edgec.numerics.weights import activation_scale, quantize_per_channel, quantize_rows


def _loop_reference(weight: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each column, the clipping range among twenty whose quantized values are nearest in the squared sense."""
    quantized = np.zeros(weight.shape, np.int8)
    scales = np.zeros(weight.shape[1], np.float32)
    for column in range(weight.shape[1]):
        values = [float(v) for v in weight[:, column]]
        most = max(abs(v) for v in values) or 1.0
        best = math.inf
        for step in range(20):
            scale = most * (1.0 - 0.4 * step / 19) / largest
            rounded = [max(-largest, min(largest, round(v / scale))) for v in values]
            error = sum((q * scale - v) ** 2 for q, v in zip(rounded, values, strict=True))
            if error < best:
                best, scales[column], quantized[:, column] = error, scale, rounded
    return quantized, scales


def _weights(largest: int) -> np.ndarray:
    """(2000, 9): four columns that a clipped range fits exactly, but for one outlier, and five of a normal law."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2000, 9)).astype(np.float32) * rng.lognormal(0, 1, 9).astype(np.float32)
    for column, step in enumerate((0, 1, 2, 4)):
        grid = rng.integers(-largest, largest + 1, 2000) * (1 - 0.4 * step / 19) / largest
        weight[:, column] = np.where(np.arange(2000) == 5, 1.0, grid)
    return weight


@pytest.mark.parametrize(("reduce_range", "largest"), [(False, 127), (True, 64)])
def test_weights_are_those_of_a_plain_loop(reduce_range: bool, largest: int) -> None:
    weight = _weights(largest)
    got, scale = quantize_per_channel(weight, reduce_range=reduce_range)
    expected, expected_scale = _loop_reference(weight, largest)
    assert got.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (9,)
    np.testing.assert_allclose(scale, expected_scale, rtol=1e-6)
    # float32 and Python's double may round a value that lies half-way to different sides.
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert (got != expected).mean() < 0.01
    clipped = scale * largest / np.abs(weight).max(axis=0)
    np.testing.assert_allclose(clipped[:4], [1 - 0.4 * step / 19 for step in (0, 1, 2, 4)], rtol=1e-5)


def test_clipping_is_never_worse_than_none() -> None:
    weight = _weights(127)
    got, scale = quantize_per_channel(weight)
    plain = np.abs(weight).max(axis=0) / 127
    error = np.square(got * scale - weight).sum(axis=0)
    error_without = np.square(np.rint(weight / plain) * plain - weight).sum(axis=0)
    assert (error <= error_without * (1 + 1e-5)).all()
    assert (error < error_without * 0.9).any()


def test_a_reduced_range_keeps_pairs_of_products_within_16_bits() -> None:
    weight = np.random.default_rng(2).standard_normal((512, 64)).astype(np.float32)
    got, _ = quantize_per_channel(weight, reduce_range=True)
    assert got.min() >= -64 and got.max() <= 64
    assert max(abs(int(got.min())), int(got.max())) == 64  # and uses all of it
    assert 255 * 2 * int(np.abs(got.astype(int)).max()) <= np.iinfo(np.int16).max


@pytest.mark.parametrize("reduce_range", [False, True])
def test_channels_of_zeros(reduce_range: bool) -> None:
    weight = np.zeros((8, 3), np.float32)
    weight[:, 1] = np.arange(-4, 4)
    got, scale = quantize_per_channel(weight, reduce_range=reduce_range)
    assert np.isfinite(scale).all() and (scale > 0).all()
    assert not got[:, [0, 2]].any()
    np.testing.assert_allclose(got[:, 1] * scale[1], weight[:, 1], atol=scale[1] / 2 + 1e-6)


def test_rows_of_a_table_are_not_clipped() -> None:
    table = np.random.default_rng(3).standard_t(2, (50, 16)).astype(np.float32)
    table[7] = 0
    got, scale = quantize_rows(table)
    assert got.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (50, 1)
    for row in range(50):
        most = max(abs(float(v)) for v in table[row])
        assert scale[row, 0] == pytest.approx((most or 1.0) / 127, rel=1e-6)
        assert np.abs(got[row]).max() == (127 if most else 0)
    assert np.abs(got * scale - table).max(axis=1) == pytest.approx(0, abs=float(scale.max()) / 2 + 1e-6)
    assert (np.abs(got * scale - table) <= scale / 2 + 1e-6).all()


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


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_zero_has_an_exact_value(low: float, high: float) -> None:
    scale, zero = activation_scale(low, high)
    feed = {"x": np.zeros(1, np.float32), "s": np.array(scale), "z": np.array(zero)}
    assert _run("QuantizeLinear", feed, ["q"])[0].tolist() == [int(zero)]


def test_a_range_of_nothing_but_zeros() -> None:
    scale, zero = activation_scale(0.0, 0.0)
    assert (float(scale), int(zero)) == (1.0, 0)
