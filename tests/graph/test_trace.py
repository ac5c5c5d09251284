"""The traced graph: where its nodes came from, nothing of the machine that made it, and the same bytes every time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from second_process import serialized

from edgec.errors import ModelError
from edgec.exporter import Exporter
from edgec.graph.store import open_graph
from edgec.graph.trace import MODULE_KEY, module_path, trace
from edgec.nn.parts import Part


def test_every_layer_is_found_by_its_module_path(exporter: Exporter) -> None:
    (part,) = exporter.state.parts.values()
    modules = dict(part.named_modules())
    products: dict[str, int] = {}
    for node in exporter.traced.graph.all_nodes():
        assert set(node.metadata_props) <= {MODULE_KEY}
        path = node.metadata_props.get(MODULE_KEY, "")
        assert path in modules
        if node.op_type in ("MatMul", "Gemm") and path:
            products[path] = products.get(path, 0) + 1
    linear = {p for p, m in modules.items() if isinstance(m, torch.nn.Linear)}
    assert products == dict.fromkeys(linear, 1)


def test_nodes_are_named_by_module_and_operator(exporter: Exporter) -> None:
    names = [str(node.name) for node in exporter.traced.graph.all_nodes()]
    assert len(set(names)) == len(names)
    assert "model.encoder.layer.0.attention.self.query/MatMul" in names


def test_the_graph_tells_nothing_of_the_machine_that_made_it(exporter: Exporter) -> None:
    repository = Path(__file__).parents[2]
    telling = ("site-packages", "pkg.torch", "Traceback", ".py:", str(repository), sys.prefix, str(Path.home()) + "/")
    for model in (exporter.traced, exporter.float_graph):
        data = serialized(model)
        assert [text for text in telling if text.encode() in data] == []
        proto = ir.to_proto(model)
        assert (proto.producer_name, proto.producer_version, proto.doc_string) == ("edgec", "", "")
        assert not proto.metadata_props and not proto.graph.metadata_props
        assert not any(node.doc_string for node in proto.graph.node)


def test_axes_and_types_of_inputs_and_outputs(exporter: Exporter) -> None:
    def described(values: object) -> dict[str, tuple[str, list[str]]]:
        return {v.name: (v.dtype.name, [str(d) for d in v.shape]) for v in values}  # type: ignore[attr-defined]

    graph = exporter.traced.graph
    assert described(graph.inputs) == {
        "input_ids": ("INT32", ["batch", "tokens"]),
        "attention_mask": ("INT32", ["batch", "tokens"]),
    }
    assert described(graph.outputs) == {"sentence_embedding": ("FLOAT", ["batch", "32"])}
    assert exporter.traced.opset_imports[""] == 23


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 64), (5, 7), (2, 64)])
def test_batch_and_tokens_are_free(exporter: Exporter, batch: int, tokens: int) -> None:
    (part,) = exporter.state.parts.values()
    rng = np.random.default_rng(batch * 100 + tokens)
    ids = rng.integers(5, 100, (batch, tokens), dtype=np.int32)
    mask = np.ones_like(ids)
    mask[1:, max(1, tokens // 2) :] = 0
    got = open_graph(exporter.traced).run({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
    with torch.inference_mode():
        (expected,) = part(torch.from_numpy(ids), torch.from_numpy(mask))
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


def test_padding_changes_no_row(exporter: Exporter) -> None:
    ids = np.random.default_rng(1).integers(5, 100, (2, 20), dtype=np.int32)
    mask = np.ones_like(ids)
    mask[0, 8:] = 0
    engine = open_graph(exporter.traced)
    together = engine.run({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
    ids[0, 8:] = 50  # what stands in the padding is not read
    again = engine.run({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
    alone = engine.run({"input_ids": ids[:1, :8], "attention_mask": mask[:1, :8]})["sentence_embedding"]
    np.testing.assert_allclose(together[0], alone[0], atol=1e-5)
    np.testing.assert_allclose(together, again, atol=1e-6)


@pytest.mark.parametrize(
    ("scopes", "path"),
    [
        ("['', 'model', 'model.pooler', 'linear_3']", "model.pooler"),
        ("['', 'add']", ""),
        ("['add']", ""),
        ("", ""),
        (None, ""),
        ("['', '_empty_nn_module_stack_from_metadata_hook', 'sym_size_int_5']", ""),
    ],
)
def test_module_path(scopes: str | None, path: str) -> None:
    assert module_path(scopes) == path


class _Branching(Part):
    """A model whose control flow depends on its input."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        if input_ids.sum() > 3:
            return (input_ids.float().mean(dim=1, keepdim=True),)
        return (attention_mask.float().mean(dim=1, keepdim=True),)


def test_a_model_that_cannot_be_exported(capfd: pytest.CaptureFixture[str]) -> None:
    part = _Branching(torch.nn.Identity(), "feature-extraction", pooling="mean")
    with pytest.raises(ModelError, match="torch could not export the model to ONNX opset 18: ") as caught:
        trace(part, opset=18, max_length=32)
    assert os.linesep not in caught.value.message
    assert "export.opset" in caught.value.hint
    assert capfd.readouterr() == ("", "")
