"""The rewritten graph against the numpy emulation, against onnxruntime on an emulated Haswell, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from devices.test_emulated import needs_x86_emulator
from emulation.cases import Array, Case, graph, products, some, with_float
from emulation.conftest import AnswersOf
from onnx import TensorProto, helper

from edgec.emulation import KINDS, Kind, Pairs, emulate
from edgec.emulation.products import product, saturated_pairs
from edgec.errors import UserError


def model_of(case: Case) -> ir.Model:
    return ir.serde.deserialize_model(onnx.load_from_string(case.model))


def run(case: Case, kind: Kind) -> Array:
    outputs = emulate(model_of(case), kind).run(case.feeds)
    assert list(outputs) == ["y"]
    return outputs["y"]


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_numpy_emulation(kind: Kind) -> None:
    for case in products():
        np.testing.assert_array_equal(run(case, kind), product(**case.product, kind=kind), err_msg=case.name)


@pytest.mark.emulated
@needs_x86_emulator
def test_operators_that_go_on_in_float_answer_as_haswell(answers_of: AnswersOf) -> None:
    found = answers_of("Haswell")
    for case in with_float():
        emulated = run(case, "avx2")
        if case.name.startswith("QAttention"):  # its float products may differ in the last bits
            np.testing.assert_allclose(emulated, found[case.name], rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(emulated, found[case.name], err_msg=case.name)
        assert np.abs(emulated - run(case, "vnni")).max() > 0.05, case.name


def test_pairs_are_counted_by_module() -> None:
    rng = np.random.default_rng(5)
    a, b = some(rng, np.uint8, (3, 9)), rng.choice(np.array([-128, 127], np.int8), (9, 4))
    for fed in (("a",), ("a", "b")):
        inputs = {"a": a, "b": b, "a_zero": np.uint8(9), "b_zero": None}
        case = Case("counted", graph("MatMulInteger", inputs, fed, "int32"), {name: inputs[name] for name in fed})
        engine = emulate(model_of(case), "avx2")
        assert engine.pairs == {"part": Pairs()}
        for runs in (1, 2):
            engine.run(case.feeds)
            assert engine.pairs == {"part": Pairs(runs * 3 * 4 * 5, runs * saturated_pairs(a, b))}
        assert saturated_pairs(a, b) > 0


def test_what_always_fits_is_left_as_it_is() -> None:
    """Seven-bit weights need no correction anywhere, and the operator stays, with unsigned weights."""
    rng = np.random.default_rng(6)
    inputs = {"a": some(rng, np.uint8, (3, 40)), "b": rng.integers(-64, 65, (40, 6)).astype(np.int8)}
    inputs |= {"a_scale": np.float32(0.1), "b_scale": np.float32(0.2), "a_zero": np.uint8(3), "b_zero": None}
    case = Case("small", graph("MatMulIntegerToFloat", inputs, ("a",)), {"a": inputs["a"]})
    expected = (product(inputs["a"], inputs["b"], "vnni", a_zero=3) * np.float32(0.02)).astype(np.float32)
    for kind in KINDS:
        engine = emulate(model_of(case), kind)
        assert engine.pairs == {}
        np.testing.assert_allclose(engine.run(case.feeds)["y"], expected, rtol=1e-6)


def test_weights_that_two_products_share() -> None:
    rng = np.random.default_rng(7)
    a, b = some(rng, np.uint8, (2, 16)), some(rng, np.int8, (16, 16))
    nodes = [
        helper.make_node("MatMulInteger", ["a", "b"], ["p"], name="one/MatMulInteger"),
        helper.make_node("MatMulInteger", ["a", "b"], ["q"], name="two/MatMulInteger"),
        helper.make_node("Add", ["p", "q"], ["y"], name="sum/Add"),
    ]
    described = [helper.make_tensor_value_info("a", TensorProto.UINT8, [None, 16])]
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [None, 16])
    made = helper.make_graph(nodes, "g", described, [y], [onnx.numpy_helper.from_array(b, "b")])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    # Without a zero point the format of a value is what the graph tells of it.
    for kind in KINDS:
        engine = emulate(ir.serde.deserialize_model(model), kind)
        np.testing.assert_array_equal(engine.run({"a": a})["y"], 2 * product(a, b, kind))
        assert set(engine.pairs) == ({"one", "two"} if kind == "avx2" else set())


def test_a_graph_in_memory_is_not_changed(tmp_path: Path) -> None:
    case = products()[10]
    model = model_of(case)
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    from_memory = emulate(model, "avx2").run(case.feeds)["y"]
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
    (tmp_path / "g.onnx").write_bytes(case.model)
    np.testing.assert_array_equal(emulate(tmp_path / "g.onnx", "avx2").run(case.feeds)["y"], from_memory)


def test_operators_that_are_not_covered_are_refused() -> None:
    rng = np.random.default_rng(8)
    inputs = {"a": some(rng, np.uint8, (2, 4)), "a_scale": np.float32(1), "a_zero": np.uint8(0)}
    inputs |= {"b": some(rng, np.int8, (4, 3)), "b_scale": np.float32(1), "b_zero": np.int8(0)}
    case = Case("gemm", graph("QGemm", inputs, ("a",)), {"a": inputs["a"]})
    with pytest.raises(UserError, match="does not cover QGemm") as caught:
        emulate(model_of(case), "avx2")
    assert "qemu://Haswell" in caught.value.hint

    blocks = {
        "x": np.ones((2, 32), np.float32),
        "b": np.ones((3, 1, 32), np.uint8),
        "scale": np.ones((3, 1), np.float32),
    }
    sizes = {"K": 32, "N": 3, "bits": 8, "block_size": 32}
    in_float = Case("float", graph("MatMulNBits", blocks, ("x",), **sizes), {"x": blocks["x"]})
    np.testing.assert_array_equal(run(in_float, "avx2"), np.full((2, 3), 32 * (1 - 128.0)))
    in_bytes = Case("bytes", graph("MatMulNBits", blocks, ("x",), accuracy_level=4, **sizes), {"x": blocks["x"]})
    with pytest.raises(UserError, match="does not cover MatMulNBits"):
        emulate(model_of(in_bytes), "avx2")
