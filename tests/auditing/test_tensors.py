"""Tensor-by-tensor error: graphs whose error can be worked out by hand, and a real one against a loop in numpy."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from edgec_runtime import golden, integrity
from edgec_runtime.errors import FileDamaged
from edgec_runtime.integrity import read_manifest
from edgec_runtime.manifest import MANIFEST_FILE
from onnx import TensorProto, helper, numpy_helper
from tiny_bundles import graph, random_table, wordpiece, write_bundle

from edgec.auditing import TensorError, tensor_errors, worst
from edgec.auditing.profile import MODULE_KEY
from edgec.cli.main import invoke
from edgec.errors import UserError
from edgec.exporter import Exporter
from edgec.graph import trace
from edgec.target import Target

# Of the nodes of tiny_bundles.graph, by output. "pool" has two nodes around that of "count": the last one counts.
MODULES = {
    **{"vectors": "embed", "mask": "masks.float", "total": "pool", "count": "count"},
    **{"pooled": "pool", "projected": "head"},
}
Change = Callable[[onnx.ModelProto], None]


def tagged(modules: dict[str, str] = MODULES) -> onnx.ModelProto:
    model = graph("feature-extraction", random_table(wordpiece()))
    for node in model.graph.node:
        if module := modules.get(node.output[0]):
            node.metadata_props.add(key=MODULE_KEY, value=module)
    return model


def bundle(folder: Path, change: Change | None = None, modules: dict[str, str] = MODULES) -> Path:
    model = tagged(modules)
    if change is not None:
        change(model)
    return write_bundle(folder, "feature-extraction", model=model)


def weights(model: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> None:
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor)), np.float32), name))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(tmp_path_factory.mktemp("tensors") / "baseline")


def test_a_known_error_is_found_where_it_arises(baseline: Path, tmp_path: Path) -> None:
    """The head gives 1.1 x: the noise is 0.1 of the signal, 20 dB; all before it is equal."""
    other = bundle(tmp_path / "other", lambda model: weights(model, "head", lambda head: 1.1 * head))
    errors = tensor_errors(other, baseline)
    assert [error.module for error in errors] == ["embed", "masks.float", "count", "pool", "head"]
    assert errors[:4] == [TensorError(module, None, 1.0) for module in ("embed", "masks.float", "count", "pool")]
    assert errors[4].snr_db == pytest.approx(20, abs=1e-3) and errors[4].cosine == pytest.approx(1, abs=1e-6)
    assert worst(errors) == [errors[4]]


def test_an_error_goes_on_along_the_depth(baseline: Path, tmp_path: Path) -> None:
    """Half the table: every tensor after it is half of what it was."""
    other = bundle(tmp_path / "other", lambda model: weights(model, "table", lambda table: table / 2))
    found = {error.module: error for error in tensor_errors(other, baseline)}
    for module in ("embed", "pool", "head"):
        assert found[module].snr_db == pytest.approx(10 * math.log10(4), abs=1e-4)
    assert found["masks.float"].snr_db is None


def test_ratios_without_a_number(baseline: Path, tmp_path: Path) -> None:
    nothing = bundle(tmp_path / "nothing", lambda model: weights(model, "head", np.zeros_like))
    found = {error.module: error for error in tensor_errors(nothing, baseline)}
    assert (found["head"].snr_db, found["head"].cosine) == (0, 0)
    found = {error.module: error for error in tensor_errors(baseline, nothing)}
    assert (found["head"].snr_db, found["head"].cosine) == (None, 0)
    assert json.dumps([found["head"].cosine], allow_nan=False)
    broken = bundle(tmp_path / "broken", lambda model: weights(model, "head", lambda head: head * np.inf))
    errors = tensor_errors(broken, baseline)
    assert worst(errors) == [TensorError("head", None, 0.0)]


def test_the_order_of_the_worst() -> None:
    errors = [TensorError(*row) for row in (("a", 12.0, 0.9), ("b", None, 1.0), ("c", 3.0, 0.8), ("d", None, 0.0))]
    assert [error.module for error in worst(errors, 9)] == ["d", "c", "a", "b"]
    assert [error.module for error in worst(errors, 2)] == ["d", "c"]


def test_modules_that_cannot_be_compared_are_left_out(baseline: Path, tmp_path: Path) -> None:
    """One that the other graph lacks, one of another shape, one that gives integers."""
    other = bundle(tmp_path / "other", modules={"vectors": "embed", "mean": "pool", "projected": "new"})
    assert [error.module for error in tensor_errors(other, baseline)] == ["embed"]

    def quantized(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "step"))
        node = helper.make_node("QuantizeLinear", ["projected", "step"], ["integers"])
        node.metadata_props.add(key=MODULE_KEY, value="head")
        model.graph.node.append(node)

    integers = bundle(tmp_path / "integers", quantized)
    assert "head" not in [error.module for error in tensor_errors(integers, baseline)]
    alien = bundle(tmp_path / "alien", modules={"vectors": "something"})
    with pytest.raises(UserError, match="have no module in common"):
        tensor_errors(alien, baseline)


def test_a_changed_baseline_is_refused(baseline: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(baseline, tmp_path / "copy"))
    model = onnx.load(copy / "model.onnx")
    weights(model, "head", lambda head: 2 * head)
    onnx.save(model, copy / "model.onnx")
    with pytest.raises(FileDamaged):
        tensor_errors(baseline, copy)


@pytest.fixture(scope="module")
def build(exporter: Exporter, here: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `edgec compress` lays it out."""
    folder = tmp_path_factory.mktemp("build")
    exporter.write(folder / "baseline", here, precision="fp32")
    exporter.write(folder / "bundles" / "x", here)
    return folder


def test_a_real_model_against_a_loop(build: Path) -> None:
    """Every module of the int8 graph; two of them by onnxruntime and numpy alone, over the golden ids."""
    errors = {error.module: error for error in tensor_errors(build / "bundles" / "x", build / "baseline")}
    last = "model.encoder.layer.1.output"
    modules = [
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        *("attention.self", "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense"),
        *("intermediate.intermediate_act_fn", "output.dense", "output.LayerNorm"),
    ]
    assert [name for name in errors if ".layer.0." in name] == [f"model.encoder.layer.0.{name}" for name in modules]
    assert all(error.snr_db is not None and 10 < error.snr_db < 60 for error in list(errors.values())[5:])
    for module, float_op, int8_op in (
        (f"{last}.dense", "Add", "MatMulIntegerToFloat"),
        (f"{last}.LayerNorm", "LayerNormalization", "LayerNormalization"),
    ):
        x = values(build / "baseline", f"{module}/{float_op}")
        y = values(build / "bundles" / "x", f"{module}/{int8_op}")
        signal = sum(float((a.astype(np.float64) ** 2).sum()) for a in x)
        noise = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in zip(x, y, strict=True))
        assert errors[module].snr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-9)
        flat_x, flat_y = (np.concatenate([a.ravel() for a in one]).astype(np.float64) for one in (x, y))
        cosine = flat_x @ flat_y / np.linalg.norm(flat_x) / np.linalg.norm(flat_y)
        assert errors[module].cosine == pytest.approx(cosine, abs=1e-12)


def values(folder: Path, node_name: str) -> list[np.ndarray]:
    """The output of a node, for each golden request by itself."""
    part = integrity.read_manifest(folder).parts[0]
    model = onnx.load(folder / part.file)
    (node,) = [node for node in model.graph.node if node.name == node_name]
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = []
    for ids in golden.read(folder / "golden.npz").ids:
        row = {"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), np.int32)}
        row |= {"token_type_ids": np.zeros((1, len(ids)), np.int32)}
        found += session.run([node.output[0]], {tensor.name: row[tensor.name] for tensor in part.inputs})
    return found


def test_the_module_key_is_that_of_the_tracer() -> None:
    assert MODULE_KEY == trace.MODULE_KEY


def test_the_command_finds_the_baseline_beside_the_bundle(
    build: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build / "bundles" / "x"
    assert invoke(["audit", str(folder), "--json", str(tmp_path / "audit.json")]) == 0
    shown = capsys.readouterr().out
    written = json.loads((tmp_path / "audit.json").read_text())
    errors = tensor_errors(folder, build / "baseline")
    assert written["tensors"] == [{"module": e.module, "snr_db": e.snr_db, "cosine": e.cosine} for e in errors]
    assert written["against"] == str(build / "baseline")
    bad = worst(errors, 11)
    assert f"the worst 10 of {len(errors)} modules, the worst is {bad[0].module}" in shown
    assert f"{bad[9].snr_db:.1f}" in shown and f"{bad[0].cosine:.6f}" in shown
    assert f" {bad[10].module} " not in shown.partition("tensor error")[2]
    layers = written["parts"]["encoder"]["layers"]
    assert [layer["layer"] for layer in layers][:4] == [
        f"model.encoder.layer.0.attention.{name}" for name in ("self.query", "self.key", "self.value", "self")
    ]


def test_without_a_baseline_nothing_is_compared(
    baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["audit", str(baseline), "--tokens", "4", "--json", str(tmp_path / "audit.json")]) == 0
    assert "tensor error" not in capsys.readouterr().out
    assert json.loads((tmp_path / "audit.json").read_text())["tensors"] is None
    assert invoke(["audit", str(baseline), "--tokens", "4", "--against", str(baseline)]) == 0
    assert "no module differs" in capsys.readouterr().err
    assert invoke(["audit", str(baseline), "--against", str(tmp_path)]) == 2


def test_what_is_compared_with_is_float_and_of_the_same_model(build: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is quantized, and the error is that against float"):
        tensor_errors(build / "bundles" / "x", build / "bundles" / "x")
    other = Path(shutil.copytree(build / "baseline", tmp_path / "other"))
    manifest = read_manifest(other)
    changed = dataclasses.replace(manifest, source=dataclasses.replace(manifest.source, sha256="0" * 64))
    (other / MANIFEST_FILE).write_text(changed.sealed().to_text(), encoding="utf-8")
    with pytest.raises(UserError, match="with other weights"):
        tensor_errors(build / "bundles" / "x", other)
