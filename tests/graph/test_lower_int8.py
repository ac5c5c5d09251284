"""The int8 graph of a tiny BERT, its products computed again in numpy, and the forms that a linear layer comes in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs import constant, module_of, of_type, parse, values_inside
from second_process import serialized
from tiny_models import SENTENCES

from edgec.errors import PassError
from edgec.exporter import Exporter
from edgec.graph.lower_int8 import lower_int8
from edgec.numerics.weights import quantize_per_channel, quantize_rows
from edgec.passes import Quantize, run_pass
from edgec.state import LayerQuantization, ModelState, PassContext, Quantization
from edgec.target import Target, load_target

QKV = [f"model.encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("query", "key", "value")]
IDS = np.random.default_rng(0).integers(5, 100, (3, 12), dtype=np.int32)
FEED = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}


def by_path(quantization: Quantization | None) -> dict[str, LayerQuantization]:
    assert quantization is not None
    return {key.partition(":")[2]: layer for key, layer in quantization.layers.items()}


@pytest.fixture(scope="module")
def layers(quantized: ModelState) -> dict[str, LayerQuantization]:
    return by_path(quantized.quantization)


@pytest.fixture(scope="module")
def static(exporter: Exporter, layers: dict[str, LayerQuantization]) -> ir.Model:
    return lower_int8(exporter.traced, Quantization("static", layers), load_target("x86_64-vnni"))


@pytest.fixture(scope="module")
def dynamic(exporter: Exporter, layers: dict[str, LayerQuantization]) -> ir.Model:
    kinds = {path: LayerQuantization(layer.kind, "dynamic-tensor") for path, layer in layers.items()}
    return lower_int8(exporter.traced, Quantization("dynamic", kinds), load_target("x86_64-vnni"))


@pytest.fixture(scope="module")
def smoothed(exporter: Exporter, quantized: ModelState, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(layers, graph) with SmoothQuant factors for the layers that read a LayerNorm."""
    floats = dataclasses.replace(quantized, quantization=None, history=())
    step = Quantize(smooth=("*.query", "*.key", "*.value", "*.intermediate.dense"))
    state = run_pass(step, floats, PassContext(tmp_path_factory.mktemp("smoothed"), SENTENCES))
    found = by_path(state.quantization)
    return found, lower_int8(exporter.traced, Quantization("static", found), load_target("x86_64-vnni"))


def test_every_decided_layer_is_a_product_of_int8(static: ir.Model, layers: dict[str, LayerQuantization]) -> None:
    linear = {path for path, layer in layers.items() if layer.kind == "linear"}
    assert len(linear) == 12
    products = of_type(static, "MatMulIntegerToFloat")
    assert sorted(map(module_of, products)) == sorted(linear)
    for node in products:
        assert constant(node.inputs[1]).dtype == np.int8
        assert constant(node.inputs[3]).shape == constant(node.inputs[1]).shape[1:]  # a scale a channel
        assert node.inputs[5] is None  # symmetric weights
        assert constant(node.inputs[6]).ndim == 1  # the bias is inside
    assert not of_type(static, "MatMul") and not of_type(static, "Gemm")


def test_no_float_copy_of_the_weights_is_left(
    static: ir.Model, exporter: Exporter, layers: dict[str, LayerQuantization]
) -> None:
    (part,) = exporter.state.parts.values()
    shapes = {tuple(part.get_submodule(path).weight.shape) for path in layers}
    for value in static.graph.initializers.values():
        array = constant(value)
        if array.dtype == np.float32:
            assert array.shape not in shapes and array.shape[::-1] not in shapes


def test_layers_that_read_one_tensor_share_its_quantization(static: ir.Model, dynamic: ir.Model) -> None:
    for model, operator in ((static, "QuantizeLinear"), (dynamic, "DynamicQuantizeLinear")):
        sources: dict[str, set[int]] = {}
        for node in of_type(model, "MatMulIntegerToFloat"):
            assert node.inputs[0] is not None
            producer = node.inputs[0].producer()
            assert producer is not None and producer.op_type == operator
            sources.setdefault(module_of(node).rpartition(".")[0], set()).add(id(producer))
        assert len(sources["model.encoder.layer.0.attention.self"]) == 1
        assert len(of_type(model, operator)) == 2 * 4  # QKV, attention output, and the two of the feed-forward


def _reference(node: ir.Node, x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Quantize, multiply integers, restore: the product of one layer, from the definition."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    zero = round(-low / float(scale))
    q = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64)
    weight, weight_scale, bias = (constant(node.inputs[i]) for i in (1, 3, 6))
    total = (q - zero) @ weight.astype(np.int64)
    return total * float(scale) * weight_scale.astype(np.float64) + bias


def _float_input(node: ir.Node) -> str:
    """The name of the tensor that a product's activations were quantized from."""
    assert node.inputs[0] is not None
    producer = node.inputs[0].producer()
    assert producer is not None and producer.inputs[0] is not None
    return str(producer.inputs[0].name)


def test_products_are_those_of_numpy(static: ir.Model, layers: dict[str, LayerQuantization]) -> None:
    products = of_type(static, "MatMulIntegerToFloat")
    names = [name for node in products for name in (_float_input(node), str(node.outputs[0].name))]
    values = values_inside(static, names, FEED)
    for node in products:
        bounds = layers[module_of(node)].input_range
        assert bounds is not None
        expected = _reference(node, values[_float_input(node)], *bounds)
        got = values[str(node.outputs[0].name)]
        assert got.shape == expected.shape and np.abs(expected).max() > 0.1
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_weights_are_those_of_the_model(static: ir.Model, exporter: Exporter) -> None:
    (part,) = exporter.state.parts.values()
    for node in of_type(static, "MatMulIntegerToFloat"):
        module = part.get_submodule(module_of(node))
        weight = module.weight.detach().numpy().T
        quantized, scale = constant(node.inputs[1]), constant(node.inputs[3])
        expected, expected_scale = quantize_per_channel(weight)
        np.testing.assert_array_equal(quantized, expected)
        np.testing.assert_array_equal(scale, expected_scale)
        np.testing.assert_array_equal(constant(node.inputs[6]), module.bias.detach().numpy())


def test_a_target_with_a_reduced_range(exporter: Exporter, layers: dict[str, LayerQuantization]) -> None:
    model = lower_int8(exporter.traced, Quantization("static", layers), load_target("x86_64-avx2"))
    largest = [np.abs(constant(n.inputs[1]).astype(int)).max() for n in of_type(model, "MatMulIntegerToFloat")]
    assert max(largest) == 64


def test_a_dynamic_scale_comes_from_the_tensor(dynamic: ir.Model) -> None:
    products = of_type(dynamic, "MatMulIntegerToFloat")
    names = [name for node in products for name in (_float_input(node), str(node.outputs[0].name))]
    values = values_inside(dynamic, names, FEED)
    for node in products:
        x = values[_float_input(node)]
        expected = _reference(node, x, float(x.min()), float(x.max()))
        np.testing.assert_allclose(values[str(node.outputs[0].name)], expected, rtol=1e-3, atol=1e-3)


def test_the_table_of_tokens_is_int8_rows(static: ir.Model, exporter: Exporter) -> None:
    (part,) = exporter.state.parts.values()
    path = "model.embeddings.word_embeddings"
    table = part.get_submodule(path).weight.detach().numpy()
    stored = {str(n): constant(v) for n, v in static.graph.initializers.items() if str(n).startswith(path)}
    assert {name: array.dtype for name, array in stored.items()} == {
        f"{path}.weight_int8": np.int8,
        f"{path}.weight_scale": np.float32,
    }
    quantized, scale = quantize_rows(table)
    np.testing.assert_array_equal(stored[f"{path}.weight_int8"], quantized)
    (product,) = [n for n in of_type(static, "Mul") if n.metadata_props.get("edgec.module") == path]
    name = str(product.outputs[0].name)
    np.testing.assert_allclose(values_inside(static, [name], FEED)[name], (quantized * scale)[IDS], rtol=1e-6)


def test_smoothing_moves_the_factors_and_keeps_the_function(smoothed: Any, exporter: Exporter) -> None:
    layers, model = smoothed
    (part,) = exporter.state.parts.values()
    chosen = {path for path, layer in layers.items() if layer.smoothing is not None}
    assert chosen == {*QKV, *(f"model.encoder.layer.{i}.intermediate.dense" for i in (0, 1))}
    products = [node for node in of_type(model, "MatMulIntegerToFloat") if module_of(node) in chosen]
    names = []
    for node in products:
        divided = _producer_of_float_input(node)
        assert divided.op_type == "Mul"
        names += [str(divided.inputs[0].name), str(divided.outputs[0].name), str(node.outputs[0].name)]
    values = values_inside(model, names, FEED)
    for node in products:
        layer, divided = layers[module_of(node)], _producer_of_float_input(node)
        factors = np.array(layer.smoothing)
        x, y = values[str(divided.inputs[0].name)], values[str(divided.outputs[0].name)]
        np.testing.assert_allclose(y * factors, x, rtol=1e-5, atol=1e-6)
        weight, scale = constant(node.inputs[1]), constant(node.inputs[3])
        module = part.get_submodule(module_of(node))
        restored = weight * scale / factors[:, None]
        # Half a step of the weights as they were quantized.
        assert (np.abs(restored - module.weight.detach().numpy().T) <= 0.501 * scale / factors[:, None]).mean() > 0.99
        np.testing.assert_allclose(
            values[str(node.outputs[0].name)], _reference(node, y, *layer.input_range), rtol=1e-4, atol=1e-4
        )
        with torch.inference_mode():
            expected = module(torch.from_numpy(x)).numpy()
        got = values[str(node.outputs[0].name)]
        assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.999


def _producer_of_float_input(node: ir.Node) -> Any:
    assert node.inputs[0] is not None
    quantize = node.inputs[0].producer()
    assert quantize is not None and quantize.inputs[0] is not None
    return quantize.inputs[0].producer()


def test_smoothed_layers_share_division_and_quantization(smoothed: Any) -> None:
    _, model = smoothed
    inputs = {module_of(n): n.inputs[0] for n in of_type(model, "MatMulIntegerToFloat")}
    assert inputs[QKV[0]] is inputs[QKV[1]] is inputs[QKV[2]]
    assert inputs[QKV[0]] is not inputs[QKV[3]]


def test_a_decision_is_never_dropped(exporter: Exporter, layers: dict[str, LayerQuantization], here: Target) -> None:
    wrong = {**layers, "model.encoder.layer.7.output.dense": LayerQuantization("linear", input_range=(0.0, 1.0))}
    with pytest.raises(PassError, match=r"1 quantized layers .* the first is model\.encoder\.layer\.7") as caught:
        lower_int8(exporter.traced, Quantization("static", wrong), here)
    assert "skip: ['model.encoder.layer.7.output.dense']" in caught.value.hint


def test_the_traced_graph_is_left_as_it_is(
    exporter: Exporter, layers: dict[str, LayerQuantization], here: Target
) -> None:
    before = serialized(exporter.traced)
    first, second = (serialized(lower_int8(exporter.traced, Quantization("static", layers), here)) for _ in range(2))
    assert first == second
    assert serialized(exporter.traced) == before


# The forms of a linear layer, one by one.

HEADER = '<ir_version: 10, opset_import: ["" : 18]>\ng (float[n, 6] x) => (float[n, k] out)'
FORMS = {
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
    "weight": RNG.standard_normal((6, 5)).astype(np.float32),
    "bias": RNG.standard_normal(5).astype(np.float32),
    "number": np.array([3.0], np.float32),
    "matrix": RNG.standard_normal((1, 5)).astype(np.float32),
}
CONSTANTS["transposed"] = CONSTANTS["weight"].T.copy()


def _graph(body: str, layers: dict[str, str] | None = None) -> ir.Model:
    used = {name: value for name, value in CONSTANTS.items() if name in body}
    return parse(f"{HEADER} {{\n {body}\n}}", used, layers or {"product": "one", "out": "one"})


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_linear_layer(form: str, scheme: str, here: Target) -> None:
    model = _graph(FORMS[form])
    x = RNG.uniform(-2, 2, (7, 6)).astype(np.float32)
    layer = LayerQuantization(
        "linear",
        "dynamic-tensor" if scheme == "dynamic" else "static",
        input_range=(-2.0, 2.0) if scheme == "static" else None,
    )
    lowered = lower_int8(model, Quantization(scheme, {"one": layer}), here)
    (product,) = of_type(lowered, "MatMulIntegerToFloat")
    assert constant(product.inputs[1]).shape == (6, 5)
    assert (len(product.inputs) > 6 and product.inputs[6] is not None) == (form in WITH_BIAS)
    assert not {"weight", "transposed"} & set(lowered.graph.initializers)
    (name,) = (output.name for output in model.graph.outputs)
    expected = values_inside(model, [str(name)], {"x": x})[str(name)]
    got = values_inside(lowered, ["out"], {"x": x})["out"]
    np.testing.assert_allclose(got, expected, atol=0.15)
    assert np.abs(got - expected).max() > 1e-4  # it is the int8 product that ran


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
def test_forms_that_are_not_a_linear_layer(body: str, here: Target) -> None:
    with pytest.raises(PassError, match="the first is one"):
        layers = {"product": "one", "half": "one", "out": "one"}
        lower_int8(
            _graph(body, layers),
            Quantization("static", {"one": LayerQuantization("linear", input_range=(0.0, 1.0))}),
            here,
        )


def test_a_layer_that_runs_twice_stores_its_weights_once(here: Target) -> None:
    body = "a = MatMul(x, weight)\n b = Neg(x)\n c = MatMul(b, weight)\n d = Add(c, bias)\n out = Add(a, d)"
    model = _graph(body, {"a": "one", "c": "one", "d": "one"})
    lowered = lower_int8(
        model, Quantization("static", {"one": LayerQuantization("linear", input_range=(-2.0, 2.0))}), here
    )
    first, second = of_type(lowered, "MatMulIntegerToFloat")
    assert first.inputs[1] is second.inputs[1] and first.inputs[3] is second.inputs[3]
    assert not of_type(lowered, "MatMul")
    assert "weight" not in lowered.graph.initializers
    x = RNG.uniform(-2, 2, (7, 6)).astype(np.float32)
    expected = values_inside(model, ["out"], {"x": x})["out"]
    np.testing.assert_allclose(values_inside(lowered, ["out"], {"x": x})["out"], expected, atol=0.2)


def test_a_table_that_is_read_twice_is_stored_once(here: Target) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (int64[n] ids, int64[n] more) => (float[n, 6] out) {
        one = Gather <axis = 0> (table, ids)
        two = Gather <axis = 0> (table, more)
        out = Add(one, two)
    }"""
    table = RNG.standard_normal((9, 6)).astype(np.float32)
    model = parse(text, {"table": table}, {"one": "words", "two": "words"})
    lowered = lower_int8(model, Quantization("static", {"words": LayerQuantization("embedding", "weight-only")}), here)
    assert sorted(lowered.graph.initializers) == ["words.weight_int8", "words.weight_scale"]
    ids, more = np.arange(5), np.arange(4, 9)
    got = values_inside(lowered, ["out"], {"ids": ids, "more": more})["out"]
    np.testing.assert_allclose(got, table[ids] + table[more], atol=np.abs(table).max() / 120)
    quantized, scale = quantize_rows(table)
    np.testing.assert_allclose(got, (quantized * scale)[ids] + (quantized * scale)[more], rtol=1e-6)


def test_a_table_that_is_the_output_layer_too(here: Target) -> None:
    """Tied weights: rows with a scale a row where tokens are looked up, channels where they are predicted."""
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (int64[n] ids) => (float[n, 9] out) {
        rows = Gather <axis = 0> (table, ids)
        columns = Transpose <perm = [1, 0]> (table)
        product = MatMul(rows, columns)
        out = Add(product, shift)
    }"""
    table, shift = (RNG.standard_normal(shape).astype(np.float32) for shape in ((9, 6), 9))
    model = parse(text, {"table": table, "shift": shift}, {"rows": "words", "product": "decoder", "out": "decoder"})
    layers = {
        "words": LayerQuantization("embedding", "weight-only"),
        "decoder": LayerQuantization("linear", input_range=(-4.0, 4.0)),
    }
    lowered = lower_int8(model, Quantization("static", layers), here)
    assert "table" not in lowered.graph.initializers
    quantized, scale = quantize_rows(table)
    np.testing.assert_array_equal(constant(lowered.graph.initializers["words.weight_int8"]), quantized)
    np.testing.assert_array_equal(constant(lowered.graph.initializers["words.weight_scale"]), scale)
    assert constant(lowered.graph.initializers["decoder.weight_int8"]).shape == (6, 9)
    ids = np.arange(9)
    got = values_inside(lowered, ["out"], {"ids": ids})["out"]
    np.testing.assert_allclose(got, table @ table.T + shift, atol=0.3)
    # A table alone in int8 leaves the output layer as it is.
    alone = lower_int8(model, Quantization("static", {"words": layers["words"]}), here)
    assert len(of_type(alone, "MatMul")) == 1 and "words.weight_int8" in alone.graph.initializers


def test_a_bundle_written_from_it_names_no_folder(static: ir.Model, tmp_path: Path) -> None:
    assert str(tmp_path.parents[1]).encode() not in serialized(static)
    assert all(set(node.metadata_props) <= {"edgec.module"} for node in static.graph.all_nodes())
