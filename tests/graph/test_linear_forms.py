"""Every form of a quantized linear layer, computed again in numpy from the definition of its scheme."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir
import pytest
from graphs import constant, of_type, parse, values_inside

from edgec.errors import PassError
from edgec.graph.linear_forms import pack_blocks
from edgec.graph.lower_int8 import lower_int8
from edgec.numerics.activations import activation_scale
from edgec.numerics.weights import quantize_blocks, quantize_linear
from edgec.state import LayerQuantization, Quantization
from edgec.target import Target

K, N = 40, 9
BODIES = {
    "bias on the right": "product = MatMul(x, weight)\n out = Add(product, bias)",
    "bias on the left": "product = MatMul(x, weight)\n out = Add(bias, product)",
    "no bias": "out = MatMul(x, weight)",
    "Gemm": "out = Gemm(x, weight, bias)",
    "transposed Gemm": "out = Gemm <transB = 1> (x, transposed, bias)",
    "Gemm without bias": "out = Gemm(x, weight)",
    "transposed Gemm without bias": "out = Gemm <transB = 1> (x, transposed)",
    "transposed in the graph": "w = Transpose <perm = [1, 0]> (transposed)\n out = MatMul(x, w)",
    "transposed in the graph, a bias": (
        "w = Transpose(transposed)\n product = MatMul(x, w)\n out = Add(product, bias)"
    ),
    "not transposed at all": "w = Transpose <perm = [0, 1]> (weight)\n out = MatMul(x, w)",
    "a matrix is no bias": "product = MatMul(x, weight)\n out = Add(product, matrix)",
    "a number is no bias": "product = MatMul(x, weight)\n out = Add(product, number)",
}
WITH_BIAS = {"bias on the right", "bias on the left", "Gemm", "transposed Gemm", "transposed in the graph, a bias"}
RNG = np.random.default_rng(4)
CONSTANTS = {
    "weight": (RNG.standard_normal((K, N)) * RNG.lognormal(0, 0.5, N)).astype(np.float32),
    "bias": RNG.standard_normal(N).astype(np.float32),
    "number": np.array([3.0], np.float32),
    "matrix": RNG.standard_normal((1, N)).astype(np.float32),
}
CONSTANTS["transposed"] = CONSTANTS["weight"].T.copy()
X = RNG.uniform(-2, 2, (7, K)).astype(np.float32) * RNG.uniform(0.2, 1, (7, 1)).astype(np.float32)
X[3] = 0
X[:, 5] *= 9  # a channel that stretches the range of all

SMOOTHING = tuple(float(np.float32(f)) for f in RNG.uniform(0.5, 4, K))
CORRECTION = tuple(float(np.float32(c)) for c in RNG.uniform(-0.5, 0.5, N))
STATIC = LayerQuantization("linear", input_range=(-12.0, 15.0))
TENSOR = LayerQuantization("linear", "dynamic-tensor")
TOKEN = LayerQuantization("linear", "dynamic-token")
LLM = LayerQuantization("linear", "llm-int8", outliers=(5, 31))
WEIGHTS = LayerQuantization("linear", "weight-only", block_size=16)
DECISIONS = {
    "static": STATIC,
    "static, 4 bits": dataclasses.replace(STATIC, bits=4, input_range=(-3.0, 4.0)),
    "static, 7 bits": dataclasses.replace(STATIC, bits=7, input_range=(-3.0, 4.0)),
    "static, one scale": dataclasses.replace(STATIC, per_tensor=True),
    "static, no clipping": dataclasses.replace(STATIC, clip=False),
    "static, smoothed": dataclasses.replace(STATIC, smoothing=SMOOTHING),
    "static, outliers": dataclasses.replace(STATIC, outliers=(5, 31), input_range=(-2.0, 2.0)),
    "static, outliers, smoothed": dataclasses.replace(STATIC, outliers=(5,), smoothing=SMOOTHING),
    "dynamic-tensor": TENSOR,
    "dynamic-tensor, smoothed": dataclasses.replace(TENSOR, smoothing=SMOOTHING),
    "dynamic-token": TOKEN,
    "dynamic-token, smoothed": dataclasses.replace(TOKEN, smoothing=SMOOTHING),
    "llm-int8": LLM,
    "llm-int8, smoothed": dataclasses.replace(LLM, smoothing=SMOOTHING),
    "llm-int8 without outliers": dataclasses.replace(LLM, outliers=()),
    "weight-only": WEIGHTS,
    "weight-only, blocks larger than the inputs": dataclasses.replace(WEIGHTS, block_size=128),
    "weight-only, 4 bits": dataclasses.replace(WEIGHTS, bits=4),
    "weight-only, 4 bits, blocks of 32": dataclasses.replace(WEIGHTS, bits=4, block_size=32),
}


def _graph(body: str, layers: dict[str, str] | None = None, opset: int = 23) -> ir.Model:
    header = f'<ir_version: 10, opset_import: ["" : {opset}]>\ng (float[n, {K}] x) => (float[n, k] out)'
    used = {name: value for name, value in CONSTANTS.items() if name in body}
    return parse(f"{header} {{\n {body}\n}}", used, layers or {"product": "one", "out": "one"})


def _lowered(model: ir.Model, layer: LayerQuantization, target: Target) -> ir.Model:
    return lower_int8(model, Quantization("any", {"one": layer}), target)


def _answers(model: ir.Model, x: np.ndarray = X) -> np.ndarray:
    (name,) = (str(output.name) for output in model.graph.outputs)
    return values_inside(model, [name], {"x": x})[name]


def _reference(layer: LayerQuantization, x: np.ndarray, target: Target) -> np.ndarray:
    """x @ weight as the scheme defines it, without the bias."""
    outliers = list(layer.outliers)
    beside = x[:, outliers].astype(np.float64) @ CONSTANTS["weight"][outliers]
    factors = np.array(layer.smoothing or np.ones(K), np.float32)
    x, weight = x / factors, CONSTANTS["weight"] * factors[:, None]
    weight[outliers] = 0
    if layer.scheme == "weight-only":
        integers, scales = quantize_blocks(weight, layer.bits, layer.block_size)
        return x @ (integers * np.repeat(scales.astype(np.float64), layer.block_size, axis=0)[:K])
    integers, scales = quantize_linear(weight, layer, reduce_range=target.int8.reduce_range)
    if layer.scheme in ("dynamic-token", "llm-int8"):
        x = x.copy()
        x[:, outliers] = 0
        largest = np.abs(x).max(axis=1, keepdims=True)
        steps = np.where(largest > 0, largest, 127) / np.float32(127)
        levels = np.clip(np.rint(x / steps), -127, 127)
    else:
        low, high = layer.input_range or (float(x.min()), float(x.max()))
        step, zero = activation_scale(low, high, layer.bits)
        steps = np.array(step)
        levels = np.clip(np.rint((x.clip(low, high) if layer.bits < 8 else x) / steps) + zero, 0, 255) - float(zero)
    return levels @ integers.astype(np.float64) * steps * scales + beside


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("body", ["bias on the right", "no bias", "Gemm", "transposed Gemm without bias"])
@pytest.mark.parametrize("name", DECISIONS)
def test_products_are_those_of_numpy(name: str, body: str, opset: int, here: Target) -> None:
    layer = DECISIONS[name]
    lowered = _lowered(_graph(BODIES[body], opset=opset), layer, here)
    expected = _reference(layer, X, here) + (CONSTANTS["bias"] if body in WITH_BIAS else 0)
    np.testing.assert_allclose(_answers(lowered), expected, rtol=1e-5, atol=2e-5)
    # It is a coarse form of the float product, and not that product.
    exact = X @ CONSTANTS["weight"] + (CONSTANTS["bias"] if body in WITH_BIAS else 0)
    assert np.abs(expected - exact).max() > 1e-3
    if not ("4 bits" in name and layer.scheme == "static"):
        assert np.corrcoef(expected.ravel(), exact.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("name", DECISIONS)
def test_a_correction_is_added_to_the_bias(name: str, here: Target) -> None:
    layer = dataclasses.replace(DECISIONS[name], bias_correction=CORRECTION)
    for body, bias in (("bias on the right", CONSTANTS["bias"]), ("no bias", np.float32(0))):
        lowered = _lowered(_graph(BODIES[body]), layer, here)
        expected = _reference(layer, X, here) + bias + np.array(CORRECTION)
        np.testing.assert_allclose(_answers(lowered), expected, rtol=1e-5, atol=2e-5)
        # It costs no node: there is one addition of a vector, or none where the product adds it.
        plain = _lowered(_graph(BODIES["bias on the right"]), DECISIONS[name], here)
        assert len(list(lowered.graph)) == len(list(plain.graph))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ["static", "dynamic-tensor", "dynamic-token", "llm-int8", "weight-only"])
def test_places_of_a_linear_layer(name: str, body: str, here: Target) -> None:
    model, layer = _graph(BODIES[body]), DECISIONS[name]
    lowered = _lowered(model, layer, here)
    products = [*of_type(lowered, "MatMulIntegerToFloat"), *of_type(lowered, "MatMulNBits")]
    assert [node.op_type for node in products] == ["MatMulNBits" if name == "weight-only" else "MatMulIntegerToFloat"]
    place = {"weight-only": 5, "static": 6, "dynamic-tensor": 6}.get(name)
    if place is not None:  # the bias is inside the product
        inside = len(products[0].inputs) > place and products[0].inputs[place] is not None
        assert inside == (body in WITH_BIAS)
    assert not of_type(lowered, "Gemm") and len(of_type(lowered, "MatMul")) == (name == "llm-int8")
    assert not {"weight", "transposed"} & set(lowered.graph.initializers)
    added = CONSTANTS["bias" if body in WITH_BIAS else "matrix" if "matrix" in body else "number"]
    expected = _reference(layer, X, here) + (added if "Add" in BODIES[body] or body in WITH_BIAS else 0)
    np.testing.assert_allclose(_answers(lowered), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("layer", [STATIC, TOKEN, LLM, WEIGHTS], ids=lambda layer: layer.scheme)
@pytest.mark.parametrize(
    "body",
    [
        "out = Gemm <alpha = 0.5> (x, weight, bias)",
        "out = Gemm <beta = 2.0> (x, weight, bias)",
        "out = Gemm(x, weight, number)",  # the kernel wants one for each channel
        "out = Relu(x)",
        # Of the two places of this layer the second has no int8 form.
        "product = MatMul(x, weight)\n half = Gemm <alpha = 0.5> (x, weight, bias)\n out = Add(product, half)",
    ],
)
def test_what_is_no_linear_layer(body: str, layer: LayerQuantization, here: Target) -> None:
    with pytest.raises(PassError, match="the first is one"):
        _lowered(_graph(body, {"product": "one", "half": "one", "out": "one"}), layer, here)


@pytest.mark.parametrize("layer", [STATIC, TENSOR, TOKEN, LLM, WEIGHTS], ids=lambda layer: layer.scheme)
def test_a_layer_that_runs_twice_stores_its_weights_once(layer: LayerQuantization, here: Target) -> None:
    body = "a = MatMul(x, weight)\n b = Neg(x)\n c = MatMul(b, weight)\n d = Add(c, bias)\n out = Add(a, d)"
    model = _graph(body, {"a": "one", "c": "one", "d": "one"})
    lowered = _lowered(model, layer, here)
    first, second = [*of_type(lowered, "MatMulIntegerToFloat"), *of_type(lowered, "MatMulNBits")]
    scales = 2 if layer is WEIGHTS else 3
    assert first.inputs[1] is second.inputs[1] and first.inputs[scales] is second.inputs[scales]
    assert len({id(node.inputs[1]) for node in of_type(lowered, "MatMul")}) == (layer.scheme == "llm-int8")
    assert "weight" not in lowered.graph.initializers
    expected = _reference(layer, X, here) + _reference(layer, -X, here) + CONSTANTS["bias"]
    np.testing.assert_allclose(_answers(lowered), expected, rtol=1e-5, atol=2e-5)


SHARED = "a = MatMul(x, weight)\n b = Add(a, bias)\n c = MatMul(x, other)\n out = Add(b, c)"


@pytest.mark.parametrize("smoothing", [None, SMOOTHING], ids=["plain", "smoothed"])
@pytest.mark.parametrize("layer", [STATIC, TENSOR, TOKEN, LLM], ids=lambda layer: layer.scheme)
def test_layers_that_read_the_same_tensor_quantize_it_once(
    layer: LayerQuantization, smoothing: tuple[float, ...] | None, here: Target
) -> None:
    layer = dataclasses.replace(layer, smoothing=smoothing)
    layers = {"a": "one", "b": "one", "c": "two"}
    text = f'<ir_version: 10, opset_import: ["" : 23]>\ng (float[n, {K}] x) => (float[n, {N}] out) {{\n {SHARED}\n}}'
    constants = {name: CONSTANTS[name] for name in ("weight", "bias")} | {"other": CONSTANTS["weight"][:, ::-1].copy()}
    model = parse(text, constants, layers)
    lowered = lower_int8(model, Quantization("any", {"one": layer, "two": layer}), here)
    first, second = of_type(lowered, "MatMulIntegerToFloat")
    assert first.inputs[0] is second.inputs[0] and first.inputs[1] is not second.inputs[1]
    for operator in ("QuantizeLinear", "DynamicQuantizeLinear", "ReduceMax", "Div", "Max", "Expand", "Gather"):
        assert len(of_type(lowered, operator)) <= 1
    quantizers = len(of_type(lowered, "QuantizeLinear")) + len(of_type(lowered, "DynamicQuantizeLinear"))
    assert quantizers == 1
    # Division by the factors, zeros for outliers, and for each row scales of the two products.
    rows = layer.scheme in ("dynamic-token", "llm-int8")
    assert (
        len(of_type(lowered, "Mul"))
        == (smoothing is not None) + (layer is not TENSOR and bool(layer.outliers)) + 2 * rows
    )
    if layer.outliers:  # other outliers make another tensor
        other = dataclasses.replace(layer, outliers=(5, 30))
        apart = lower_int8(model, Quantization("any", {"one": layer, "two": other}), here)
        assert len(of_type(apart, "QuantizeLinear")) == 2


@pytest.mark.parametrize("layer", [STATIC, TOKEN, LLM, WEIGHTS], ids=lambda layer: layer.scheme)
@pytest.mark.parametrize("opset", [18, 23])
def test_a_row_is_the_same_alone_and_in_a_batch(layer: LayerQuantization, opset: int, here: Target) -> None:
    lowered = _lowered(_graph(BODIES["bias on the right"], opset=opset), layer, here)
    together = _answers(lowered)
    alone = np.concatenate([_answers(lowered, X[i : i + 1]) for i in range(len(X))])
    # Sums of integers are exact; float products may add in another order.
    tolerance = 0 if layer in (STATIC, TOKEN) else 1e-5
    np.testing.assert_allclose(together, alone, rtol=tolerance, atol=tolerance)
    if layer is TOKEN:
        tensor = _lowered(_graph(BODIES["bias on the right"]), TENSOR, here)
        assert np.abs(_answers(tensor)[:1] - _answers(tensor, X[:1])).max() > 1e-3


@pytest.mark.parametrize("opset", [18, 23])
def test_a_row_of_zeros_is_the_bias(opset: int, here: Target) -> None:
    zeros = np.zeros((2, K), np.float32)
    for layer in (TOKEN, LLM):
        lowered = _lowered(_graph(BODIES["bias on the right"], opset=opset), layer, here)
        np.testing.assert_array_equal(_answers(lowered, zeros), np.tile(CONSTANTS["bias"], (2, 1)))
        (quantizer,) = of_type(lowered, "QuantizeLinear")
        (levels,) = values_inside(lowered, [str(quantizer.outputs[0].name)], {"x": zeros}).values()
        np.testing.assert_array_equal(levels, np.full((2, K), 128))


def test_rows_of_three_dimensions(here: Target) -> None:
    text = f'<ir_version: 10, opset_import: ["" : 23]>\ng (float[b, t, {K}] x) => (float[b, t, {N}] out) {{'
    body = f"{text}\n {BODIES['bias on the right']}\n}}"
    constants = {name: CONSTANTS[name] for name in ("weight", "bias")}
    x = RNG.uniform(-2, 2, (3, 4, K)).astype(np.float32) * RNG.lognormal(0, 2, (3, 4, 1)).astype(np.float32)
    for layer in (TOKEN, LLM, WEIGHTS):
        got = _answers(_lowered(parse(body, constants, {"product": "one", "out": "one"}), layer, here), x)
        expected = _reference(layer, x.reshape(-1, K), here) + CONSTANTS["bias"]
        np.testing.assert_allclose(got.reshape(-1, N), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_that_were_chosen_otherwise(bits: int, here: Target) -> None:
    layer = dataclasses.replace(WEIGHTS, bits=bits)
    integers = RNG.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (K, N)).astype(np.int8)
    scales = RNG.uniform(-0.1, 0.1, (math.ceil(K / 16), N)).astype(np.float32)
    tensors: dict[str, np.ndarray] = {"one/weight": integers, "one/scale": scales, "two/weight": integers[:3]}
    lowered = lower_int8(
        _graph(BODIES["bias on the right"]), Quantization("any", {"one": layer}, tensors=tensors), here
    )
    expected = X @ (integers * np.repeat(scales, 16, axis=0)[:K]) + CONSTANTS["bias"]
    np.testing.assert_allclose(_answers(lowered), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_packed_as_the_kernel_reads_them(bits: int) -> None:
    integers = RNG.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (K, N)).astype(np.int8)
    packed = pack_blocks(integers, bits, 16)
    assert packed.dtype == np.uint8 and packed.shape == (N, 3, 16 * bits // 8)
    for channel in range(N):
        for i in range(48):
            byte = int(packed[channel, i // 16, (i % 16) * bits // 8])
            level = byte if bits == 8 else (byte >> 4 * (i % 2)) & 15
            assert level - 2 ** (bits - 1) == (integers[i, channel] if i < K else 0)


def test_weights_are_stored_in_as_many_bits(here: Target) -> None:
    for bits, size in ((8, N * 48), (4, N * 24)):
        lowered = _lowered(_graph(BODIES["no bias"]), dataclasses.replace(WEIGHTS, bits=bits), here)
        assert constant(lowered.graph.initializers[f"one.weight_int{bits}"]).nbytes == size
        (node,) = of_type(lowered, "MatMulNBits")
        # Unset, the kernel multiplies floats: activations are not rounded.
        assert "accuracy_level" not in node.attributes
