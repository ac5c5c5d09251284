"""The wire-format walker against onnx's own parser, and against garbage."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from edgec_runtime.errors import FileDamaged
from edgec_runtime.graph_scan import GraphFacts, scan
from onnx import TensorProto, helper, numpy_helper
from tiny_bundles import graph, random_table, wordpiece


def tensor(location: str) -> TensorProto:
    result = TensorProto(name=location, dims=[1], data_type=TensorProto.FLOAT)
    result.data_location = TensorProto.EXTERNAL
    result.external_data.add(key="location", value=location)
    result.external_data.add(key="offset", value="0")
    return result


def everything() -> onnx.ModelProto:
    """A model with an operator and an external tensor in every place that can hold one."""
    deep = helper.make_graph([helper.make_node("Deep", [], ["d"], domain="x")], "deep", [], [])
    deep.initializer.append(tensor("deep.bin"))
    branch = helper.make_graph([helper.make_node("If", ["c"], ["o"], then_branch=deep)], "branch", [], [])
    nodes = [
        helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["k"], value=tensor("attribute.bin")),
        helper.make_node("Many", [], ["m"], domain="y", graphs=[deep], all=[tensor("list.bin")]),
    ]
    sparse = onnx.SparseTensorProto(values=tensor("values.bin"), indices=tensor("indices.bin"))
    nodes[1].attribute.append(helper.make_attribute("sparse_value", sparse))
    top = helper.make_graph(nodes, "top", [], [])
    top.sparse_initializer.append(onnx.SparseTensorProto(values=tensor("s.bin"), indices=tensor("i.bin")))
    top.initializer.append(numpy_helper.from_array(np.zeros(100_000, np.float32), "big"))
    function = helper.make_function(
        "local", "F", ["a"], ["b"], [helper.make_node("Inner", ["a"], ["b"], domain="z")], []
    )
    model = helper.make_model(top, functions=[function])
    model.training_info.add().algorithm.node.append(helper.make_node("Train", [], [], domain="t"))
    return model


def test_everything_is_found() -> None:
    facts = scan(everything().SerializeToString(), "m")
    assert facts == GraphFacts(
        operators={("", "If"), ("", "Constant"), ("y", "Many"), ("x", "Deep"), ("z", "Inner"), ("t", "Train")},
        functions={("local", "F")},
        external_data={
            *{"deep.bin", "attribute.bin", "list.bin", "values.bin", "indices.bin", "s.bin", "i.bin"},
        },
    )


def test_the_last_of_a_repeated_field_counts() -> None:
    """As protobuf reads it: a second domain must not hide behind the first."""
    node = b"\x22\x03Mul" + b"\x3a\x00" + b"\x3a\x03bad"
    assert onnx.NodeProto.FromString(node).domain == "bad"
    model = b"\x3a" + bytes([len(node) + 2]) + b"\x0a" + bytes([len(node)]) + node
    assert scan(model, "m").operators == {("bad", "Mul")}


def test_cut_short_at_every_byte() -> None:
    data = graph("fill-mask", random_table(wordpiece(), 4)).SerializeToString()
    for end in [*range(0, 400), *range(400, len(data), 97)]:
        try:
            scan(data[:end], "m")
        except FileDamaged:
            continue
        onnx.ModelProto.FromString(data[:end])  # what the walker takes, protobuf takes


def test_garbage_ends_in_one_error() -> None:
    source = random.Random(5)
    good = everything().SerializeToString()[:3000]
    for _ in range(1500):
        data = bytearray(good)
        for _ in range(source.randint(1, 12)):
            data[source.randrange(len(data))] = source.randrange(256)
        try:
            scan(bytes(data), "m")
        except FileDamaged as error:
            assert error.message.startswith("m is not an ONNX model")
    for _ in range(500):
        with pytest.raises(FileDamaged):
            scan(source.randbytes(source.randint(0, 60)), "m")


def test_nesting_ends() -> None:
    """A subgraph within a subgraph, a thousand times."""
    inner = b""
    for _ in range(1000):
        for number in (6, 5, 1):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            inner = bytes([number << 3 | 2]) + _size(len(inner)) + inner
    with pytest.raises(FileDamaged, match="nested deeper"):
        scan(b"\x3a" + _size(len(inner)) + inner, "m")


def _size(length: int) -> bytes:
    size = b""
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return size + bytes([length])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x01",
        b"\xff" * 11,
        b"\x0b\x0c",
        b":\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x08\x08",
        b"\x00\x00\x00\x00ORTM" + b"\x00" * 20,
    ],
)
def test_what_is_no_model(data: bytes) -> None:
    with pytest.raises(FileDamaged):
        scan(data, "m")
