"""Fake-quantized layers, against integer arithmetic in numpy and onnxruntime's own operators."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_models import tiny
from torch import nn

from edgec.errors import PassError
from edgec.models import load_model
from edgec.nn.fake_quantize import fake_quantized, quantized_layer, swapped
from edgec.nn.rounding import steps_of_range, steps_of_rows, steps_of_tensor
from edgec.numerics.weights import quantize_blocks, quantize_linear, quantize_row_blocks, quantize_rows
from edgec.state import LayerQuantization, Quantization

INPUTS, CHANNELS = 40, 24
RANGE = (-2.5, 3.0)


def _layer(seed: int = 0, bias: bool = True) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(INPUTS, CHANNELS, bias=bias).eval()


def _rows(seed: int = 0) -> np.ndarray:
    """(2, 7, INPUTS), a few values outside RANGE."""
    return np.random.default_rng(seed).standard_normal((2, 7, INPUTS)).astype(np.float32) * np.float32(1.5)


def _run(module: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        out: np.ndarray = module(torch.from_numpy(x)).numpy()
    return out


def _weight(layer: nn.Linear) -> np.ndarray:
    matrix: np.ndarray = layer.weight.detach().numpy().T
    return matrix


def _bias(layer: nn.Linear) -> np.ndarray:
    vector: np.ndarray = layer.bias.detach().numpy()
    return vector


def _onnx(operator: str, feeds: dict[str, np.ndarray], outputs: int) -> list[np.ndarray]:
    names = [f"y{i}" for i in range(outputs)]
    types = (onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, list(feeds), names)],
        "one",
        [
            onnx.helper.make_tensor_value_info(k, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in feeds.items()
        ],
        [onnx.helper.make_tensor_value_info(n, types[i], None) for i, n in enumerate(names)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(names, feeds))


def _halves(step: float) -> np.ndarray:
    """Values that lie half-way between two steps, and far beyond them."""
    return np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e6, -1e6, 0.0], np.float32) * np.float32(step)


def test_a_fixed_range_is_onnx_quantize_linear() -> None:
    step, zero = np.float32((RANGE[1] - RANGE[0]) / 255), np.uint8(116)  # 2.5 / (5.5 / 255) = 115.9
    x = np.concatenate([_rows().ravel(), _halves(float(step))])
    (q,) = _onnx("QuantizeLinear", {"x": x, "s": np.array(step), "z": np.array(zero)}, 1)
    steps, scale = steps_of_range(torch.from_numpy(x), *RANGE)
    assert float(scale) == step
    np.testing.assert_array_equal(steps.numpy(), q.astype(np.float32) - float(zero))
    assert q.min() == 0 and q.max() == 255


@pytest.mark.parametrize("bits", [4, 6, 7])
def test_fewer_bits_have_fewer_steps(bits: int) -> None:
    levels = 2**bits - 1
    step = (RANGE[1] - RANGE[0]) / levels
    zero = round(-RANGE[0] / step)
    x = np.linspace(-9, 9, 4001, dtype=np.float32)
    steps, scale = steps_of_range(torch.from_numpy(x), *RANGE, bits)
    np.testing.assert_array_equal(steps.numpy(), np.rint(np.clip(x, *RANGE) / np.float32(step)))
    assert float(scale) == pytest.approx(step) and zero == -steps.min()
    assert len(np.unique(steps)) in (levels, levels + 1, levels + 2)


@pytest.mark.parametrize("shift", [0.0, 50.0, -50.0])
def test_a_dynamic_range_is_onnx_dynamic_quantize_linear(shift: float) -> None:
    x = _rows() + np.float32(shift)  # shifted, zero is outside of what x spans
    q, scale, zero = _onnx("DynamicQuantizeLinear", {"x": x}, 3)
    steps, step = steps_of_tensor(torch.from_numpy(x))
    assert float(step) == scale
    np.testing.assert_array_equal(steps.numpy(), q.astype(np.float32) - float(zero))


def test_a_tensor_of_zeros_stays_zero() -> None:
    for steps_of in (steps_of_tensor, steps_of_rows):
        steps, step = steps_of(torch.zeros(3, 5))
        assert not steps.any() and (step == 1).all()


def test_rows_have_scales_of_their_own() -> None:
    x = _rows() * np.float32([[[1.0]], [[100.0]]])
    x[0, 3] = 0
    steps, step = steps_of_rows(torch.from_numpy(x))
    for row, whole, scale in zip(x.reshape(-1, INPUTS), steps.reshape(-1, INPUTS), step.reshape(-1), strict=True):
        largest = max(abs(float(v)) for v in row)
        assert float(scale) == pytest.approx(largest / 127 if largest else 1.0, rel=1e-6)
        assert whole.tolist() == pytest.approx([round(float(v) / float(scale)) for v in row], abs=1)
        assert float(whole.abs().max()) == (127 if largest else 0)


STATIC = LayerQuantization("linear", "static", input_range=RANGE)
FACTORS = tuple(float(f) for f in np.random.default_rng(5).uniform(0.5, 3, INPUTS).astype(np.float32))
CORRECTION = tuple(float(c) for c in np.random.default_rng(6).standard_normal(CHANNELS).astype(np.float32))


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"bits": 6},
        {"bits": 4, "clip": False},
        {"per_tensor": True},
        {"clip": False},
        {"smoothing": FACTORS},
        {"bias_correction": CORRECTION},
        {"bits": 5, "per_tensor": True, "smoothing": FACTORS, "bias_correction": CORRECTION},
    ],
    ids=lambda change: "-".join(change) or "plain",
)
def test_static_is_integer_arithmetic(change: dict[str, object], reduce_range: bool) -> None:
    decision = dataclasses.replace(STATIC, **change)  # type: ignore[arg-type]
    layer, x = _layer(), _rows()
    factors = np.array(decision.smoothing or np.ones(INPUTS), np.float32)
    weights, scales = quantize_linear(_weight(layer) * factors[:, None], decision, reduce_range=reduce_range)
    levels = 2**decision.bits - 1
    step = np.float32((RANGE[1] - RANGE[0]) / levels)
    zero = round(-RANGE[0] / step)
    smoothed = x / factors
    if decision.bits < 8:
        smoothed = np.clip(smoothed, *RANGE)
    q = np.clip(np.rint(smoothed / step).astype(np.int64) + zero, 0, 255)
    expected = ((q - zero) @ weights.astype(np.int64)) * (float(step) * scales.astype(np.float64)) + _bias(layer)
    expected += np.array(decision.bias_correction or np.zeros(CHANNELS))
    got = _run(quantized_layer(layer, decision, reduce_range=reduce_range), x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(weights).max() <= (64 if reduce_range else 127)


def test_a_dynamic_layer_without_bias() -> None:
    layer, x = _layer(bias=False), _rows()
    decision = LayerQuantization("linear", "dynamic-tensor", smoothing=FACTORS)
    weights, scales = quantize_linear(_weight(layer) * np.array(FACTORS, np.float32)[:, None], decision)
    smoothed = x / np.array(FACTORS, np.float32)
    step = (smoothed.max() - smoothed.min()) / np.float32(255)
    zero = np.rint(-smoothed.min() / step)
    q = np.clip(np.rint(smoothed / step) + zero, 0, 255).astype(np.int64) - int(zero)
    expected = (q @ weights.astype(np.int64)) * (float(step) * scales.astype(np.float64))
    np.testing.assert_allclose(_run(quantized_layer(layer, decision), x), expected, rtol=1e-5, atol=1e-5)


def _by_row(x: np.ndarray, weight: np.ndarray, decision: LayerQuantization) -> np.ndarray:
    """x @ weight, rows and channels on scales of their own."""
    weights, scales = quantize_linear(weight, decision)
    step = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
    q = np.rint(x / np.where(step > 0, step, 1)).astype(np.int64)
    product: np.ndarray = (q @ weights.astype(np.int64)) * scales.astype(np.float64) * step
    return product


def test_dynamic_by_token() -> None:
    layer, x = _layer(), _rows()
    x[1, 2] = 0
    decision = LayerQuantization("linear", "dynamic-token", bias_correction=CORRECTION)
    module = quantized_layer(layer, decision)
    got = _run(module, x)
    expected = _by_row(x, _weight(layer), decision) + _bias(layer) + np.array(CORRECTION)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[1, 2], _bias(layer) + np.array(CORRECTION), rtol=1e-6)
    # No row depends on another, however large that is.
    x[0, 0] *= 1000
    np.testing.assert_array_equal(_run(module, x)[1], got[1])


def test_outliers_are_multiplied_in_float() -> None:
    layer, x = _layer(), _rows()
    x[..., [3, 17]] *= 300
    decision = LayerQuantization("linear", "llm-int8", outliers=(3, 17))
    rest, others = x.copy(), _weight(layer).copy()
    rest[..., [3, 17]], others[[3, 17]] = 0, 0
    expected = x[..., [3, 17]].astype(np.float64) @ _weight(layer)[[3, 17]] + _by_row(rest, others, decision)
    got = _run(quantized_layer(layer, decision), x)
    np.testing.assert_allclose(got, expected + _bias(layer), rtol=1e-5, atol=1e-4)
    # Beside outliers of 300 times the size, the small channels would be lost.
    exact = x.astype(np.float64) @ _weight(layer) + _bias(layer)
    lost = _run(quantized_layer(layer, dataclasses.replace(decision, outliers=())), x)
    assert np.abs(got - exact).max() < 0.1 < np.abs(lost - exact).max()


def test_static_outliers_are_multiplied_in_float() -> None:
    layer, x = _layer(), np.clip(_rows(), *RANGE)
    x[..., 9] *= 50
    decision = dataclasses.replace(STATIC, outliers=(9,), smoothing=FACTORS, input_range=(-7.0, 7.0))
    rest, others = x.copy(), _weight(layer) * np.array(FACTORS, np.float32)[:, None]
    rest[..., 9], others[9] = 0, 0
    got = _run(quantized_layer(layer, decision), x)
    plain = _run(quantized_layer(layer, dataclasses.replace(decision, outliers=())), rest)
    weights, scales = quantize_linear(others, decision)
    step = np.float32(14.0 / 255)
    q = np.rint(rest / np.array(FACTORS, np.float32) / step)
    expected = q @ weights.astype(np.float64) * (float(step) * scales.astype(np.float64)) + _bias(layer)
    expected += x[..., 9:10].astype(np.float64) @ _weight(layer)[9:10]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    assert np.abs(got - plain).max() > 1


@pytest.mark.parametrize("bits", [8, 4])
def test_weight_only(bits: int) -> None:
    layer, x = _layer(), _rows()
    decision = LayerQuantization("linear", "weight-only", bits=bits, block_size=16, smoothing=FACTORS)
    factors = np.array(FACTORS, np.float32)
    weights, scales = quantize_blocks(_weight(layer) * factors[:, None], bits, 16)
    assert scales.shape == (3, CHANNELS)  # 40 inputs are two blocks and a half
    dense = np.stack([weights[i] * scales[i // 16] for i in range(INPUTS)])
    got = _run(quantized_layer(layer, decision, reduce_range=True), x)
    np.testing.assert_allclose(got, (x / factors) @ dense.astype(np.float64) + _bias(layer), rtol=1e-5, atol=1e-5)


def test_integers_that_a_pass_chose() -> None:
    rng = np.random.default_rng(2)
    weights = rng.integers(-8, 8, (INPUTS, CHANNELS), dtype=np.int8)
    scales = rng.uniform(0.01, 0.02, (2, CHANNELS)).astype(np.float32)
    layers = {"0": LayerQuantization("linear", "weight-only", bits=4, block_size=32)}
    model = nn.Sequential(_layer(), nn.Identity())
    result = fake_quantized(
        model, Quantization("weight-only", layers, tensors={"0/weight": weights, "0/scale": scales})
    )
    dense = np.concatenate([weights[:32] * scales[0], weights[32:] * scales[1]])
    expected = _rows() @ dense.astype(np.float64) + _bias(model[0])
    np.testing.assert_allclose(_run(result, _rows()), expected, rtol=1e-5, atol=1e-5)
    result.train().eval()
    np.testing.assert_allclose(_run(result, _rows()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_embedding_rows(bits: int) -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(50, 24).eval()
    table = layer.weight.detach().numpy()
    ids = np.array([[0, 49, 7], [7, 7, 20]], np.int32)
    if bits == 8:
        values, scales = quantize_rows(table)
        dense = values * scales
    else:
        values, scales = quantize_row_blocks(table, 16)
        dense = values * np.stack([scales[:, j // 16] for j in range(24)], axis=1)
    got = _run(quantized_layer(layer, LayerQuantization("embedding", "weight-only", bits=bits, block_size=16)), ids)
    np.testing.assert_allclose(got, dense[ids], rtol=1e-6)
    assert 0 < np.abs(got - table[ids]).max() < (0.03 if bits == 8 else 0.6)


def test_a_tied_output_layer_changes_only_where_it_is_named(tmp_path: Path) -> None:
    (part,) = load_model(tiny("bert", "fill-mask", tmp_path)).parts.values()
    table, decoder = "model.bert.embeddings.word_embeddings", "model.cls.predictions.decoder"
    assert part.get_submodule(table).weight is part.get_submodule(decoder).weight
    hidden, ids = torch.randn(3, 32), torch.arange(9)
    for path, decision in (
        (table, LayerQuantization("embedding", "weight-only", bits=4, block_size=16)),
        (decoder, LayerQuantization("linear", "dynamic-token")),
    ):
        other = fake_quantized(part, Quantization("mixed", {path: decision}))
        with torch.inference_mode():
            same_rows = torch.equal(other.get_submodule(table)(ids), part.get_submodule(table)(ids))
            same_logits = torch.equal(other.get_submodule(decoder)(hidden), part.get_submodule(decoder)(hidden))
        assert (same_rows, same_logits) == (path != table, path != decoder)
        # Still tied: training moves both.
        assert other.get_submodule(table).weight is other.get_submodule(decoder).weight


def _everything(part: nn.Module) -> Quantization:
    layers = {
        path: LayerQuantization("linear", "dynamic-token")
        for path, module in part.named_modules()
        if isinstance(module, nn.Linear)
    }
    return Quantization("dynamic", layers)


def test_the_copy_shares_nothing(tmp_path: Path) -> None:
    (part,) = load_model(tiny("bert", "feature-extraction", tmp_path)).parts.values()
    before = copy.deepcopy(part.state_dict())
    other = fake_quantized(part, _everything(part))
    mine = {t.untyped_storage().data_ptr() for t in (*part.parameters(), *part.buffers())}
    assert mine.isdisjoint(t.untyped_storage().data_ptr() for t in (*other.parameters(), *other.buffers()))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    after = part.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert not any(type(module).__name__.startswith("Fake") for module in part.modules())
    # Its weights keep their names, so that a trained copy can be read back into the float model.
    assert other.state_dict().keys() == after.keys()


def test_one_layer_at_a_time() -> None:
    model = nn.Sequential(_layer(), nn.ModuleDict({"inner": nn.Linear(CHANNELS, 8)})["inner"]).eval()
    x = torch.from_numpy(_rows())
    first, second = model[0], model[1]
    exact = model(x)
    replacements = {
        "0": quantized_layer(first, dataclasses.replace(STATIC, bits=4)),
        "1": quantized_layer(second, LayerQuantization("linear", "dynamic-token")),
    }
    assert replacements["0"].weight is first.weight
    with swapped(model, replacements):
        assert [model[0], model[1]] == list(replacements.values())
        both = model(x)
    with swapped(model, {"0": replacements["0"]}):
        assert model[1] is second
        one = model(x)
    assert model[0] is first and model[1] is second
    torch.testing.assert_close(model(x), exact, rtol=0, atol=0)
    assert not torch.equal(one, exact) and not torch.equal(one, both)
    with pytest.raises(KeyboardInterrupt), swapped(model, replacements):
        raise KeyboardInterrupt
    assert model[0] is first and model[1] is second


def test_decisions_that_do_not_fit() -> None:
    model = nn.Sequential(_layer(), nn.LayerNorm(CHANNELS))
    linear, table = LayerQuantization("linear", "dynamic-token"), LayerQuantization("embedding", "weight-only")
    with pytest.raises(PassError, match=r"no layer 0\.nowhere"):
        fake_quantized(model, Quantization("x", {"0.nowhere": linear}))
    with pytest.raises(PassError, match=r"no layer 7"), swapped(model, {"0": nn.Identity(), "7": nn.Identity()}):
        raise AssertionError("not reached")
    assert isinstance(model[0], nn.Linear)
    with pytest.raises(PassError, match="a LayerNorm cannot be quantized as linear"):
        fake_quantized(model, Quantization("x", {"1": linear}))
    with pytest.raises(PassError, match="a Linear cannot be quantized as embedding"):
        quantized_layer(model[0], table)
