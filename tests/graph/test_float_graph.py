"""The shipped float graph: other nodes, the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
from onnx.reference import ReferenceEvaluator
from second_process import serialized

from edgec.exporter import Exporter
from edgec.graph.float_graph import prepare_float
from edgec.graph.parity import sample_feeds
from edgec.graph.store import open_graph


def _feeding_layer_norms(model: ir.Model) -> list[str]:
    producers = [n.inputs[0].producer() for n in model.graph.all_nodes() if n.op_type == "LayerNormalization"]
    return sorted(producer.op_type for producer in producers if producer is not None)


def test_sums_feed_the_layer_norms(exporter: Exporter) -> None:
    before = _feeding_layer_norms(exporter.traced)
    assert before == ["Add"] * 5  # the embeddings and twice each layer
    assert _feeding_layer_norms(prepare_float(exporter.traced)) == ["Sum"] * 5


def test_the_numbers_are_those_of_the_traced_graph(exporter: Exporter) -> None:
    (part,) = exporter.state.parts.values()
    feeds = sample_feeds(part, vocabulary=100, pad_id=0, max_length=64)  # type: ignore[arg-type]
    before, after = open_graph(exporter.traced), open_graph(prepare_float(exporter.traced))
    for feed in feeds:
        np.testing.assert_array_equal(before.run(feed)["sentence_embedding"], after.run(feed)["sentence_embedding"])


def _operators_at_run_time(model: ir.Model, folder: Path) -> set[str]:
    """What onnxruntime makes of the graph with its options as they come."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(serialized(model), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node}


def test_no_consumer_falls_into_the_slow_fused_kernel(exporter: Exporter, tmp_path: Path) -> None:
    assert "SkipLayerNormalization" in _operators_at_run_time(exporter.traced, tmp_path)
    assert "SkipLayerNormalization" not in _operators_at_run_time(exporter.float_graph, tmp_path)


def test_the_traced_graph_is_left_as_it_is(exporter: Exporter) -> None:
    before = serialized(exporter.traced)
    prepare_float(exporter.traced)
    assert serialized(exporter.traced) == before


GRAPH = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[n, 4] x, float[n, 4] y) => (float[n, 4] out)
<float[4] scale = {1.0, 2.0, 3.0, 4.0}, float[4] shift = {0.5, 0.25, 0.0, -1.0}, float[4] unused = {1, 1, 1, 1}>
{
    first = Add(x, y)
    normed = LayerNormalization <axis = -1, epsilon = 0.5> (first, scale, shift)
    one = Exp(x)
    two = Exp(x)
    dead = Neg(y)
    product = Mul(one, two)
    out = Add(normed, product)
}
"""


def test_attributes_stay_and_what_is_double_or_dead_goes() -> None:
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(GRAPH))
    tidy = prepare_float(ir.from_proto(proto))
    operators = sorted(node.op_type for node in tidy.graph.all_nodes())
    assert operators == ["Add", "Exp", "LayerNormalization", "Mul", "Sum"]
    assert set(tidy.graph.initializers) == {"scale", "shift"}
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal((3, 4)).astype(np.float32) for name in ("x", "y")}
    expected = ReferenceEvaluator(proto).run(None, feed)[0]
    np.testing.assert_allclose(ReferenceEvaluator(ir.to_proto(tidy)).run(None, feed)[0], expected, rtol=1e-6)
