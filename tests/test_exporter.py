"""One model, many bundles: all tasks through the runtime, precisions, targets, and the gates on the way."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import edgec_runtime
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from edgec_runtime import golden
from edgec_runtime.check import check
from edgec_runtime.manifest import TASKS
from tiny_models import SENTENCES, tiny

from edgec.errors import ParityError, PassError, UserError
from edgec.exporter import FP32, Exporter
from edgec.graph.float_graph import prepare_float
from edgec.models import load_model
from edgec.models.describe import describe
from edgec.passes import Quantize, run_pass
from edgec.state import LayerQuantization, ModelState, PassContext, Quantization
from edgec.target import Target, load_target

PAIRS = tuple(itertools.pairwise(SENTENCES))
Export = Callable[[str, str], Exporter]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """An Exporter of a family and a task, static int8; made once."""

    @cache
    def make(family: str, task: str) -> Exporter:
        folder = tmp_path_factory.mktemp("task")
        state = load_model(tiny(family, task, folder / "model", intermediate_size=32))
        texts = PAIRS if task == "question-answering" else SENTENCES
        return Exporter(run_pass(Quantize(), state, PassContext(folder, texts)), name=f"{family}-{task}")

    return make


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_from_model_to_answer(task: str, family: str, export: Export, here: Target, tmp_path: Path) -> None:
    exporter = export(family, task)
    manifest = exporter.write(tmp_path / "int8", here)
    assert (manifest.task, manifest.family, manifest.parts[0].precision) == (task, family, "int8")
    result = check(tmp_path / "int8")
    assert result.ok and result.failure is None and len(result.requests) == len(exporter.requests)
    exporter.write(tmp_path / "fp32", here, precision=FP32)
    assert check(tmp_path / "fp32").ok
    with edgec_runtime.load(tmp_path / "fp32") as before, edgec_runtime.load(tmp_path / "int8") as after:
        _require_alike(task, before, after, exporter.state)


def test_golden_vectors_of_a_classifier_have_a_pair(export: Export, here: Target, tmp_path: Path) -> None:
    exporter = export("bert", "text-classification")
    exporter.write(tmp_path / "fp32", here, precision=FP32)
    vectors = golden.read(tmp_path / "fp32" / "golden.npz")
    (index,) = (i for i, request in enumerate(vectors.requests) if isinstance(request, list))
    encoded = exporter.state.tokenizer(*vectors.requests[index], truncation=True, max_length=64, return_tensors="pt")
    assert encoded["token_type_ids"].any()
    np.testing.assert_array_equal(vectors.ids[index], encoded["input_ids"][0])
    (part,) = exporter.state.parts.values()
    with torch.inference_mode():
        (expected,) = part(*(encoded[name].to(torch.int32) for name in part.input_names))  # type: ignore[union-attr]
    np.testing.assert_allclose(vectors.outputs[index]["logits"], expected[0].numpy(), atol=1e-4)
    assert all(isinstance(request, str) for request in export("bert", "feature-extraction").requests)


def _require_alike(task: str, before: object, after: object, state: ModelState) -> None:
    """The float bundle answers as transformers does, the int8 bundle nearly so."""
    module = state.parts["encoder"]

    def torch_outputs(*texts: str) -> list[np.ndarray]:
        encoded = state.tokenizer(*texts, return_tensors="pt", return_token_type_ids=True)
        feeds = [encoded[name].to(torch.int32) for name in module.input_names]  # type: ignore[union-attr]
        with torch.inference_mode():
            return [value[0].numpy() for value in module(*feeds)]

    text, other = SENTENCES[0], SENTENCES[3]
    if task == "feature-extraction":
        (expected,) = torch_outputs(text)
        np.testing.assert_allclose(before.embed([text])[0], expected, atol=1e-4)
        close = after.embed([text])[0]
        assert close @ expected / np.linalg.norm(close) / np.linalg.norm(expected) > 0.99
    elif task == "text-classification":
        for request, texts in ((text, (text,)), ((text, other), (text, other))):
            (logits,) = torch_outputs(*texts)
            scores = np.exp(logits) / np.exp(logits).sum()
            (label,) = before.classify([request])
            assert label.label == state.spec.labels[int(scores.argmax())]
            assert label.score == pytest.approx(float(scores.max()), abs=1e-4)
            assert after.classify([request])[0].score == pytest.approx(label.score, abs=0.1)
    elif task == "token-classification":
        (logits,) = torch_outputs(text)
        np.testing.assert_allclose(before.raw([text])[0]["logits"], logits, atol=1e-4)
        # Special tokens belong to no span.
        expected_labels = {state.spec.labels[i] for i in logits[1:-1].argmax(axis=1)}
        assert {span.label for span in before.tag(text)} == {name[2:] for name in expected_labels if name != "O"}
        agreement = after.raw([text])[0]["logits"].argmax(axis=1) == logits.argmax(axis=1)
        assert agreement.mean() > 0.8
    elif task == "question-answering":
        start, end = torch_outputs(other, text)
        raw = before.raw([{"question": other, "context": text}])[0]
        np.testing.assert_allclose(raw["start_logits"], start, atol=1e-4)
        np.testing.assert_allclose(raw["end_logits"], end, atol=1e-4)
        answer = before.answer(other, text)
        assert answer.text == text[answer.start : answer.end]
        assert after.answer(other, text).score == pytest.approx(answer.score, abs=0.2)
    else:
        masked = text.replace("house", state.tokenizer.mask_token)
        (logits,) = torch_outputs(masked)
        ids = state.tokenizer(masked)["input_ids"]
        row = logits[ids.index(state.tokenizer.mask_token_id)]
        fills = before.fill_mask(masked)
        best = state.tokenizer.convert_ids_to_tokens(int(row.argmax()))
        assert fills[0].token == best
        assert fills[0].score == pytest.approx(float(np.exp(row.max()) / np.exp(row).sum()), abs=1e-4)
        assert after.fill_mask(masked)[0].score == pytest.approx(fills[0].score, abs=0.1)


def test_settings_of_a_task_reach_the_manifest(export: Export, tmp_path: Path) -> None:
    post = export("bert", "question-answering").manifest.postprocessing
    assert (post.null_answers, post.max_answer_tokens) == (False, 30)
    state = export("bert", "question-answering").state
    asked = describe(state, null_answers=True, max_answer_tokens=7, stride=5)
    assert (asked.postprocessing.null_answers, asked.postprocessing.max_answer_tokens) == (True, 7)
    assert (asked.preprocessing.long_text, asked.preprocessing.stride) == ("window", 5)


def test_windows_that_a_task_does_not_have(quantized: ModelState) -> None:
    with pytest.raises(UserError, match=r"export\.long_text is window, which feature-extraction cannot do"):
        Exporter(quantized, name="tiny", long_text="window")


def test_precisions_of_one_build(exporter: Exporter, here: Target, tmp_path: Path) -> None:
    int8 = exporter.write(tmp_path / "int8", here)
    fp32 = exporter.write(tmp_path / "fp32", here, precision=FP32)
    assert int8.build_id == fp32.build_id == exporter.build_id and len(int8.build_id) == 16
    assert (int8.parts[0].precision, fp32.parts[0].precision) == ("int8", "fp32")
    assert set(int8.parity) == {"float_against_torch", "int8_against_float", "int8_against_reference"}
    assert set(fp32.parity) == {"float_against_torch"}
    assert int8.parity["float_against_torch"]["max_abs"] < 1e-4
    reference = int8.parity["int8_against_reference"]
    # Six linear layers in each of two, and the output.
    assert reference["layers"] == 13 and reference["worst_share"] > 0.97
    # The same roundings in torch are nearer than none.
    assert 1 - reference["mean_cosine"] < 0.1 * (1 - int8.parity["int8_against_float"]["mean_cosine"])
    assert [record.name for record in int8.passes] == ["quantize"]
    assert fp32.passes == ()  # a float graph went through no quantization
    operators = {node.op_type for node in onnx.load(tmp_path / "fp32" / "encoder.onnx").graph.node}
    assert "MatMulIntegerToFloat" not in operators and "QuantizeLinear" not in operators
    assert fp32.golden.max_abs < int8.golden.max_abs and fp32.golden.min_cosine > int8.golden.min_cosine


def test_targets_of_one_build(exporter: Exporter, tmp_path: Path) -> None:
    found = {
        name: exporter.write(tmp_path / name, load_target(name)) for name in ("x86_64-vnni", "x86_64-avx2", "arm64")
    }
    assert {m.build_id for m in found.values()} == {exporter.build_id}
    assert {name: (m.target.arch, m.target.features) for name, m in found.items()} == {
        "x86_64-vnni": ("x86_64", ("vnni",)),
        "x86_64-avx2": ("x86_64", ()),
        "arm64": ("aarch64", ()),
    }
    graphs = {name: m.files for name, m in found.items()}
    data = {name: {f.path: f.sha256 for f in files}["encoder.onnx.data"] for name, files in graphs.items()}
    # Full range on both, seven bits between them.
    assert data["x86_64-vnni"] == data["arm64"] != data["x86_64-avx2"]


def test_a_float_bundle_asks_for_no_feature(exporter: Exporter, tmp_path: Path) -> None:
    manifest = exporter.write(tmp_path / "fp32", load_target("x86_64-vnni"), precision=FP32)
    assert manifest.target.features == ()


def test_another_decision_is_another_build(exporter: Exporter, quantized: ModelState) -> None:
    def build_id(quantization: Quantization | None) -> str:
        return exporter.of(dataclasses.replace(quantized, quantization=quantization)).build_id

    assert quantized.quantization is not None
    layers = dict(quantized.quantization.layers)
    key = "encoder:model.encoder.layer.0.output.dense"
    wider = Quantization("static", {**layers, key: LayerQuantization("linear", input_range=(-9.0, 9.0))})
    ids = [build_id(q) for q in (quantized.quantization, wider, Quantization("dynamic", layers), None)]
    assert ids[0] == exporter.build_id and len(set(ids)) == 4


def test_a_dynamic_scale_is_no_matter_of_batches(exporter: Exporter, here: Target, tmp_path: Path) -> None:
    dynamic = _decided(exporter, lambda path, layer: LayerQuantization(layer.kind, "dynamic-tensor"), scheme="dynamic")
    assert dynamic.write(tmp_path / "dynamic", here).execution.batch_invariant is False
    assert exporter.write(tmp_path / "static", here).execution.batch_invariant is True
    assert dynamic.write(tmp_path / "fp32", here, precision=FP32).execution.batch_invariant is True
    assert check(tmp_path / "dynamic").ok


def _decided(
    exporter: Exporter, change: Callable[[str, LayerQuantization], LayerQuantization], scheme: str = "static"
) -> Exporter:
    """The same model with another decision for each layer."""
    assert exporter.state.quantization is not None
    layers = {path: change(path, layer) for path, layer in exporter.state.quantization.layers.items()}
    return exporter.of(dataclasses.replace(exporter.state, quantization=Quantization(scheme, layers)))


def test_a_decision_that_breaks_the_model_makes_no_bundle(exporter: Exporter, here: Target, tmp_path: Path) -> None:
    def clipped(path: str, layer: LayerQuantization) -> LayerQuantization:
        return dataclasses.replace(layer, input_range=(0.0, 1e-3)) if layer.kind == "linear" else layer

    with pytest.raises(ParityError, match=r"the int8 graph does not answer .* worst output 'sentence_embedding'"):
        _decided(exporter, clipped).write(tmp_path / "bundle", here)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_is_not_in_the_graph_makes_no_bundle(exporter: Exporter, here: Target, tmp_path: Path) -> None:
    assert exporter.state.quantization is not None
    layers = {
        **exporter.state.quantization.layers,
        "encoder:model.nowhere": LayerQuantization("linear", input_range=(0.0, 1.0)),
    }
    other = exporter.of(dataclasses.replace(exporter.state, quantization=Quantization("static", layers)))
    with pytest.raises(PassError, match=r"model\.nowhere"):
        other.write(tmp_path / "bundle", here)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_onnx_gets_wrong_is_refused(quantized: ModelState, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate stands in the Exporter itself: a wrong float graph never gets as far as a bundle."""

    def wrong(model: ir.Model) -> ir.Model:
        graph = prepare_float(model)
        for node in graph.graph.all_nodes():
            if node.op_type == "LayerNormalization":
                node.attributes.add(ir.AttrFloat32("epsilon", 0.5))
        return graph

    monkeypatch.setattr("edgec.exporter.prepare_float", wrong)
    with pytest.raises(ParityError, match="'sentence_embedding' of the float graph differs from torch"):
        Exporter(quantized, name="wrong")
