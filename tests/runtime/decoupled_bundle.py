"""A tiny decoupled question-answering bundle, built by hand: two graphs that look at all tokens of what they read.

Part `input`: a table of token vectors, a vector a side, and the text's mean. Part `cross`: a vector a side, the row's
mean, and the place of a token in its row. Columns 0 and 1 of the table are what a token's logits start from.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from edgec_runtime import golden
from edgec_runtime.cpu import architecture
from edgec_runtime.loading import assemble
from edgec_runtime.manifest import (
    Execution,
    Golden,
    Manifest,
    Part,
    Postprocessing,
    Preprocessing,
    Source,
    TargetInfo,
)
from onnx import TensorProto, helper, numpy_helper
from tiny_bundles import SPECIALS, seal, tensors, wordpiece

WIDTH = 12
_TEXT = (
    "Ada Cara Bern Denmark Egypt works lives walked old new small green river house train letter garden in to the a "
    "near from who where what is was and cold warm music paper . , ? ##s ##ed"
)
WORDS = tuple(_TEXT.split())
ANSWERS = ("Bern", "Denmark", "Egypt")
"""Words that start and end an answer."""


def _graph(
    name: str, inputs: list[onnx.ValueInfoProto], nodes: list[str], outputs: dict[str, list[int | str]], **values
):
    """nodes: lines "output = Operator(input, input)"."""
    parsed = []
    for line in nodes:
        output, call = line.split(" = ")
        operator, arguments = call.rstrip(")").split("(")
        parsed.append(helper.make_node(operator, arguments.split(", "), [output]))
    for node in parsed:
        if node.op_type == "Cast":
            node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
    graph = helper.make_graph(
        parsed,
        name,
        inputs,
        [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _ints(*names: str) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "tokens"]) for name in names]


_MEAN = [
    "mask = Cast(attention_mask)",
    "mask3 = Unsqueeze(mask, last)",
    "masked = Mul(vectors, mask3)",
    "total = ReduceSum(masked, middle)",
    "count = ReduceSum(mask3, middle)",
    "mean = Div(total, count)",
    "around = Mul(mean, share)",
]
_AXES = {"last": np.array([-1]), "middle": np.array([1]), "share": np.float32(0.25)}


def table(seed: int) -> np.ndarray:
    """(vocabulary, WIDTH) float32."""
    values = np.random.default_rng(seed).normal(size=(len(SPECIALS) + len(WORDS), WIDTH)).astype(np.float32)
    values[:, :2] = -3
    for word in ANSWERS:
        values[len(SPECIALS) + WORDS.index(word), :2] = 4
    values[SPECIALS.index("[CLS]"), :2] = 1
    return values


def write_decoupled(
    folder: Path, *, seed: int = 3, max_length: int = 32, null_answers: bool = True, batch_invariant: bool = True
) -> Path:
    folder.mkdir(parents=True)
    sides = np.random.default_rng(seed + 1).normal(size=(2, WIDTH)).astype(np.float32) / 4
    below = _graph(
        "input",
        _ints("input_ids", "attention_mask", "token_type_ids"),
        [
            "words = Gather(table, input_ids)",
            "sides_of = Gather(sides, token_type_ids)",
            "vectors = Add(words, sides_of)",
            *_MEAN,
            "states = Add(vectors, around)",
            "text_embedding = Squeeze(mean, middle)",
        ],
        {"states": ["batch", "tokens", WIDTH], "text_embedding": ["batch", WIDTH]},
        table=table(seed),
        sides=sides,
        **_AXES,
    )
    above = _graph(
        "cross",
        [
            helper.make_tensor_value_info("states", TensorProto.FLOAT, ["batch", "tokens", WIDTH]),
            *_ints("attention_mask", "token_type_ids"),
        ],
        [
            "sides_of = Gather(sides, token_type_ids)",
            "vectors = Add(states, sides_of)",
            *_MEAN,
            "place = CumSum(mask, one)",
            "place3 = Unsqueeze(place, last)",
            "shift = Mul(place3, slope)",
            "seen = Add(vectors, around)",
            "placed = Add(seen, shift)",
            "start_logits = Gather(placed, zero)",
            "end_logits = Gather(placed, one)",
        ],
        {"start_logits": ["batch", "tokens"], "end_logits": ["batch", "tokens"]},
        sides=sides[::-1].copy(),
        slope=np.float32(-0.02),
        zero=np.array(0),
        one=np.array(1),
        **_AXES,
    )
    for node in above.graph.node[-2:]:
        node.attribute.append(helper.make_attribute("axis", 2))
    for name, model in (("input", below), ("cross", above)):
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, folder / f"{name}.onnx")
    wordpiece(list(WORDS)).save(str(folder / "tokenizer.json"))
    manifest = Manifest(
        format=1,
        name="tiny-decoupled",
        build_id=f"build-{seed}",
        task="question-answering",
        family="bert",
        target=TargetInfo("any", architecture()),
        parts=tuple(
            Part(name, f"{name}.onnx", "fp32", tensors(model.graph.input), tensors(model.graph.output))
            for name, model in (("input", below), ("cross", above))
        ),
        files=(),
        preprocessing=Preprocessing("tokenizer.json", max_length, 0, "window", max_length // 4, pairs=True),
        postprocessing=Postprocessing(max_answer_tokens=5, null_answers=null_answers),
        execution=Execution(batch_invariant=batch_invariant),
        golden=Golden("golden.npz", max_abs=1e-5, min_cosine=0.99999),
        source=Source("tests"),
    )
    with assemble(manifest, folder, verify=False) as loaded:
        golden.record(folder / "golden.npz", loaded, [{"question": "who works ?", "context": "Ada works in Bern ."}])
    seal(folder, manifest)
    return folder
