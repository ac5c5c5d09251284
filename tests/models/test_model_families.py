"""Every family and task: the exported graph against transformers' own model, one unpadded text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tiny_models import FAMILIES, MAX_TOKENS, SENTENCES, TASKS, tiny
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from edgec.graph.trace import trace
from edgec.models import families, load_model
from edgec.nn.parts import Part
from edgec.state import ModelState

_CLASSES = {
    "feature-extraction": AutoModel,
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "fill-mask": AutoModelForMaskedLM,
}
_CASES = [(family, "feature-extraction") for family in FAMILIES]
_CASES += [(family, task) for family in ("bert", "xlm-roberta") for task in TASKS[1:]]
_LONG = "the cold river " * 40
_BATCHES: list[list[Any]] = [
    [SENTENCES[0]],
    [SENTENCES[3], SENTENCES[4], SENTENCES[1]],
    [""],
    [_LONG, "Yes."],
]
_PAIRS: list[list[Any]] = [[(SENTENCES[5], SENTENCES[0]), ("Yes.", SENTENCES[3])], [("where", _LONG)]]


def _alone(model: Any, tokenizer: Any, text: Any, task: str) -> list[np.ndarray]:
    """What transformers itself computes for one text: an ordinary call, nothing padded."""
    texts = text if isinstance(text, tuple) else (text,)
    encoded = tokenizer(*texts, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    with torch.no_grad():
        result = model(**encoded)
    if task == "feature-extraction":
        return [result.last_hidden_state[0].numpy().mean(axis=0)]
    if task == "question-answering":
        return [result.start_logits[0].numpy(), result.end_logits[0].numpy()]
    return [result.logits[0].numpy()]


def _session(state: ModelState, folder: Path) -> Any:
    import onnxruntime as ort  # only after edgec_runtime, which switches its telemetry off

    part = state.parts["encoder"]
    assert isinstance(part, Part)
    opset = families.FAMILIES[state.spec.family].opset
    model = trace(part, opset=opset, max_length=state.spec.max_length)
    attentions = sum(node.op_type == "Attention" for node in model.graph)
    assert attentions == (2 if part.boolean_mask else 0), "one native Attention a layer, where the family has it"
    ir.save(model, folder / "model.onnx")
    return ort.InferenceSession(folder / "model.onnx")


@pytest.mark.parametrize(("family", "task"), _CASES)
def test_graph_agrees_with_transformers(family: str, task: str, tmp_path: Path) -> None:
    # As in test_exporter, which then takes the same export.
    narrow = {} if task == "feature-extraction" else {"intermediate_size": 32}
    folder = tiny(family, task, tmp_path / "model", **narrow)
    state = load_model(folder)
    assert (state.spec.family, state.spec.task, state.spec.max_length) == (family, task, MAX_TOKENS)
    reference = _CLASSES[task].from_pretrained(folder, attn_implementation="eager").eval()
    part = state.parts["encoder"]
    assert isinstance(part, Part)
    session = _session(state, tmp_path)
    assert [i.name for i in session.get_inputs()] == list(part.input_names)
    assert [o.name for o in session.get_outputs()] == list(part.output_names)
    assert {i.type for i in session.get_inputs()} == {"tensor(int32)"}

    one_token = [np.full((1, 1), 7 if name == "input_ids" else 1, np.int32) for name in part.input_names[:2]]
    one_token += [np.zeros((1, 1), np.int32) for _ in part.input_names[2:]]
    with torch.no_grad():
        expected_outputs = part(*map(torch.from_numpy, one_token))
    outputs = session.run(None, dict(zip(part.input_names, one_token, strict=True)))
    for output, expected in zip(outputs, expected_outputs, strict=True):
        np.testing.assert_allclose(output, expected.numpy(), atol=1e-4)

    for batch in [*_BATCHES, *(_PAIRS if state.spec.pairs else [])]:
        encoded = state.tokenizer(batch, padding=True, truncation=True, return_tensors="np")
        outputs = session.run(None, {name: encoded[name].astype(np.int32) for name in part.input_names})
        for row, text in enumerate(batch):
            for output, expected in zip(outputs, _alone(reference, state.tokenizer, text, task), strict=True):
                per_token = expected.shape and task not in ("feature-extraction", "text-classification")
                found = output[row][: len(expected)] if per_token else output[row]
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_part_agrees_with_transformers_for_padded_rows(family: str, task: str, tmp_path: Path) -> None:
    folder = tiny(family, task, tmp_path)
    state = load_model(folder)
    part = state.parts["encoder"]
    assert isinstance(part, Part)
    reference = _CLASSES[task].from_pretrained(folder, attn_implementation="eager").eval()
    batch = list(SENTENCES)
    encoded = state.tokenizer(batch, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = part(*(encoded[name].to(torch.int32) for name in part.input_names))
    rows = []
    for row, text in enumerate(batch):
        for output, expected in zip(outputs, _alone(reference, state.tokenizer, text, task), strict=True):
            per_token = task not in ("feature-extraction", "text-classification")
            found = output[row].numpy()
            np.testing.assert_allclose(found[: len(expected)] if per_token else found, expected, rtol=1e-4, atol=1e-4)
        rows.append(outputs[0][row].flatten()[:3])
    assert torch.stack(rows).std(dim=0).min() > 1e-3, "a degenerate model proves nothing"


def test_module_paths_are_those_of_transformers(tmp_path: Path) -> None:
    state = load_model(tiny("bert", "text-classification", tmp_path))
    linears = {name for name, module in state.parts["encoder"].named_modules() if isinstance(module, torch.nn.Linear)}
    assert "model.bert.encoder.layer.0.attention.self.query" in linears
    assert "model.classifier" in linears


def test_pooler_of_an_embedding_model_is_dropped(tmp_path: Path) -> None:
    state = load_model(tiny("bert", "feature-extraction", tmp_path))
    assert not any("pooler" in name for name, _ in state.parts["encoder"].named_parameters())
