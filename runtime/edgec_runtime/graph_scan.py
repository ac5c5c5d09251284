"""What a graph asks for, read straight from the bytes of its ONNX file, before any library parses it.

A walker over the protobuf wire format (https://protobuf.dev/programming-guides/encoding/) that knows the few
fields of onnx.proto3 it needs and steps over everything else, weights included, by length: milliseconds for
any size.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Final

from .errors import FileDamaged, OperatorRefused
from .record import Record

ALLOWED_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_MAX_DEPTH: Final = 64  # messages within messages; protobuf itself stops at 100

# Field numbers of onnx.proto3: message -> field -> message it holds. Only what can lead to a node or a
# tensor.
_MODEL: Final = "ModelProto"
_FUNCTION: Final = "FunctionProto"
_NODE: Final = "NodeProto"
_ENTRY: Final = "StringStringEntryProto"
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    _MODEL: {7: "GraphProto", 20: "TrainingInfoProto", 25: _FUNCTION},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: _NODE, 5: "TensorProto", 15: "SparseTensorProto"},
    _FUNCTION: {7: _NODE, 11: "AttributeProto"},
    _NODE: {5: "AttributeProto"},
    "AttributeProto": {
        **{5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto"},
        **{22: "SparseTensorProto", 23: "SparseTensorProto"},
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: _ENTRY},
    _ENTRY: {},
}
_STRINGS: Final[dict[str, dict[int, str]]] = {
    _NODE: {4: "name", 7: "domain"},
    _FUNCTION: {1: "name", 10: "domain"},
    _ENTRY: {1: "key", 2: "value"},
}


class GraphFacts(Record):
    """operators: (domain, type) of every node, in subgraphs and local functions too. functions: (domain,
    name) of the functions that the model defines itself. external_data: the locations of tensors kept outside
    the file."""

    operators: set[tuple[str, str]] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)
    external_data: set[str] = field(default_factory=set)


def scan_file(path: Path) -> GraphFacts:
    """`scan` for a file, of which only the pages that hold structure are read."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise FileDamaged(f"{path} is empty", "copy or export the bundle again")
        # Not closed by hand: the traceback of an error may still hold slices of it.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return scan(memoryview(data), str(path))


def scan(data: bytes | memoryview, where: str) -> GraphFacts:
    """Read an ONNX model. `where` is the path named in errors. Raises FileDamaged for bytes that are no
    model."""
    facts = GraphFacts()
    if data[4:8] == b"ORTM":
        raise FileDamaged(f"{where} is an .ort model, not an ONNX file", "export the bundle again")
    try:
        _walk(_MODEL, memoryview(data), 0, facts)
    except (_Malformed, UnicodeDecodeError) as error:
        raise FileDamaged(f"{where} is not an ONNX model: {error}", "copy or export the bundle again") from None
    if not facts.operators:
        raise FileDamaged(f"{where} is not an ONNX model: it has no node", "copy or export the bundle again")
    return facts


def require_known_operators(facts: GraphFacts, where: str) -> None:
    """Raises OperatorRefused where a node is neither of stock onnxruntime's domains nor defined in the
    model."""
    refused = sorted(
        f"{domain}:{kind}"
        for domain, kind in facts.operators
        if domain not in ALLOWED_DOMAINS and (domain, kind) not in facts.functions
    )
    if refused:
        raise OperatorRefused(
            f"{where} asks for operators that onnxruntime does not bring: {', '.join(refused)}",
            "export the bundle again without custom operators",
        )


class _Malformed(Exception):
    pass


def _walk(message: str, data: memoryview, depth: int, facts: GraphFacts) -> None:
    if depth > _MAX_DEPTH:
        raise _Malformed(f"messages nested deeper than {_MAX_DEPTH}")
    children, names = _CHILDREN[message], _STRINGS.get(message, {})
    strings: dict[str, str] = {}
    for number, payload in _fields(data):
        if number in children:
            _walk(children[number], payload, depth + 1, facts)
        elif number in names:  # a repeated field that should be single: the last one counts, as in protobuf
            strings[names[number]] = str(payload, "utf-8")
    if message == _NODE:
        facts.operators.add((strings.get("domain", ""), strings.get("name", "")))
    elif message == _FUNCTION:
        facts.functions.add((strings.get("domain", ""), strings.get("name", "")))
    elif message == _ENTRY and strings.get("key") == "location":
        facts.external_data.add(strings.get("value", ""))


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, payload) of every length-delimited field; the other wire types hold nothing of interest."""
    position, end = 0, len(data)
    while position < end:
        # Nearly all tags and lengths are a single byte; they are read here, since a call costs more than the reading.
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = _varint(data, position - 1)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise _Malformed("a field with number 0")
        if wire == 2:
            length = data[position] if position < end else 0x80
            position += 1
            if length >= 0x80:
                length, position = _varint(data, position - 1)
            if length > end - position:
                raise _Malformed("a field that is longer than the file")
            yield number, data[position : position + length]
            position += length
        elif wire == 0:
            _, position = _varint(data, position)
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
            if position > end:
                raise _Malformed("it ends inside a number")
        else:
            raise _Malformed(f"wire type {wire}")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _Malformed("it ends inside a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _Malformed("a number of more than 10 bytes")
