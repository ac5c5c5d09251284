"""The int8 graph of a tiny BERT, its products computed again in numpy, and tables of tokens."""

from __future__ import annotations

import dataclasses
import math
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
from edgec.graph.store import open_graph
from edgec.numerics.weights import quantize_linear, quantize_row_blocks, quantize_rows
from edgec.passes import Quantize, run_pass
from edgec.state import LayerQuantization, ModelState, PassContext, Quantization
from edgec.target import Target, load_target

QKV = [f"model.encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in ("query", "key", "value")]
IDS = np.random.default_rng(0).integers(5, 100, (3, 12), dtype=np.int32)
RNG = np.random.default_rng(4)
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
        expected, expected_scale = quantize_linear(weight, LayerQuantization("linear"))
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


@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_that_is_read_twice_is_stored_once(bits: int, here: Target) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (int64[n] ids, int64[n] more) => (float[n, 23] out) {
        one = Gather <axis = 0> (table, ids)
        two = Gather <axis = 0> (table, more)
        out = Add(one, two)
    }"""
    table = RNG.standard_normal((9, 23)).astype(np.float32)
    model = parse(text, {"table": table}, {"one": "words", "two": "words"})
    layers = {"words": LayerQuantization("embedding", "weight-only", bits=bits, block_size=16)}
    lowered = lower_int8(model, Quantization("static", layers), here)
    assert sorted(lowered.graph.initializers) == [f"words.weight_int{bits}", "words.weight_scale"]
    # 4 bits: 9 x 12 bytes and two scales a row; 8 bits: 9 x 23 and one.
    stored = sum(value.const_value.nbytes for value in lowered.graph.initializers.values() if value.const_value)
    assert stored == {8: 9 * 23 + 9 * 4, 4: math.ceil(9 * 23 / 2) + 9 * 2 * 4}[bits]
    ids, more = np.arange(5), np.arange(4, 9)
    got = values_inside(lowered, ["out"], {"ids": ids, "more": more})["out"]
    restored = _restored(table, bits)
    np.testing.assert_allclose(got, restored[ids] + restored[more], rtol=1e-5, atol=1e-6)
    assert np.abs(restored - table).max() < np.abs(table).max() * {8: 0.005, 4: 0.09}[bits]


def _restored(table: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        quantized, scale = quantize_rows(table)
        return quantized * scale
    quantized, scale = quantize_row_blocks(table, 16)
    return quantized * np.repeat(scale, 16, axis=1)[:, : table.shape[1]]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scheme", ["static", "weight-only"])
def test_a_table_that_is_the_output_layer_too(scheme: str, bits: int, here: Target) -> None:
    """Tied weights: rows with scales of their own where tokens are looked up, channels where they are predicted."""
    text = """<ir_version: 10, opset_import: ["" : 18]>
    g (int64[n] ids) => (float[n, 9] out) {
        rows = Gather <axis = 0> (table, ids)
        columns = Transpose <perm = [1, 0]> (table)
        product = MatMul(rows, columns)
        out = Add(product, shift)
    }"""
    table, shift = (RNG.standard_normal(shape).astype(np.float32) for shape in ((9, 32), 9))
    model = parse(text, {"table": table, "shift": shift}, {"rows": "words", "product": "decoder", "out": "decoder"})
    layers = {
        "words": LayerQuantization("embedding", "weight-only", bits=bits, block_size=16),
        "decoder": LayerQuantization("linear", scheme, input_range=(-4.0, 4.0)),
    }
    lowered = lower_int8(model, Quantization("static", layers), here)
    assert "table" not in lowered.graph.initializers
    assert len(of_type(lowered, "MatMulIntegerToFloat" if scheme == "static" else "MatMulNBits")) == 1
    assert constant(lowered.graph.initializers[f"words.weight_int{bits}"]).shape == (9, 32)
    ids = np.arange(9)
    got = values_inside(lowered, ["out"], {"ids": ids})["out"]
    expected = _restored(table, bits) @ table.T + shift
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.9995
    np.testing.assert_allclose(got, expected, atol=0.7 if scheme == "static" else 0.1)
    # A table alone leaves the output layer as it is.
    alone = lower_int8(model, Quantization("static", {"words": layers["words"]}), here)
    assert len(of_type(alone, "MatMul")) == 1 and f"words.weight_int{bits}" in alone.graph.initializers


SCHEMES = (
    LayerQuantization("linear", "dynamic-tensor"),
    LayerQuantization("linear", "dynamic-token"),
    LayerQuantization("linear", "llm-int8", outliers=(1, 17)),
    LayerQuantization("linear", "weight-only"),
    LayerQuantization("linear", "weight-only", bits=4, block_size=16),
)
OPERATORS = {"weight-only": "MatMulNBits"}


def test_a_scheme_for_each_layer(exporter: Exporter, layers: dict[str, LayerQuantization], here: Target) -> None:
    linear = sorted(path for path, layer in layers.items() if layer.kind == "linear")
    static = [path for path in linear if path not in linear[: 2 * len(SCHEMES)]]
    mixed = {path: SCHEMES[i % len(SCHEMES)] for i, path in enumerate(linear) if path not in static}
    assert len(mixed) == 10 and len(static) == 2
    model = lower_int8(exporter.traced, Quantization("mixed", {**layers, **mixed}), here)
    products = [*of_type(model, "MatMulIntegerToFloat"), *of_type(model, "MatMulNBits")]
    expected_types = {path: OPERATORS.get({**layers, **mixed}[path].scheme, "MatMulIntegerToFloat") for path in linear}
    assert {module_of(node): node.op_type for node in products} == expected_types
    # The float products that are left are those of outliers.
    beside = {path for path, layer in mixed.items() if layer.outliers}
    assert {module_of(node) for node in of_type(model, "MatMul")} == beside
    (got,) = open_graph(model).run(FEED).values()
    (expected,) = open_graph(exporter.float_graph).run(FEED).values()
    cosine = (got * expected).sum(axis=-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert cosine.min() > 0.98


def test_schemes_say_whether_a_batch_matters() -> None:
    for layer in (*SCHEMES, LayerQuantization("linear", input_range=(0.0, 1.0))):
        assert Quantization("x", {"one": layer}).batch_invariant == (layer.scheme != "dynamic-tensor")


def test_a_bundle_written_from_it_names_no_folder(static: ir.Model, tmp_path: Path) -> None:
    assert str(tmp_path.parents[1]).encode() not in serialized(static)
    assert all(set(node.metadata_props) <= {"edgec.module"} for node in static.graph.all_nodes())
