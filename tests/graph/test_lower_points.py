"""The points of the fully-quantized scheme in the graph, against the same roundings in torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exact import open_exact
from graphs import constant, module_of, of_type, values_inside
from second_process import serialized
from tiny_models import FAMILIES, SENTENCES, tiny

from edgec.errors import PassError
from edgec.graph.lower_int8 import lower_int8
from edgec.graph.trace import trace
from edgec.models import load_model
from edgec.models.families import FAMILIES as FACTS
from edgec.nn.fake_quantize import fake_quantized
from edgec.passes.points import observe_points
from edgec.state import LayerQuantization, ModelState, PassContext, PointQuantization, Quantization
from edgec.target import Target, load_target

Points = dict[str, PointQuantization]
Traced = Callable[..., tuple[ModelState, ir.Model, Points]]

ATTENTION = "model.encoder.layer.0.attention.self"
NORM = "model.encoder.layer.0.attention.output.LayerNorm"
IDS = np.random.default_rng(0).integers(5, 90, (3, 11), dtype=np.int32)
MASK = np.ones_like(IDS)
MASK[1, 6:] = 0
FEED = {"input_ids": IDS, "attention_mask": MASK}
WIDE = load_target("x86_64-vnni")
NARROW = load_target("x86_64-avx2")


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """A family's model, its float graph, and all its points in 8 bits; made once."""

    @cache
    def make(family: str, opset: int | None = None) -> tuple[ModelState, ir.Model, Points]:
        folder = tmp_path_factory.mktemp(family)
        state = load_model(tiny(family, "feature-extraction", folder / "model"))
        (part,) = state.parts.values()
        points, _ = observe_points(
            state,
            SENTENCES,
            PassContext(folder, SENTENCES),
            bits=8,
            softmax=True,
            layer_norms="all",
            layer_norm_smoothing=True,
        )
        of_part = {key.partition(":")[2]: point for key, point in points.items()}
        return state, trace(part, opset=opset or FACTS[family].opset, max_length=64), of_part

    return make


def decided(points: Points, layers: dict[str, LayerQuantization] | None = None) -> Quantization:
    return Quantization("fully-quantized", layers or {}, 0, points)


def answer(model: ir.Model, feed: dict[str, np.ndarray] = FEED) -> np.ndarray:
    return np.asarray(open_exact(model).run(feed)["sentence_embedding"])


def reference(state: ModelState, quantization: Quantization, target: Target = WIDE) -> np.ndarray:
    (part,) = state.parts.values()
    fake = fake_quantized(part, quantization, reduce_range=target.int8.reduce_range)
    with torch.inference_mode():
        return np.asarray(fake(torch.from_numpy(IDS), torch.from_numpy(MASK))[0].numpy())


def agree(got: np.ndarray, expected: np.ndarray, limit: float = 0.02) -> None:
    """A last bit of a float may tip a rounding, which moves an embedding a little, but never far."""
    assert np.abs(got - expected).max() < limit, np.abs(got - expected).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_that_of_torch(family: str, traced: Traced) -> None:
    state, model, points = traced(family)
    quantization = decided(points)
    lowered = lower_int8(model, quantization, WIDE)
    got = answer(lowered)
    agree(got, reference(state, quantization))
    assert np.abs(got - answer(model)).max() > 0.01  # and not that of the float graph
    alone = answer(lowered, {"input_ids": IDS[1:2, :6], "attention_mask": MASK[1:2, :6]})
    agree(got[1:2], alone)
    products = of_type(lowered, "MatMulIntegerToFloat")
    attention = {path for path, point in points.items() if point.kind == "attention"}
    assert sorted(map(module_of, products)) == sorted([*attention, *attention])
    left = {
        str(n.metadata_props.get("edgec.module")) for kind in ("Attention", "MatMul") for n in of_type(lowered, kind)
    }
    assert not left & attention


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("target", [WIDE, NARROW], ids=lambda target: target.name)
def test_fewer_bits_are_those_of_torch(bits: int, target: Target, traced: Traced) -> None:
    state, model, points = traced("bert")
    quantization = decided({path: dataclasses.replace(point, bits=bits) for path, point in points.items()})
    got = answer(lower_int8(model, quantization, target))
    agree(got, reference(state, quantization, target))
    eight = answer(lower_int8(model, decided(points), WIDE))
    exact = answer(model)
    assert np.abs(got - exact).mean() > 2 * np.abs(eight - exact).mean()


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_keys_and_values_have_seven_bits_where_sums_would_saturate(family: str, traced: Traced) -> None:
    state, model, points = traced(family)
    quantization = decided(points)
    agree(answer(lower_int8(model, quantization, NARROW)), reference(state, quantization, NARROW))
    for target, largest in ((WIDE, range(100, 129)), (NARROW, range(50, 65))):
        lowered = lower_int8(model, quantization, target)
        seconds = [str(node.inputs[1].name) for node in of_type(lowered, "MatMulIntegerToFloat")]
        found = values_inside(lowered, seconds, FEED)
        assert len(found) == 4 and {values.dtype for values in found.values()} == {np.dtype(np.int8)}
        assert max(np.abs(values.astype(int)).max() for values in found.values()) in largest


def test_an_older_opset_has_the_same_answer(traced: Traced) -> None:
    state, older, points = traced("distilbert", 18)
    assert not of_type(older, "Attention")
    lowered = lower_int8(older, decided(points), WIDE)
    agree(answer(lowered), reference(state, decided(points)))
    assert len(of_type(lowered, "MatMulIntegerToFloat")) == 4


def test_each_point_has_an_effect(traced: Traced) -> None:
    state, model, points = traced("bert")
    exact, answers = answer(model), []
    without_scores = {name: found for name, found in points[ATTENTION].ranges.items() if name != "scores"}
    for path, point in (
        (ATTENTION, points[ATTENTION]),
        (ATTENTION, dataclasses.replace(points[ATTENTION], ranges=without_scores)),
        (NORM, points[NORM]),
        (NORM, dataclasses.replace(points[NORM], smoothing=None)),
        (NORM, dataclasses.replace(points[NORM], ranges={"output": points[NORM].ranges["output"]}, smoothing=None)),
        (NORM, dataclasses.replace(points[NORM], ranges={"input": points[NORM].ranges["input"]})),
    ):
        quantization = decided({path: dataclasses.replace(point, bits=6)})
        got = answer(lower_int8(model, quantization, WIDE))
        agree(got, reference(state, quantization))
        assert all(np.abs(got - other).max() > 1e-3 for other in (exact, *answers))
        answers.append(got)


def test_masks_are_made_once(traced: Traced) -> None:
    _, model, points = traced("bert")
    assert len(of_type(lower_int8(model, decided(points), WIDE), "Where")) == 1


def test_attention_without_a_mask(traced: Traced) -> None:
    """As it is in a graph for texts that are never padded."""
    _, model, points = traced("bert")
    bare = model.clone()
    for node in of_type(bare, "Attention"):
        node.resize_inputs(3)
    everything = {"input_ids": IDS, "attention_mask": np.ones_like(MASK)}
    attention = {path: point for path, point in points.items() if point.kind == "attention"}
    got = answer(lower_int8(bare, decided(attention), WIDE), everything)
    agree(got, answer(lower_int8(model, decided(attention), WIDE), everything))


def test_linear_layers_read_the_integers_of_a_layer_norm(traced: Traced) -> None:
    state, model, points = traced("bert")
    after, (low, high) = "model.encoder.layer.0.intermediate.dense", points[NORM].ranges["output"]
    for input_range, shared in (((low, high), True), ((low, 2 * high), False)):
        layer = LayerQuantization("linear", input_range=input_range)
        quantization = decided({NORM: points[NORM]}, {after: layer})
        lowered = lower_int8(model, quantization, WIDE)
        (product,) = of_type(lowered, "MatMulIntegerToFloat")
        (residual,) = [node for node in of_type(lowered, "DequantizeLinear") if _reads(node, "LayerNormalization")]
        assert (product.inputs[0] is residual.inputs[0]) == shared
        agree(answer(lowered), reference(state, quantization))


def _reads(node: ir.Node, operator: str) -> bool:
    """Whether what it restores was quantized from the output of such an operator."""
    quantized = node.inputs[0].producer()
    return quantized.inputs[0].producer().op_type == operator


def test_smoothing_leaves_the_ranges_true(traced: Traced) -> None:
    """Factors of a linear layer are not folded into tensors whose ranges were observed without them."""
    factors = tuple(np.linspace(0.3, 3, 32).tolist())
    for family, norm, after in (
        ("modernbert", "model.layers.1.mlp_norm", "model.layers.1.mlp.Wi"),
        ("bert", ATTENTION, "model.encoder.layer.0.attention.output.dense"),
    ):
        state, model, points = traced(family)
        layer = LayerQuantization("linear", input_range=(-8.0, 8.0), smoothing=factors)
        quantization = decided({norm: points[norm]}, {after: layer})
        agree(answer(lower_int8(model, quantization, WIDE)), reference(state, quantization))


def test_a_point_is_never_dropped(traced: Traced) -> None:
    _, model, points = traced("bert")
    wrong = {**points, "model.encoder.layer.7.attention.self": points[ATTENTION]}
    with pytest.raises(PassError, match=r"1 points .* the first is model\.encoder\.layer\.7\.attention\.self"):
        lower_int8(model, decided(wrong), WIDE)


@pytest.mark.parametrize("change", ["is_causal", "softcap"])
def test_attention_of_another_kind_is_refused(change: str, traced: Traced) -> None:
    _, model, points = traced("bert")
    other = model.clone()
    for node in of_type(other, "Attention"):
        node.attributes[change] = ir.AttrInt64(change, 1) if change == "is_causal" else ir.AttrFloat32(change, 2.0)
    with pytest.raises(PassError, match="2 points"):
        lower_int8(other, decided(points), WIDE)


def test_the_traced_graph_is_left_as_it_is(traced: Traced) -> None:
    _, model, points = traced("bert")
    before = serialized(model)
    first, second = (serialized(lower_int8(model, decided(points), WIDE)) for _ in range(2))
    assert first == second and serialized(model) == before


def test_nodes_carry_their_module(traced: Traced) -> None:
    _, model, points = traced("bert")
    lowered = lower_int8(model, decided(points), WIDE)
    made = [node for kind in ("QuantizeLinear", "DequantizeLinear", "Softmax") for node in of_type(lowered, kind)]
    assert {module_of(node) for node in made} == set(points)
    scales = [constant(node.inputs[1]) for node in made if node.op_type == "QuantizeLinear"]
    assert all(scale.shape == () and scale > 0 for scale in scales)  # one scale a tensor
