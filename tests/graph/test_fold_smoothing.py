"""Products by smoothing factors that go into constants before them: the same function without the product."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import constant, module_of, of_type, parse, values_inside
from tiny_models import SENTENCES, tiny

import edgec.graph.lower_int8
from edgec.exporter import Exporter
from edgec.graph.fold_smoothing import fold_smoothing
from edgec.graph.lower_int8 import lower_int8
from edgec.graph.store import open_graph
from edgec.graph.trace import MODULE_KEY
from edgec.models import load_model
from edgec.passes import Quantize, run_pass
from edgec.state import LayerQuantization, PassContext, Quantization
from edgec.target import Target

WIDTH = 12
RNG = np.random.default_rng(11)


def _array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


FACTORS = RNG.uniform(0.2, 3, WIDTH).astype(np.float32)
CONSTANTS = {
    "factors": FACTORS,
    "others": RNG.uniform(0.2, 3, WIDTH).astype(np.float32),
    "number": np.array([2.0], np.float32),
    "scale": _array(WIDTH),
    "shift": _array(WIDTH),
    "wq": _array(WIDTH, WIDTH),
    "wv": _array(WIDTH, WIDTH),
    "bv": _array(WIDTH),
    "wo": _array(WIDTH, 5),
    "split": np.array([0, 0, 3, 4], np.int64),
    "wv_one": _array(WIDTH, 4),
    "bv_one": _array(4),
    "split_one": np.array([0, 0, 1, 4], np.int64),
    "heads_at_once": np.array([0, 3, -1, 4], np.int64),
    "join": np.array([0, 0, WIDTH], np.int64),
}
X = _array(2, 6, WIDTH)


def _graph(body: str, layers: dict[str, str] | None = None, outputs: str = "") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 23]>\ng (float[b, t, {WIDTH}] x) => (float[b, t, n] out{outputs})'
    used = {name: value for name, value in CONSTANTS.items() if f"{name})" in body or f"{name}," in body}
    return parse(f"{text} {{\n {body}\n}}", used, layers or {})


def _out(model: ir.Model) -> np.ndarray:
    return values_inside(model, ["out"], {"x": X})["out"]


def _folded(model: ir.Model) -> ir.Model:
    folded = model.clone()
    fold_smoothing(folded)
    np.testing.assert_allclose(_out(folded), _out(model), rtol=1e-5, atol=1e-5)
    return folded


NORM = "normed = LayerNormalization(x, scale, shift)"


def test_into_a_layer_norm() -> None:
    model = _graph(f"{NORM}\n smooth = Mul(normed, factors)\n out = MatMul(smooth, wo)")
    folded = _folded(model)
    assert not of_type(folded, "Mul")
    (norm,) = of_type(folded, "LayerNormalization")
    np.testing.assert_array_equal(constant(norm.inputs[1]), CONSTANTS["scale"] * FACTORS)
    np.testing.assert_array_equal(constant(norm.inputs[2]), CONSTANTS["shift"] * FACTORS)
    (before,) = of_type(model, "LayerNormalization")
    np.testing.assert_array_equal(constant(before.inputs[1]), CONSTANTS["scale"])


def test_readers_by_the_same_factors_are_folded_together() -> None:
    body = (
        f"{NORM}\n one = Mul(normed, factors)\n two = Mul(normed, factors)\n"
        " a = MatMul(one, wv)\n b = MatMul(two, wq)\n out = Add(a, b)"
    )
    assert not of_type(_folded(_graph(body)), "Mul")


def test_a_layer_norm_without_a_bias() -> None:
    body = "normed = LayerNormalization(x, scale)\n smooth = Mul(normed, factors)\n out = MatMul(smooth, wo)"
    assert not of_type(_folded(_graph(body)), "Mul")


@pytest.mark.parametrize(
    "body",
    [
        # Read by something else, by other factors, or by a number.
        f"{NORM}\n smooth = Mul(normed, factors)\n a = MatMul(smooth, wv)\n out = Add(a, normed)",
        f"{NORM}\n one = Mul(normed, factors)\n two = Mul(normed, others)\n out = Add(one, two)",
        f"{NORM}\n smooth = Mul(normed, number)\n out = MatMul(smooth, wo)",
        # The scale is read by something else; the scale is the shift too; it is no norm.
        f"{NORM}\n smooth = Mul(normed, factors)\n out = Add(smooth, scale)",
        "normed = LayerNormalization(x, scale, scale)\n smooth = Mul(normed, factors)\n out = MatMul(smooth, wo)",
        "normed = Gelu(x)\n smooth = Mul(normed, factors)\n out = MatMul(smooth, wo)",
        # The product is what the model is asked for, by this name.
        f"{NORM}\n out = Mul(normed, factors)",
    ],
)
def test_what_stays_before_a_product(body: str) -> None:
    model = _graph(body)
    assert len(of_type(_folded(model), "Mul")) == len(of_type(model, "Mul"))


def test_a_layer_norm_that_is_an_output() -> None:
    model = _graph(
        f"{NORM}\n smooth = Mul(normed, factors)\n out = MatMul(smooth, wo)", outputs=", float[b, t, m] normed"
    )
    assert len(of_type(_folded(model), "Mul")) == 1


HEADS = "Transpose <perm = [0, 2, 1, 3]>"
PROJECTIONS = f"""q = MatMul(x, wq)
 query_split = Reshape(q, split)
 query = {HEADS}(query_split)
 product = MatMul(x, wv)
 v = Add(product, bv)
 value_split = Reshape(v, split)
 value = {HEADS}(value_split)
 """
NATIVE = "context = Attention(query, query, value)\n "
DECOMPOSED = """keys = Transpose <perm = [0, 1, 3, 2]>(query)
 scores = MatMul(query, keys)
 probabilities = Softmax(scores)
 context = MatMul(probabilities, value)
 """
REST = f"""turned = {HEADS}(context)
 joined = Reshape(turned, join)
 smooth = Mul(joined, factors)
 out = MatMul(smooth, wo)"""
FORMS = {"native": PROJECTIONS + NATIVE + REST, "decomposed": PROJECTIONS + DECOMPOSED + REST}
MODULES = {"product": "value", "v": "value"}


@pytest.mark.parametrize("form", FORMS)
def test_into_the_value_projection(form: str) -> None:
    folded = _folded(_graph(FORMS[form]))
    assert not of_type(folded, "Mul")
    np.testing.assert_array_equal(constant(folded.graph.initializers["wv"]), CONSTANTS["wv"] * FACTORS)
    np.testing.assert_array_equal(constant(folded.graph.initializers["bv"]), CONSTANTS["bv"] * FACTORS)


VALUES = {
    "static": LayerQuantization("linear", input_range=(-3.0, 3.0)),
    "static, outliers": LayerQuantization("linear", input_range=(-3.0, 3.0), outliers=(2, 7)),
    "dynamic-tensor": LayerQuantization("linear", "dynamic-tensor"),
    "dynamic-token": LayerQuantization("linear", "dynamic-token"),
    "llm-int8": LayerQuantization("linear", "llm-int8", outliers=(2, 7)),
    "weight-only": LayerQuantization("linear", "weight-only", block_size=16),
    "weight-only, 4 bits": LayerQuantization("linear", "weight-only", bits=4, block_size=16),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", VALUES)
def test_into_every_form_of_the_value_projection(
    name: str, bias: bool, here: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        FORMS["native"] if bias else FORMS["native"].replace("product = ", "v = ").replace("v = Add(product, bv)\n", "")
    )
    quantization = Quantization("any", {"value": VALUES[name]})
    with monkeypatch.context() as patch:
        patch.setattr(edgec.graph.lower_int8, "fold_smoothing", lambda model: None)
        plain = lower_int8(_graph(body, MODULES), quantization, here)
    folded = lower_int8(_graph(body, MODULES), quantization, here)
    np.testing.assert_allclose(_out(folded), _out(plain), rtol=1e-5, atol=1e-5)

    def by_channel(model: ir.Model) -> int:
        return sum(len(n.inputs) > 1 and n.inputs[1] is not None and n.inputs[1].name == "factors" for n in model.graph)

    assert (by_channel(plain), by_channel(folded)) == (1, 0)
    assert len(list(folded.graph)) == len(list(plain.graph)) - 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Something else reads a tensor between the projection and the product.
        ("out = MatMul(smooth, wo)", "out = Add(smooth, joined)"),
        ("out = MatMul(smooth, wo)", "o = MatMul(smooth, wo)\n r = ReduceMax(turned)\n out = Add(o, r)"),
        ("out = MatMul(smooth, wo)", "o = MatMul(smooth, wo)\n r = ReduceMax(context)\n out = Add(o, r)"),
        ("out = MatMul(smooth, wo)", "o = MatMul(smooth, wo)\n r = ReduceMax(value)\n out = Add(o, r)"),
        ("out = MatMul(smooth, wo)", "o = MatMul(smooth, wo)\n r = ReduceMax(value_split)\n out = Add(o, r)"),
        ("out = MatMul(smooth, wo)", "o = MatMul(smooth, wo)\n r = ReduceMax(v)\n out = Add(o, r)"),
        ("out = MatMul(smooth, wo)", "o = MatMul(smooth, wo)\n r = ReduceMax(product)\n out = Add(o, r)"),
        # Or a constant.
        ("out = MatMul(smooth, wo)", "out = Add(smooth, bv)"),
        ("q = MatMul(x, wq)", "q = MatMul(x, wv)"),
        # The factors are not those of the value's channels, or the value is no product with weights.
        ("value_split = Reshape(v, split)", "value_split = Reshape(x, split)"),
        (f"turned = {HEADS}(context)", "turned = Transpose <perm = [0, 2, 3, 1]>(context)"),
        (f"value = {HEADS}(value_split)", "value = Reshape(v, heads_at_once)"),
        ("v = Add(product, bv)", "v = Add(product, x)"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_what_stays_after_attention(form: str, old: str, new: str) -> None:
    assert old in FORMS[form]
    model = _graph(FORMS[form].replace(old, new))
    folded = _folded(model)
    assert len(of_type(folded, "Mul")) == 1


def test_values_that_heads_share() -> None:
    """One head of values for three of queries: a channel of the projection goes to three of the output."""
    body = FORMS["decomposed"].replace("value_split = Reshape(v, split)", "value_split = Reshape(v, split_one)")
    body = body.replace("MatMul(x, wv)", "MatMul(x, wv_one)").replace("Add(product, bv)", "Add(product, bv_one)")
    assert len(of_type(_folded(_graph(body)), "Mul")) == 1


@pytest.mark.parametrize("which", ["turned", "value"])
def test_channels_in_another_order(which: str) -> None:
    """Heads are as many as their size, so shapes do not tell."""
    constants = {
        "factors": RNG.uniform(0.2, 3, 9).astype(np.float32),
        "w": _array(9, 9),
        "weights": _array(2, 3, 3, 3),
        "split": np.array([0, 0, 3, 3], np.int64),
        "join": np.array([0, 0, 9], np.int64),
    }
    perms = {name: [0, 2, 3, 1] if name == which else [0, 2, 1, 3] for name in ("turned", "value")}
    text = f"""<ir_version: 10, opset_import: ["" : 23]> g (float[2, 3, 9] x) => (float[b, t, n] out) {{
        v = MatMul(x, w)
        value_split = Reshape(v, split)
        value = Transpose <perm = {perms["value"]}> (value_split)
        context = MatMul(weights, value)
        turned = Transpose <perm = {perms["turned"]}> (context)
        joined = Reshape(turned, join)
        out_smooth = Mul(joined, factors)
        out = Neg(out_smooth)
    }}"""
    model, x = parse(text, constants, {}), _array(2, 3, 9)
    folded = model.clone()
    fold_smoothing(folded)
    assert len(of_type(folded, "Mul")) == 1
    np.testing.assert_array_equal(*(values_inside(m, ["out"], {"x": x})["out"] for m in (folded, model)))


def test_a_value_projection_that_runs_twice_keeps_its_weights(here: Target) -> None:
    body = FORMS["native"].replace("q = MatMul(x, wq)", "q = MatMul(x, wv)")
    layers = {"value": VALUES["dynamic-token"]}
    lowered = lower_int8(_graph(body, {**MODULES, "q": "value"}), Quantization("any", layers), here)
    assert "factors" in lowered.graph.initializers


def test_a_model_whose_attention_outputs_are_smoothed(
    here: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_model(tiny("bert", "feature-extraction", tmp_path / "model"))
    paths = [f"model.encoder.layer.{i}.attention.output.dense" for i in (0, 1)]
    state = run_pass(Quantize(smooth=("*.attention.output.dense",)), state, PassContext(tmp_path, SENTENCES))
    exporter = Exporter(state, name="smoothed")
    assert state.quantization is not None
    quantization = state.quantization.of_part("encoder")
    assert all(quantization.layers[path].smoothing is not None for path in paths)
    with monkeypatch.context() as patch:
        patch.setattr(edgec.graph.lower_int8, "fold_smoothing", lambda model: None)
        plain = lower_int8(exporter.traced, quantization, here)
    folded = lower_int8(exporter.traced, quantization, here)
    divided, left = (
        [n for n in of_type(m, "Mul") if n.metadata_props.get(MODULE_KEY) in paths] for m in (plain, folded)
    )
    assert [module_of(node) for node in divided] == paths and not left
    ids = np.random.default_rng(0).integers(5, 100, (3, 12), dtype=np.int32)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    (got,), (expected,) = (open_graph(model).run(feed).values() for model in (folded, plain))
    # A last bit can tip the rounding of an activation.
    np.testing.assert_allclose(got, expected, atol=5e-3)
    untouched = dataclasses.replace(
        quantization, layers={p: q for p, q in quantization.layers.items() if p not in paths}
    )
    assert not np.allclose(next(iter(open_graph(lower_int8(exporter.traced, untouched, here)).run(feed).values())), got)
