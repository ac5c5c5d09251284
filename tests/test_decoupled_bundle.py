"""Bundles of decoupled models: both graphs int8 and right, one answer alone or in a batch, read by all commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from decoupled_bundles import decoupled_state, write
from edgec_runtime import integrity, load
from edgec_runtime.check import check
from edgec_runtime.decoupled import Components, whole
from edgec_runtime.errors import PartMissing
from edgec_runtime.manifest import Manifest
from tiny_models import DECOUPLED, tiny

import edgec
from edgec.auditing import audit, tensor_errors
from edgec.emulation import spread
from edgec.errors import UserError
from edgec.exporter import Exporter
from edgec.models.torch_model import torch_model
from edgec.state import ModelState
from edgec.target import Forms, Target, load_target

REQUESTS = [
    {"question": "Who works?", "context": "Ada works in Bern"},
    {"question": "Where is the river?", "context": "The river is cold . Ada works in Bern , and reads ." * 3},
    {"question": "?", "context": ""},
]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    return decoupled_state(tmp_path_factory.mktemp("decoupled"))


@pytest.fixture(scope="module")
def bundles(state: ModelState, here: Target, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(state, tmp_path_factory.mktemp("bundles"), here)


def test_the_float_bundle_answers_as_torch(state: ModelState, bundles: dict[str, Path]) -> None:
    with load(bundles["fp32"]) as bundle, torch_model(state) as torch:
        assert isinstance(bundle.runner.engine, Components)
        for one, other in zip(bundle.raw(REQUESTS), torch.raw(REQUESTS), strict=True):
            for name in one:
                np.testing.assert_allclose(one[name], other[name], atol=1e-4)
        asked = ("Who works?", "Ada works in Bern")
        assert bundle.answer(*asked).text == torch.answer(*asked).text


@pytest.mark.parametrize("family", DECOUPLED)
def test_both_graphs_are_int8_and_what_was_decided(family: str, here: Target, tmp_path: Path) -> None:
    manifest = Exporter(decoupled_state(tmp_path, family), name="d").write(tmp_path / "int8", here)
    below = 2 if family == "bert" else 1
    assert [(part.name, part.precision) for part in manifest.parts] == [("input", "int8"), ("cross", "int8")]
    reference = manifest.parity["int8_against_reference"]
    assert reference["worst_share"] > 0.97 and reference["layers"] >= 6 * (below + 1) + 2
    for part, layers in (("input", below), ("cross", 1)):
        graph = onnx.load(tmp_path / "int8" / f"{part}.onnx", load_external_data=False).graph
        products = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
        assert len(products) >= 5 * layers  # the last of a layer is as small as a head here
    assert check(tmp_path / "int8").ok
    assert "Then `cross.onnx` on the states" in (tmp_path / "int8" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_answer_is_the_same_alone_and_in_a_batch(precision: str, bundles: dict[str, Path]) -> None:
    with load(bundles[precision], schedule="batches") as together, load(bundles[precision]) as alone:
        for one, other in zip(together.raw(REQUESTS), alone.raw(REQUESTS), strict=True):
            for name in one:
                np.testing.assert_allclose(one[name], other[name], atol=1e-5)


def test_other_cpus_and_the_page_of_errors(bundles: dict[str, Path]) -> None:
    found = spread(bundles["int8"])
    assert set(found) == {"vnni", "avx2", "arm64"} and found["vnni"].max_abs < 1e-4
    errors = tensor_errors(bundles["int8"], bundles["fp32"])
    assert {"seam", "seam.compress", "seam.decompress"} & {error.module for error in errors}
    assert all(error.cosine > 0.9 for error in errors)


def test_the_audit_counts_by_component(bundles: dict[str, Path]) -> None:
    found = audit(bundles["int8"], tokens=40, question_tokens=8)
    assert set(found.parts) == {"input", "cross"} and found.components is not None
    components = found.components
    assert (components.question_tokens, components.passage_tokens) == (8, 32)
    assert components.question == found.parts["input"].macs.total
    assert components.answer_ratio > components.cross_ratio > 1 / 3
    summary = found.summary()
    assert summary["components"]["cross"] == components.cross
    assert sum(row["share"] for row in summary["operators"]) == pytest.approx(1)
    with pytest.raises(UserError, match="cannot be the question's"):
        audit(bundles["int8"], tokens=8, question_tokens=8)


@pytest.mark.parametrize(("split", "paper"), [(5, 0.58), (9, 0.25)])
def test_the_ratios_of_the_paper(split: int, paper: float, tmp_path: Path) -> None:
    """Table 1, 12 layers."""
    from edgec.models import load_model
    from edgec.models.decoupled import decoupled

    state = decoupled(load_model(tiny("bert", "question-answering", tmp_path / "m", num_hidden_layers=12)), split)
    Exporter(state, name="twelve").write(tmp_path / "bundle", load_target("x86_64-avx2"), precision="fp32")
    found = audit(tmp_path / "bundle", tokens=64).components
    assert found is not None and found.cross_ratio == pytest.approx(paper, abs=0.01)


def test_the_graphs_as_torch_exports_them_load(state: ModelState, here: Target, tmp_path: Path) -> None:
    """What a bundle is measured against."""
    Exporter(state, name="plain").write_plain(tmp_path / "plain", here)
    with load(tmp_path / "plain") as plain:
        assert plain.raw(REQUESTS[:1])[0]["start_logits"].ndim == 1


def test_bench_and_evaluate_take_it(bundles: dict[str, Path], tmp_path: Path) -> None:
    report = edgec.bench([bundles["fp32"], bundles["int8"]], tokens=[16], rounds=5, cold_start=False)
    assert [one.precision for one in report.bundles] == ["fp32", "int8"]


@pytest.mark.parametrize("forms", [Forms(norm="skip"), Forms(attention="mha"), Forms(mask="if-padded")])
def test_every_form_keeps_the_outputs(forms: Forms, here: Target, tmp_path: Path) -> None:
    """Without compression the states are what the last layer norm of the input component gives."""
    exporter = Exporter(decoupled_state(tmp_path, compression=None), name="forms")
    manifest = exporter.write(tmp_path / "bundle", here, forms=forms)
    assert all(part.forms[name] == getattr(forms, name) for part in manifest.parts for name in ("norm", "attention"))
    assert check(tmp_path / "bundle").ok


def test_parts_that_are_no_model(bundles: dict[str, Path]) -> None:
    manifest: Manifest = integrity.read_manifest(bundles["fp32"])
    assert whole(manifest.parts).inputs == manifest.parts[0].inputs
    for parts in ((), manifest.parts[::-1], (*manifest.parts, manifest.parts[0])):
        with pytest.raises(PartMissing, match="a model is one part"):
            whole(dataclasses.replace(manifest, parts=parts).parts)
