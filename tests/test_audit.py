"""edgec.auditing against counts made by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import edgec_runtime
import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime
import pytest
from edgec_runtime.errors import EngineFailed, FileDamaged, ManifestInvalid, OperatorRefused
from edgec_runtime.manifest import PassRecord
from float_bundles import write_float_bundle
from onnx import TensorProto, numpy_helper
from tiny_bundles import seal
from tiny_models import tiny

from edgec.auditing import GraphAudit, LayerMacs, audit, audit_graph
from edgec.auditing.macs import Macs
from edgec.cli.audit import audit as audit_command
from edgec.errors import UserError
from edgec.models import load_model

MICROSOFT = "com.microsoft"
BATCH, TOKENS, HIDDEN, HEADS = 2, 8, 32, 4


def constant(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def weight(name: str, *shape: int, dtype: str = "float32") -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).integers(-100, 100, shape)
    return constant(name, (values if dtype != "float32" else values / 100).astype(dtype))


def save(folder: Path, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], output: str) -> Path:
    """A graph with the input x (batch, tokens, 32)."""
    shape = ["batch", "tokens", HIDDEN]
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [oh.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        constants,
    )
    opsets = [oh.make_opsetid("", 23), oh.make_opsetid(MICROSOFT, 1)]
    path = folder / "model.onnx"
    onnx.save(oh.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def feed() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((BATCH, TOKENS, HIDDEN)).astype(np.float32)}


def quantize(x: str, out: str) -> onnx.NodeProto:
    return oh.make_node("QuantizeLinear", [x, "scale", "zero"], [out], f"quantize/{x}")


def product(quantized: str, weights: str, out: str) -> onnx.NodeProto:
    return oh.make_node(
        "MatMulIntegerToFloat",
        [quantized, weights, "scale", "weight_scale", "zero"],
        [out],
        f"layer/{out}/MatMulIntegerToFloat",
        domain=MICROSOFT,
    )


SCALES = [
    constant("scale", np.array(0.02, np.float32)),
    constant("zero", np.array(128, np.uint8)),
    constant("weight_scale", np.array(0.01, np.float32)),
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> GraphAudit:
    """Q, K, V in int8, attention in float, one more layer in float, one weight-only, and two islands."""
    heads = {"q_num_heads": HEADS, "kv_num_heads": HEADS}
    nodes = [
        quantize("x", "xq"),
        *(product("xq", f"{n}_w", n) for n in "qkv"),
        oh.make_node("Attention", ["q", "k", "v"], ["a"], "attention/Attention", **heads),
        oh.make_node("MatMul", ["a", "up_w"], ["up"], "up/MatMul"),
        oh.make_node("MatMulNBits", ["up", "down_w", "down_s"], ["down"], "down/MatMulNBits",
                     domain=MICROSOFT, K=64, N=32, bits=8, block_size=64),
        # Erf between the pairs keeps onnxruntime from fusing them away.
        quantize("down", "idle_q"),
        oh.make_node("Reshape", ["idle_q", "flat"], ["idle_flat"], "idle/Reshape"),
        oh.make_node("DequantizeLinear", ["idle_flat", "scale", "zero"], ["idle"], "idle/DequantizeLinear"),
        oh.make_node("Erf", ["idle"], ["y"], "out/Erf"),
    ]  # fmt: skip
    constants = [
        *SCALES,
        *(weight(f"{n}_w", HIDDEN, HIDDEN, dtype="int8") for n in "qkv"),
        weight("up_w", HIDDEN, 64),
        constant("down_w", np.full((32, 1, 64), 130, np.uint8)),
        constant("down_s", np.full((32, 1), 0.01, np.float32)),
        constant("flat", np.array([-1], np.int64)),
    ]
    path = save(tmp_path_factory.mktemp("mixed"), nodes, constants, "y")
    return audit_graph(path, feed(), left_alone={"up": "the last layer stays float"})


def test_shares_agree_with_a_hand_count(mixed: GraphAudit) -> None:
    rows = BATCH * TOKENS
    int8 = 3 * rows * HIDDEN * HIDDEN
    attention = BATCH * HEADS * 2 * TOKENS * TOKENS * (HIDDEN // HEADS)
    up, down = rows * HIDDEN * 64, rows * 64 * HIDDEN
    total = int8 + attention + up + down
    assert mixed.macs == Macs(int8, attention + up, down)
    assert mixed.int8_share == pytest.approx(int8 / total, rel=0.01)
    assert mixed.float_share == pytest.approx((attention + up) / total, rel=0.01)
    assert mixed.weight_only_share == pytest.approx(down / total, rel=0.01)
    assert sum(row.share for row in mixed.operators) == pytest.approx(1)
    assert sum(row.time_share for row in mixed.operators) == pytest.approx(1)


def test_layers_are_counted_by_themselves(tmp_path: Path) -> None:
    """In the order of the graph, whichever onnxruntime runs first, and inside an If; nodes without a module by name."""

    def of(module: str, node: onnx.NodeProto) -> onnx.NodeProto:
        node.metadata_props.add(key="edgec.module", value=module)
        return node

    branches = {
        name: oh.make_graph(
            [of("block.attention", oh.make_node("MatMul", ["b", weight_], [name], f"{name}/MatMul"))],
            name,
            [],
            [oh.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name, weight_ in (("then", "wide_w"), ("else", "narrow_w"))
    }
    nodes = [
        of("block.query", quantize("x", "xq")),
        of("block.query", product("xq", "q_w", "q")),
        of("block.key", oh.make_node("MatMul", ["x", "k_w"], ["k"], "k/MatMul")),
        of("block.key", oh.make_node("MatMul", ["k", "k_w"], ["k2"], "k/MatMul_2")),
        oh.make_node("Sum", ["q", "k2"], ["b"], "sum"),
        of("block.attention", oh.make_node("If", ["yes"], ["c"], "if", then_branch=branches["then"],
                                           else_branch=branches["else"])),
        oh.make_node("MatMulNBits", ["c", "n_w", "n_s"], ["y"], "head/MatMulNBits",
                     domain=MICROSOFT, K=64, N=32, bits=8, block_size=64),
    ]  # fmt: skip
    constants = [
        *SCALES,
        weight("q_w", HIDDEN, HIDDEN, dtype="int8"),
        weight("k_w", HIDDEN, HIDDEN),
        weight("wide_w", HIDDEN, 64),
        weight("narrow_w", HIDDEN, 64),
        constant("yes", np.array(True)),
        constant("n_w", np.full((32, 1, 64), 130, np.uint8)),
        constant("n_s", np.full((32, 1), 0.01, np.float32)),
    ]
    rows = BATCH * TOKENS
    assert audit_graph(save(tmp_path, nodes, constants, "y"), feed()).layers == (
        LayerMacs("block.query", rows * HIDDEN * HIDDEN, 0, 0),
        LayerMacs("block.key", 0, 2 * rows * HIDDEN * HIDDEN, 0),
        LayerMacs("block.attention", 0, rows * HIDDEN * 64, 0),
        LayerMacs("head/MatMulNBits", 0, 0, rows * 64 * 32),
    )


def test_operators_are_listed_with_what_they_multiplied(mixed: GraphAudit) -> None:
    table = {row.op: row for row in mixed.operators}
    assert mixed.operators[0].op == "MatMulIntegerToFloat"
    assert (table["MatMulIntegerToFloat"].count, table["MatMulIntegerToFloat"].domain) == (3, MICROSOFT)
    assert table["MatMulIntegerToFloat"].factors == ("uint8 x int8",)
    assert table["MatMul"].factors == ("float32 x float32",)
    assert table["Attention"].provider == "CPUExecutionProvider"
    assert table["QuantizeLinear"].macs.total == 0


def test_float_nodes_are_named_with_the_reason(mixed: GraphAudit) -> None:
    reasons = {node.name: node.reason for node in mixed.float_nodes}
    assert reasons == {
        "up/MatMul": "a pass left it alone: the last layer stays float",
        "attention/Attention": "onnxruntime has no int8 form of Attention",
    }
    assert [node.macs for node in mixed.float_nodes] == sorted((n.macs for n in mixed.float_nodes), reverse=True)


def test_an_island_is_found_through_a_reshape(mixed: GraphAudit) -> None:
    assert [(island.kind, island.nodes) for island in mixed.islands] == [
        ("quantized for nothing", ("quantize/down", "idle/DequantizeLinear"))
    ]


def test_dequantize_before_quantize_is_an_island(tmp_path: Path) -> None:
    nodes = [
        quantize("x", "xq"),
        oh.make_node("DequantizeLinear", ["xq", "other", "zero"], ["xd"], "back/DequantizeLinear"),
        quantize("xd", "xr"),
        product("xr", "w", "y"),
    ]
    constants = [
        *SCALES,
        constant("other", np.array(0.03, np.float32)),
        weight("w", HIDDEN, 16, dtype="int8"),
    ]
    audit = audit_graph(save(tmp_path, nodes, constants, "y"), feed())
    found = {(island.kind, island.nodes) for island in audit.islands}
    assert found == {
        ("quantized for nothing", ("quantize/x", "back/DequantizeLinear")),
        ("dequantized and quantized again", ("back/DequantizeLinear", "quantize/xd")),
    }
    assert audit.int8_share == 1.0


def test_reasons_for_other_float_products(tmp_path: Path) -> None:
    nodes = [
        quantize("x", "xq"),
        oh.make_node("DequantizeLinear", ["xq", "other", "zero"], ["xd"], "deq/DequantizeLinear"),
        oh.make_node("MatMul", ["xd", "w"], ["a"], "qdq/MatMul"),
        oh.make_node("Transpose", ["a"], ["at"], "t/Transpose", perm=[0, 2, 1]),
        oh.make_node("Erf", ["at"], ["ae"], "e/Erf"),
        oh.make_node("MatMul", ["a", "ae"], ["s"], "scores/MatMul"),
        oh.make_node("Erf", ["a"], ["af"], "f/Erf"),
        oh.make_node("MatMul", ["af", "plain_w"], ["p"], "plain/MatMul"),
        oh.make_node("ReduceSum", ["s"], ["ss"], "ss/ReduceSum", keepdims=0),
        oh.make_node("Mul", ["p", "ss"], ["y"], "y/Mul"),
    ]
    constants = [
        *SCALES,
        constant("other", np.array(0.03, np.float32)),
        weight("w", HIDDEN, 16),
        weight("plain_w", 16, 8),
    ]
    path = save(tmp_path, nodes, constants, "y")
    reasons = {node.name: node.reason for node in audit_graph(path, feed()).float_nodes}
    assert "dequantized first" in reasons["qdq/MatMul"]
    assert "both factors are activations" in reasons["scores/MatMul"]
    assert reasons["plain/MatMul"] == "no pass quantized it"
    plain = audit_graph(path, feed(), quantized=False)
    assert {n.name: n.reason for n in plain.float_nodes}["plain/MatMul"] == "the graph was not quantized"
    assert plain.int8_share == 0.0


def test_nodes_without_names_are_counted(tmp_path: Path) -> None:
    nodes = [
        oh.make_node("MatMul", ["x", "a_w"], ["a"]),
        oh.make_node("Erf", ["a"], ["b"]),
        oh.make_node("MatMul", ["b", "b_w"], ["y"]),
    ]
    path = save(tmp_path, nodes, [weight("a_w", HIDDEN, 16), weight("b_w", 16, 5)], "y")
    rows = BATCH * TOKENS
    assert audit_graph(path, feed()).macs.float == rows * HIDDEN * 16 + rows * 16 * 5


def test_an_operator_without_a_rule_is_named(tmp_path: Path) -> None:
    nodes = [
        oh.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm/LSTM", hidden_size=4),
    ]
    path = save(tmp_path, nodes, [weight("w", 1, 16, HIDDEN), weight("r", 1, 16, 4)], "y")
    assert audit_graph(path, feed()).uncounted == ("LSTM",)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    state = load_model(tiny("bert", "text-classification", folder / "model"))
    left_alone = {"encoder:model.classifier": "it is too small to matter"}
    record = PassRecord("quantize", {}, {"left_alone": left_alone})
    return write_float_bundle(state, folder / "bundle", ["Ada was cold.", ["Ada", "Bern"]], (record,))


def test_a_bundle_is_run_on_as_many_tokens_as_asked_for(bundle: Path) -> None:
    report = audit(bundle, tokens=10)
    # Two layers of hidden 32: Q, K, V and the output, then two layers of the configured width; then the head.
    config = json.loads((bundle.parent / "model" / "config.json").read_text())
    linear = 2 * 10 * (4 * 32 * 32 + 2 * 32 * config["intermediate_size"])
    attention = 2 * 2 * 10 * 10 * 32
    head = 32 * 32 + 32 * 3
    assert report.parts["encoder"].macs == Macs(float=linear + attention + head)
    assert (report.tokens, report.int8_share, report.target) == (10, 0.0, "any")
    reasons = {node.name: node.reason for node in report.parts["encoder"].float_nodes}
    assert sum("too small to matter" in reason for reason in reasons.values()) == 1
    assert sum("no int8 form of Attention" in reason for reason in reasons.values()) == 2
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["parts"]["encoder"]["operators"]
    summary = report.summary()
    assert (summary["int8_share"], summary["float_share"], summary["weight_only_share"]) == (0, 1, 0)
    assert sum(layer["float"] for layer in summary["layers"]) == linear + attention + head
    assert summary["layers"][3] == {
        **{"layer": "model.bert.encoder.layer.0.attention.self", "int8": 0},
        **{"float": attention // 2, "weight_only": 0},
    }
    assert set(summary["operators"][0]) == {"op", "count", "share", "time_share"}


def test_the_tokens_default_to_what_the_bundle_takes(bundle: Path) -> None:
    assert audit(bundle).tokens == 64
    with pytest.raises(UserError, match="1 to 64 tokens, not 65"):
        audit(bundle, tokens=65)


def test_a_damaged_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / "model.onnx").write_bytes(b"x" + (copy / "model.onnx").read_bytes()[1:])
    with pytest.raises(FileDamaged):
        audit(copy)


def test_a_graph_that_the_runtime_refuses_is_refused_alike(bundle: Path, tmp_path: Path) -> None:
    """Resealed, so that only the graph itself is wrong."""

    def foreign(graph: onnx.ModelProto) -> None:
        graph.graph.node[-1].domain = "com.example"
        graph.opset_import.append(oh.make_opsetid("com.example", 1))

    def unknown(graph: onnx.ModelProto) -> None:
        graph.graph.node[-1].op_type = "NoSuchOperator"

    def unsound(graph: onnx.ModelProto) -> None:
        graph.graph.node[-1].input[0] = "nowhere"

    def renamed(graph: onnx.ModelProto) -> None:
        graph.graph.output[0].name = graph.graph.node[-1].output[0] = "something"

    cases = {foreign: OperatorRefused, unknown: OperatorRefused, unsound: EngineFailed, renamed: ManifestInvalid}
    for change, error in cases.items():
        copy = Path(shutil.copytree(bundle, tmp_path / change.__name__))
        graph = onnx.load(copy / "model.onnx", load_external_data=False)
        change(graph)
        onnx.save(graph, copy / "model.onnx")
        seal(copy)
        with pytest.raises(error) as at_load:
            edgec_runtime.load(copy)
        with pytest.raises(error) as at_audit:
            audit(copy)
        assert at_audit.value.message == at_load.value.message


def test_a_run_that_fails_is_told_by_part(tmp_path: Path) -> None:
    nodes = [oh.make_node("MatMul", ["x", "w"], ["y"])]
    path = save(tmp_path, nodes, [weight("w", HIDDEN, 16)], "y")
    with pytest.raises(EngineFailed, match=r"failed in part 'model\.onnx' on x float32\[2, 3\]"):
        audit_graph(path, {"x": np.zeros((2, 3), np.float32)})


def test_sessions_are_opened_as_the_runtime_opens_them(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    session = onnxruntime.InferenceSession

    def recording(*args: object, **options: object) -> onnxruntime.InferenceSession:
        settings = next(value for value in args if isinstance(value, onnxruntime.SessionOptions))
        seen.append((options["providers"], settings.graph_optimization_level, settings.intra_op_num_threads))
        return session(*args, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recording)
    edgec_runtime.load(bundle).close()
    audit(bundle)
    assert len(seen) == 2 and seen[0] == seen[1]


def test_the_command_shows_tables_and_writes_json(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    audit_command(bundle, tokens=8, json=tmp_path / "audit.json")
    shown = capsys.readouterr().out
    assert "weight-only" in shown and "it is too small to matter" in shown and "MatMul" in shown
    written = json.loads((tmp_path / "audit.json").read_text())
    audit_command(bundle, tokens=8, json=Path("-"))
    printed = json.loads(capsys.readouterr().out)
    assert printed["parts"]["encoder"]["macs"] == written["parts"]["encoder"]["macs"]
    assert printed["tokens"] == 8
