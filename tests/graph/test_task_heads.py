"""What each family's tasks add to its body, in int8: traced, lowered and opened by onnxruntime.

Bodies are looked at in test_families.py, and two families in all tasks in test_exporter.py.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import constant, module_of, of_type
from tiny_models import FAMILIES, SENTENCES, TASKS, tiny

from edgec.graph.lower_int8 import lower_int8
from edgec.graph.store import open_graph
from edgec.graph.trace import trace
from edgec.models import load_model
from edgec.models.families import FAMILIES as FACTS
from edgec.nn.parts import Part
from edgec.passes import Quantize, run_pass
from edgec.state import PassContext, Quantization
from edgec.target import Target

PAIRS = tuple(itertools.pairwise(SENTENCES))
CASES = [(family, task) for family in FAMILIES if family not in ("bert", "xlm-roberta") for task in TASKS[1:]]


@pytest.mark.parametrize(("family", "task"), CASES)
def test_every_layer_that_was_decided_runs_in_int8(family: str, task: str, here: Target, tmp_path: Path) -> None:
    depth = "n_layers" if family == "distilbert" else "num_hidden_layers"
    state = load_model(tiny(family, task, tmp_path / "model", **{depth: 1}))
    texts = PAIRS if task == "question-answering" else SENTENCES
    quantization = run_pass(Quantize(), state, PassContext(tmp_path, texts)).quantization
    assert quantization is not None
    layers = {key.partition(":")[2]: layer for key, layer in quantization.layers.items()}
    (part,) = state.parts.values()
    assert isinstance(part, Part)
    traced = trace(part, opset=FACTS[family].opset, max_length=state.spec.max_length)
    model = lower_int8(traced, Quantization("static", layers), here)

    linear = {path for path, layer in layers.items() if layer.kind == "linear"}
    assert {module_of(node) for node in of_type(model, "MatMulIntegerToFloat")} == linear
    (table,) = set(layers) - linear
    rows = constant(model.graph.initializers[f"{table}.weight_int8"])
    assert rows.dtype == np.int8 and rows.shape == part.get_submodule(table).weight.shape
    # Where the output layer is the same matrix, no float copy of it stays behind.
    shapes = {constant(v).shape for v in model.graph.initializers.values() if constant(v).dtype == np.float32}
    assert not {rows.shape, rows.shape[::-1]} & shapes

    ids = np.array([state.tokenizer(SENTENCES[3])["input_ids"]], np.int32)
    feed = {name: np.ones_like(ids) if name == "attention_mask" else np.zeros_like(ids) for name in part.input_names}
    feed["input_ids"] = ids
    got = open_graph(model).run(feed)
    with torch.inference_mode():
        values = part(*(torch.from_numpy(feed[name]) for name in part.input_names))
    for name, value in zip(part.output_names, values, strict=True):
        assert got[name].shape == value.shape
        assert np.corrcoef(got[name].ravel(), value.numpy().ravel())[0, 1] > 0.9
