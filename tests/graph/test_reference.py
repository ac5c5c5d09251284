"""Graph against torch: what onnxruntime computes is what the same roundings give in torch, on every family and scheme.

Decisions are written here from ranges observed here; edgec's own pass takes no part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs import constant, module_of, of_type
from tiny_models import FAMILIES, SENTENCES, tiny
from torch import nn

import edgec.exporter
from edgec.errors import ParityError
from edgec.exporter import Exporter
from edgec.graph.forms import DEFAULT_FORMS, apply_forms
from edgec.graph.lower_int8 import lower_int8
from edgec.graph.parity import ReferenceParity
from edgec.graph.store import open_graph
from edgec.models import load_model
from edgec.nn.fake_quantize import fake_quantized
from edgec.state import LayerQuantization, PointQuantization, Quantization
from edgec.target import Forms, Target, load_target

Ranges = dict[str, tuple[np.ndarray, np.ndarray]]
Export = Callable[[str], tuple[Exporter, Ranges]]

# Of a linear layer: fields of its LayerQuantization, and what `_decide` has to make up.
SCHEMES: dict[str, dict[str, Any]] = {
    "static": {"scheme": "static"},
    "static-smoothed-corrected": {"scheme": "static", "smoothing": True, "bias_correction": True},
    "static-6-bits": {"scheme": "static", "bits": 6},
    "static-4-bits-one-scale": {"scheme": "static", "bits": 4, "per_tensor": True, "clip": False},
    "static-outliers": {"scheme": "static", "outliers": True, "smoothing": True},
    "dynamic-tensor": {"scheme": "dynamic-tensor"},
    "dynamic-token": {"scheme": "dynamic-token", "bias_correction": True},
    "llm-int8": {"scheme": "llm-int8", "outliers": True},
    "weight-only-8": {"scheme": "weight-only", "bits": 8},
    "weight-only-4": {"scheme": "weight-only", "bits": 4, "block_size": 16},
    "weight-only-4-chosen": {"scheme": "weight-only", "bits": 4, "block_size": 32, "tensors": True},
}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """An Exporter of a family, which answers token by token, and the ranges of its layers' inputs; made once."""

    @cache
    def make(family: str) -> tuple[Exporter, Ranges]:
        layers = {} if family == "bert" else {"n_layers" if family == "distilbert" else "num_hidden_layers": 1}
        state = load_model(tiny(family, "token-classification", tmp_path_factory.mktemp(family), **layers))
        (part,) = state.parts.values()
        return Exporter(state, name=family), _ranges(part, state.tokenizer)

    return make


def _ranges(part: nn.Module, tokenizer: Any) -> Ranges:
    """The smallest and largest value of each input channel of the layers that run, and of the ids of a table."""
    seen: Ranges = {}

    def note(path: str, x: torch.Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1] if x.is_floating_point() else 1).numpy()
        low, high = seen.get(path, (rows[0], rows[0]))
        seen[path] = (np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0)))

    layers = {path: m for path, m in part.named_modules() if isinstance(m, nn.Linear | nn.Embedding)}
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, path=path: note(path, inputs[0]))
        for path, layer in layers.items()
    ]
    for text in SENTENCES:
        encoded = tokenizer(text, return_tensors="pt", return_token_type_ids=True)
        with torch.inference_mode():
            part(*(encoded[name].to(torch.int32) for name in part.input_names))  # type: ignore[union-attr]
    for handle in handles:
        handle.remove()
    return seen


def _decide(
    exporter: Exporter, ranges: Ranges, scheme_of: Callable[[int], str | None], embedding_bits: int | None = 8
) -> Quantization:
    """scheme_of: the number of a linear layer -> its scheme, None for float. The tokens' table has embedding_bits."""
    part = exporter.state.parts[exporter.part_name]
    layers: dict[str, LayerQuantization] = {}
    tensors: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    linear = 0
    for path in ranges:
        module = part.get_submodule(path)
        if isinstance(module, nn.Embedding):
            if embedding_bits is not None and module.num_embeddings >= len(exporter.state.tokenizer):
                layers[path] = LayerQuantization("embedding", "weight-only", bits=embedding_bits, block_size=16)
        elif module.out_features >= 16:
            name = scheme_of(linear)
            linear += 1
            if name is not None:
                layers[path] = _layer(SCHEMES[name], *ranges[path], module, rng)
                if "tensors" in SCHEMES[name]:
                    tensors |= _chosen(path, module, rng)
    return Quantization("mixed", layers, tensors=tensors)


def _layer(
    fields: dict[str, Any], low: np.ndarray, high: np.ndarray, module: nn.Linear, rng: np.random.Generator
) -> LayerQuantization:
    values = {name: value for name, value in fields.items() if name != "tensors"}
    kept, factors = np.ones(len(low), bool), np.ones(len(low), np.float32)
    if "outliers" in fields:
        widest = np.argsort(-np.maximum(np.abs(low), np.abs(high)))[:3]
        kept[widest] = False
        values["outliers"] = tuple(int(i) for i in np.sort(widest))
    if "smoothing" in fields:
        factors = rng.uniform(0.7, 1.5, len(low)).astype(np.float32)
        values["smoothing"] = tuple(float(f) for f in factors)
    if "bias_correction" in fields:
        values["bias_correction"] = tuple(float(c) for c in rng.standard_normal(module.out_features) / 50)
    if fields["scheme"] == "static":
        values["input_range"] = (float((low / factors)[kept].min()), float((high / factors)[kept].max()))
    return LayerQuantization("linear", **values)


def _chosen(path: str, module: nn.Linear, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """4-bit integers near the weights but not those of rounding to nearest, a scale each 32 inputs."""
    weight = module.weight.detach().numpy().T
    scale = np.stack([np.abs(weight[i : i + 32]).max(axis=0) / 7 for i in range(0, len(weight), 32)])
    rounded = np.floor(weight / np.repeat(scale, 32, axis=0)[: len(weight)] + rng.random(weight.shape))
    return {f"{path}/weight": np.clip(rounded, -8, 7).astype(np.int8), f"{path}/scale": scale.astype(np.float32)}


def _compared(
    exporter: Exporter, decision: Quantization, target: Target, forms: Forms = DEFAULT_FORMS
) -> ReferenceParity:
    """Nearly every row of every layer to the last bits of a float; answers but for a rounding here and there."""
    decided = _decided(exporter, decision)
    assert decided.state.quantization is not None
    graph = lower_int8(exporter.traced, decision, target)
    tanh = apply_forms(graph, forms).get("gelu") == "tanh"
    answers = decided.answers(open_graph(graph))
    found = decided.against_reference({"encoder": graph}, answers, decided.state.quantization, target, tanh_gelu=tanh)
    assert found.worst_share > 0.97 and found.mean_cosine > 0.9999
    return found


def _decided(exporter: Exporter, decision: Quantization) -> Exporter:
    """The same model with this decision about its part."""
    part = exporter.part_name
    layers, points, tensors = (
        {f"{part}:{path}": value for path, value in table.items()}
        for table in (decision.layers, decision.points, decision.tensors)
    )
    whole = Quantization(decision.scheme, layers, points=points, tensors=tensors)
    return exporter.of(dataclasses.replace(exporter.state, quantization=whole))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_every_scheme(family: str, scheme: str, export: Export, here: Target) -> None:
    exporter, ranges = export(family)
    decision = _decide(exporter, ranges, lambda _: scheme, embedding_bits=None)
    found = _compared(exporter, decision, here)
    # All layers, and the logits.
    assert found.layers == len(decision.layers) + 1 >= 6


# With 11 schemes and 8 layers or more in a family, every scheme has its turn in the three.
@pytest.mark.parametrize(("shift", "embedding_bits"), [(0, 8), (4, 4), (8, 8)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_a_mix_of_schemes(
    family: str, shift: int, embedding_bits: int, export: Export, here: Target
) -> None:
    exporter, ranges = export(family)
    names = list(SCHEMES)
    decision = _decide(exporter, ranges, lambda i: names[(i + shift) % len(names)], embedding_bits)
    assert any(layer.kind == "embedding" for layer in decision.layers.values())
    found = _compared(exporter, decision, here)
    # DeBERTa runs the projections of queries and keys twice, for tokens and for positions.
    assert found.layers == len(decision.layers) - (2 if family == "deberta-v2" else 0) >= 5


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_an_embedding_alone(family: str, bits: int, export: Export, here: Target) -> None:
    exporter, ranges = export(family)
    decision = _decide(exporter, ranges, lambda _: None, bits)
    assert [layer.kind for layer in decision.layers.values()] == ["embedding"]
    # Nothing is rounded but the table.
    assert _compared(exporter, decision, here).max_abs < 1e-5


def test_attention_that_takes_layers_in(export: Export, here: Target) -> None:
    exporter, ranges = export("bert")
    decision = _decide(exporter, ranges, lambda _: "static")
    found = _compared(exporter, decision, here, Forms(norm="skip", attention="qattention"))
    assert found.layers == 12 - 6 + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_gelu_by_tanh(family: str, export: Export, here: Target) -> None:
    exporter, ranges = export(family)
    found = _compared(exporter, _decide(exporter, ranges, lambda _: "static"), here, Forms(gelu="tanh"))
    assert found.layers >= 5


def test_the_other_gelu_in_torch_shows(export: Export, here: Target) -> None:
    exporter, ranges = export("bert")
    decided = _decided(exporter, _decide(exporter, ranges, lambda _: "static"))
    assert decided.state.quantization is not None
    graph = lower_int8(exporter.traced, decided.state.quantization.of_part("encoder"), here)
    apply_forms(graph, Forms(gelu="tanh"))
    answers = decided.answers(open_graph(graph))
    found = decided.against_reference({"encoder": graph}, answers, decided.state.quantization, here, tanh_gelu=False)
    assert found.worst_share < 0.95 and found.worst_layer.endswith("output.dense")


@pytest.mark.parametrize("bits", [8, 6])
def test_roundings_inside_attention_and_around_layer_norms(bits: int, export: Export, here: Target) -> None:
    exporter, ranges = export("bert")
    layers = _decide(exporter, ranges, lambda _: "static")
    inside = {"query": (-4.0, 4.0), "key": (-3.0, 4.0), "value": (-4.0, 3.0)}
    inside |= {"scores": (-5.0, 5.0), "probabilities": (0.0, 1.0)}
    factors = tuple(float(f) for f in np.random.default_rng(3).uniform(0.5, 2, 32).astype(np.float32))
    points = {
        "model.bert.encoder.layer.0.attention.self": PointQuantization("attention", bits, inside),
        "model.bert.encoder.layer.0.output.LayerNorm": PointQuantization("layer-norm", bits, {"output": (-3.0, 4.0)}),
        "model.bert.encoder.layer.1.output.LayerNorm": PointQuantization(
            "layer-norm", bits, {"input": (-6.0, 5.0), "output": (-3.0, 4.0)}, factors
        ),
    }
    found = _compared(exporter, dataclasses.replace(layers, points=points), here)
    without = _decided(exporter, layers)
    assert without.state.quantization is not None
    graph = lower_int8(exporter.traced, dataclasses.replace(layers, points=points), here)
    with pytest.raises(ParityError, match="does not compute what was decided"):
        answers = without.answers(open_graph(graph))
        without.against_reference({"encoder": graph}, answers, without.state.quantization, here)
    assert found.layers == 13


def test_an_output_layer_that_is_the_embedding_table(here: Target, tmp_path: Path) -> None:
    state = load_model(tiny("bert", "fill-mask", tmp_path))
    (part,) = state.parts.values()
    exporter, ranges = Exporter(state, name="tied"), _ranges(part, state.tokenizer)
    table, decoder = "model.bert.embeddings.word_embeddings", "model.cls.predictions.decoder"
    whole = _decide(exporter, ranges, lambda _: "static", 8)
    for names in ({table}, {decoder}, {table, decoder}):
        chosen = {path: layer for path, layer in whole.layers.items() if path in names}
        assert set(chosen) == names
        _compared(exporter, Quantization("static", chosen), here)


def _double(model: ir.Model, node: ir.Node) -> None:
    _replace(model, node, 3, lambda scales: scales * 2)


def _shift(model: ir.Model, node: ir.Node) -> None:
    _replace(model, node, 4, lambda zero: zero + 1)


def _unbias(model: ir.Model, node: ir.Node) -> None:
    node.replace_input_with(6, None)


def _one_channel(model: ir.Model, node: ir.Node) -> None:
    _replace(model, node, 1, lambda weights: np.where(np.arange(weights.shape[1]) == 5, 0, weights).astype(np.int8))


def _replace(model: ir.Model, node: ir.Node, index: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    before = node.inputs[index]
    array = constant(before)
    value = ir.Value(name="wrong", const_value=ir.tensor(change(array).astype(array.dtype), name="wrong"))
    model.graph.register_initializer(value)
    node.replace_input_with(index, value)


@pytest.mark.parametrize("wrong", ["encoder.layer.1.intermediate.dense", "encoder.layer.0.attention.self.query"])
@pytest.mark.parametrize("spoil", [_double, _shift, _unbias, _one_channel])
def test_one_wrong_layer_makes_no_bundle(
    spoil: Callable[[ir.Model, ir.Node], None],
    wrong: str,
    export: Export,
    here: Target,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exporter, ranges = export("bert")

    def lower(*args: Any) -> ir.Model:
        graph = lower_int8(*args)
        (node,) = (node for node in of_type(graph, "MatMulIntegerToFloat") if module_of(node) == f"model.bert.{wrong}")
        spoil(graph, node)
        return graph

    monkeypatch.setattr(edgec.exporter, "lower_int8", lower)
    decided = _decided(exporter, _decide(exporter, ranges, lambda _: "static"))
    # It, and no other: those after it are given what it computed.
    with pytest.raises(ParityError, match=rf"at model\.bert\.{wrong} 100% of its rows .* \(1 of 13 layers"):
        decided.write(tmp_path / "bundle", here)
    assert list(tmp_path.iterdir()) == []


def test_rounded_models_are_made_for_targets_that_need_another(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, ranges = export("bert")
    made: list[bool] = []

    def counted(module: nn.Module, quantization: Quantization, *, reduce_range: bool) -> nn.Module:
        made.append(reduce_range)
        return fake_quantized(module, quantization, reduce_range=reduce_range)

    monkeypatch.setattr(edgec.exporter, "fake_quantized", counted)
    decided = _decided(exporter, _decide(exporter, ranges, lambda _: "weight-only-8"))
    for name in ("x86_64-vnni", "arm64", "x86_64-avx2", "x86_64-avx2"):
        decided.write(tmp_path / name, load_target(name), force=True)
    assert made == [False, True]
    other = _decided(decided, _decide(exporter, ranges, lambda _: "weight-only-4"))
    found = other.write(tmp_path / "4", load_target("x86_64-avx2")).parity["int8_against_reference"]
    assert made == [False, True, True] and found["worst_share"] == 1
