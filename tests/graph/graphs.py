"""Small graphs written by hand, and a look inside bigger ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
from exact import exact

from edgec.graph.trace import MODULE_KEY


def parse(text: str, constants: dict[str, np.ndarray], layers: dict[str, str]) -> ir.Model:
    """The graph of `text` in ONNX's own notation. layers: the output of a node -> the module that it came from."""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    for node in proto.graph.node:
        if node.output[0] in layers:
            node.metadata_props.add(key=MODULE_KEY, value=layers[node.output[0]])
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def values_inside(model: ir.Model, names: list[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Any tensors of the graph by name, as onnxruntime computes them on a CPU whose 8-bit sums are exact."""
    proto = ir.to_proto(exact(model))
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(dict.fromkeys(names), session.run(list(dict.fromkeys(names)), feed), strict=True))


def of_type(model: ir.Model, operator: str) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_type == operator]


def constant(value: ir.Value | None) -> np.ndarray:
    assert value is not None and value.const_value is not None
    array: np.ndarray = value.const_value.numpy()
    return array


def module_of(node: ir.Node) -> str:
    return str(node.metadata_props[MODULE_KEY])
