"""A torch model that follows a graph: rows by hand, and what it leaves behind."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs import module_of, of_type
from torch import nn

from edgec.exporter import Exporter
from edgec.graph.follow import Agreement, Follower
from edgec.graph.lower_int8 import lower_int8
from edgec.nn.fake_quantize import fake_quantized
from edgec.nn.parts import Part
from edgec.state import LayerQuantization
from edgec.target import Target


def test_rows_by_hand() -> None:
    expected = np.array([[[1.0, -4.0], [0.5, 0.0]], [[0.0, 2.0], [3.0, 0.0]]], np.float32)
    got = expected.copy()
    got[0, 0, 0] += 0.0003  # of a largest element of 4
    got[1, 0, 1] += 0.0005
    found = Agreement.of(expected, got)
    assert (found.runs, found.share) == (1, 0.75) and found.largest == pytest.approx(0.0005 / 4, rel=1e-2)
    assert Agreement.of(expected, expected) == Agreement(1, 1.0, 0.0)
    zeros = np.zeros((2, 3), np.float32)
    assert Agreement.of(zeros, zeros).share == 1
    for wrong in (np.nan, np.inf):
        got[0, 1, 1] = wrong
        assert Agreement.of(expected, got) == Agreement(1, 0.5, np.inf)


def test_texts_count_alike_however_long() -> None:
    total = Agreement() + Agreement(1, 1.0, 1e-6) + Agreement(1, 0.0, 0.5) + Agreement(2, 0.5, 0.0)
    assert total == Agreement(4, 0.5, 0.5)


@pytest.fixture
def rounded(exporter: Exporter, here: Target) -> tuple[ir.Model, Part, dict[str, LayerQuantization]]:
    """The int8 graph, its model in torch, and the decision."""
    assert exporter.state.quantization is not None
    decided = exporter.state.quantization.of_part("encoder")
    part = exporter.state.parts["encoder"]
    assert isinstance(part, Part)
    fake = fake_quantized(part, decided, reduce_range=here.int8.reduce_range)
    return lower_int8(exporter.traced, decided, here), fake, dict(decided.layers)


def _feeds(part: Part) -> dict[str, np.ndarray]:
    ids = np.array([[2, 50, 61, 72, 3]], np.int32)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {name: feeds[name] for name in part.input_names}


def test_layers_are_compared_in_order_and_let_go(
    rounded: tuple[ir.Model, Part, dict[str, LayerQuantization]],
) -> None:
    graph, part, layers = rounded
    outputs = [value.name for value in graph.graph.outputs]
    follower = Follower(graph, part, layers)
    follower.run(_feeds(part))
    names = list(follower.agreement)
    linear = [path for path, layer in layers.items() if layer.kind == "linear"]
    assert names == [*linear, "sentence_embedding"] and len(linear) == 12
    assert all(found == Agreement(1, 1.0, found.largest) for found in follower.agreement.values())
    follower.run(_feeds(part))
    assert {found.runs for found in follower.agreement.values()} == {2}
    # The graph has the outputs that it had, and no layer of the model follows any longer.
    assert [value.name for value in graph.graph.outputs] == outputs
    assert not any(module._forward_hooks for module in part.modules())
    part.output_names = ("sentence_embedding", "missing")
    with pytest.raises(ValueError):
        follower.run(_feeds(part))
    assert not any(module._forward_hooks for module in part.modules())


def test_what_follows_a_wrong_layer_is_given_what_the_graph_has(
    rounded: tuple[ir.Model, Part, dict[str, LayerQuantization]],
) -> None:
    graph, part, layers = rounded
    path = "model.encoder.layer.0.attention.output.dense"
    with torch.no_grad():
        part.get_submodule(path).bias.add_(torch.arange(32) * 0.1)
    found = Follower(graph, part, layers)
    found.run(_feeds(part))
    assert [name for name, agreement in found.agreement.items() if agreement.share < 1] == [path]
    assert found.agreement[path].share == 0


def test_a_layer_without_one_output_of_its_own_is_not_compared(
    rounded: tuple[ir.Model, Part, dict[str, LayerQuantization]],
) -> None:
    graph, part, layers = rounded
    path = "model.encoder.layer.1.output.dense"
    (node,) = (node for node in of_type(graph, "MatMulIntegerToFloat") if module_of(node) == path)
    twin = ir.Node(node.domain, node.op_type, node.inputs, num_outputs=1, metadata_props=dict(node.metadata_props))
    graph.graph.insert_after(node, twin)
    follower = Follower(graph, part, layers)
    follower.run(_feeds(part))
    assert path not in follower.agreement and len(follower.agreement) == 12


def test_smoothing_that_a_layer_took_over_is_undone(
    rounded: tuple[ir.Model, Part, dict[str, LayerQuantization]],
) -> None:
    """As where the division by the factors of attention's output went into the values."""
    graph, part, layers = rounded
    path = "model.encoder.layer.1.attention.self.value"
    factors = tuple(np.random.default_rng(0).uniform(0.5, 2, 32).astype(np.float32).tolist())

    class Multiplied(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) * torch.tensor(factors)  # type: ignore[no-any-return]

    inner = part.get_submodule("model.encoder.layer.1.attention.self")
    inner.value = Multiplied(inner.value)
    strict = Follower(graph, part, layers)
    strict.run(_feeds(part))
    assert strict.agreement[path].share == 0
    layers["reader"] = LayerQuantization("linear", smoothing=factors)
    knowing = Follower(graph, part, layers)
    knowing.run(_feeds(part))
    assert knowing.agreement[path].share == 1
    # What the graph has was multiplied before it went on, and the reader is none the wiser.
    assert knowing.agreement["model.encoder.layer.1.attention.output.dense"].share == 0
