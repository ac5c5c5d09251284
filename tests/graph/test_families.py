"""Every family in every scheme: exported, run by onnxruntime, and near its float form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from edgec_runtime.engine import OnnxRuntimeEngine
from graphs import constant, module_of, of_type
from tiny_models import FAMILIES, SENTENCES

from edgec.exporter import Exporter
from edgec.graph.lower_int8 import lower_int8
from edgec.graph.store import open_graph
from edgec.passes import Quantize, run_pass
from edgec.state import LayerQuantization, PassContext, Quantization
from edgec.target import Target

Export = Callable[[str], Exporter]
Lowered = Callable[[str, str], tuple[ir.Model, OnnxRuntimeEngine]]

LINEAR = {
    "static": LayerQuantization("linear"),
    "dynamic-tensor": LayerQuantization("linear", "dynamic-tensor"),
    "dynamic-token": LayerQuantization("linear", "dynamic-token"),
    "llm-int8": LayerQuantization("linear", "llm-int8", outliers=(3, 11)),
    "weight-only": LayerQuantization("linear", "weight-only"),
    "4 bits": LayerQuantization("linear", "weight-only", bits=4, block_size=16),
}
# Weights are random and rows are short, so nothing averages out: real models come nearer.
FLOOR = {
    "static": 0.99,
    "dynamic-tensor": 0.985,
    "dynamic-token": 0.997,
    "llm-int8": 0.997,
    "weight-only": 0.9995,
    "4 bits": 0.96,
}


@pytest.fixture(scope="module")
def lowered(exported: Export, here: Target) -> Lowered:
    """The graph of a family with all of its decided layers in one scheme, and its engine; made once."""

    @cache
    def make(family: str, scheme: str) -> tuple[ir.Model, OnnxRuntimeEngine]:
        exporter = exported(family)
        assert exporter.state.quantization is not None
        layers = {}
        for key, layer in exporter.state.quantization.layers.items():
            if layer.kind == "linear":
                layer = dataclasses.replace(
                    LINEAR[scheme], input_range=layer.input_range if scheme == "static" else None
                )
            elif scheme == "4 bits":
                layer = dataclasses.replace(layer, bits=4, block_size=16)
            layers[key.partition(":")[2]] = layer
        model = lower_int8(exporter.traced, Quantization(scheme, layers), here)
        return model, open_graph(model)

    return make


def _embed(engine: OnnxRuntimeEngine, ids: list[np.ndarray], pad: int) -> np.ndarray:
    """One padded batch of rows of any length."""
    table = np.full((len(ids), max(map(len, ids))), pad, np.int32)
    mask = np.zeros_like(table)
    for i, row in enumerate(ids):
        table[i, : len(row)], mask[i, : len(row)] = row, 1
    return engine.run({"input_ids": table, "attention_mask": mask})["sentence_embedding"]


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def _rows(exporter: Exporter) -> list[np.ndarray]:
    # Texts that were not calibrated on stand beside those that were.
    texts = [*SENTENCES, "Bern and Egypt trade letters.", "A cold engine!", "who"]
    return [np.array(exporter.state.tokenizer(text)["input_ids"], np.int32) for text in texts]


@pytest.mark.parametrize("scheme", LINEAR)
@pytest.mark.parametrize("family", FAMILIES)
def test_int8_is_near_float(family: str, scheme: str, exported: Export, lowered: Lowered) -> None:
    exporter = exported(family)
    (part,) = exporter.state.parts.values()
    _, engine = lowered(family, scheme)
    rows = _rows(exporter)
    with torch.inference_mode():
        expected = np.concatenate([part(*(torch.from_numpy(x[None]) for x in (r, np.ones_like(r))))[0] for r in rows])
    alone = np.concatenate([_embed(engine, [row], exporter.manifest.preprocessing.pad_id) for row in rows])
    assert not np.allclose(alone, expected, atol=1e-4)  # it is int8 that ran
    assert _cosine(alone, expected).min() > FLOOR[scheme]


@pytest.mark.parametrize("scheme", LINEAR)
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows(family: str, scheme: str, exported: Export, lowered: Lowered) -> None:
    exporter = exported(family)
    _, engine = lowered(family, scheme)
    rows, pad = _rows(exporter), exporter.manifest.preprocessing.pad_id
    alone = np.concatenate([_embed(engine, [row], pad) for row in rows])
    together = _embed(engine, rows, pad)
    # A last bit that padding changes can tip a rounding and no more; a dynamic scale is that of the whole batch.
    floor = {"static": 0.9995, "dynamic-tensor": 0.985, "dynamic-token": 0.9995, "llm-int8": 0.9995}.get(
        scheme, 0.99999
    )
    assert _cosine(alone, together).min() > floor


@pytest.mark.parametrize("family", FAMILIES)
def test_float_graphs_pad_without_a_trace(family: str, exported: Export) -> None:
    exporter = exported(family)
    engine = open_graph(exporter.float_graph)
    rows, pad = _rows(exporter), exporter.manifest.preprocessing.pad_id
    alone = np.concatenate([_embed(engine, [row], pad) for row in rows])
    np.testing.assert_allclose(_embed(engine, rows, pad), alone, atol=1e-4)
    assert exporter.float_parity.max_abs < 1e-5


@pytest.mark.parametrize("scheme", LINEAR)
@pytest.mark.parametrize("family", FAMILIES)
def test_decided_layers_run_as_decided_and_no_others(
    family: str, scheme: str, exported: Export, lowered: Lowered
) -> None:
    exporter = exported(family)
    model, _ = lowered(family, scheme)
    assert exporter.state.quantization is not None
    layers = exporter.state.quantization.layers
    decided = set(_paths(layers, "linear"))
    # At least attention's (3 or 1, and 1) and the first of the feed-forward, in both layers.
    assert len(decided) >= 6
    operator = "MatMulNBits" if LINEAR[scheme].scheme == "weight-only" else "MatMulIntegerToFloat"
    products = {op: {module_of(node) for node in of_type(model, op)} for op in ("MatMulIntegerToFloat", "MatMulNBits")}
    assert {op: paths for op, paths in products.items() if paths} == {operator: decided}
    (record,) = exporter.state.history
    left = {key.partition(":")[2] for key in record.report["left_alone"]}
    for node in (*of_type(model, "MatMul"), *of_type(model, "Gemm")):
        weight = node.inputs[1]
        if weight is not None and weight.const_value is not None and constant(weight).ndim == 2:
            of_outliers = module_of(node) in decided and constant(weight).shape[0] == len(LINEAR[scheme].outliers)
            assert module_of(node) in left or of_outliers
    tables = {module_of(node) for node in of_type(model, "GatherBlockQuantized")}
    assert tables == (set(_paths(layers, "embedding")) if scheme == "4 bits" else set())


def _paths(layers: Mapping[str, LayerQuantization], kind: str) -> list[str]:
    return [key.partition(":")[2] for key, layer in layers.items() if layer.kind == kind]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_of_every_family(family: str, exported: Export, here: Target, tmp_path: Path) -> None:
    manifest = exported(family).write(tmp_path / "bundle", here)
    parity = manifest.parity["int8_against_float"]
    assert parity["mean_cosine"] > FLOOR["static"]
    assert manifest.family == family and manifest.parts[0].precision == "int8"


def test_families_that_have_it_keep_one_attention_node_a_layer(lowered: Lowered) -> None:
    native = {"bert", "distilbert", "roberta", "xlm-roberta", "electra"}
    found = {family for family in FAMILIES if len(of_type(lowered(family, "static")[0], "Attention")) == 2}
    assert found == native


def test_smoothing_holds_for_a_family_with_another_layout(exported: Export, here: Target, tmp_path: Path) -> None:
    exporter = exported("modernbert")
    floats = dataclasses.replace(exporter.state, quantization=None, history=())
    state = run_pass(Quantize(smooth=("*.Wqkv", "*.Wi")), floats, PassContext(tmp_path, SENTENCES))
    assert state.quantization is not None
    layers = {key.partition(":")[2]: layer for key, layer in state.quantization.layers.items()}
    engine = open_graph(lower_int8(exporter.traced, Quantization("static", layers), here))
    plain = open_graph(exporter.float_graph)
    rows, pad = _rows(exporter), exporter.manifest.preprocessing.pad_id
    assert _cosine(_embed(engine, rows, pad), _embed(plain, rows, pad)).min() > FLOOR["static"]
