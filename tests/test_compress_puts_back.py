"""`compress` with a budget that one layer breaks: that layer is put back, and everything tells so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from edgec_runtime import integrity
from scaled_channel import TEXTS, WORST, plain_model, scale_channel

import edgec
from edgec.auditing import audit
from edgec.models import load_model, save_build
from edgec.target import Target

pytestmark = pytest.mark.filterwarnings("ignore::edgec_runtime.BundleWarning")


def test_exactly_the_layer_that_breaks_the_budget_is_put_back(foreign: Target, tmp_path: Path) -> None:
    save_build(scale_channel(plain_model(tmp_path / "plain")), tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "edgec: 1\n"
        "model: {source: ./model, task: feature-extraction}\n"
        "data: {calibrate: {text: texts.txt}, evaluate: {text: texts.txt}}\n"
        "passes: [quantize]\n"
        f"targets: [{foreign.name}]\n"
        "budget: {accuracy_drop: 0.0003}\n"
    )
    report = edgec.compress(recipe, out=tmp_path / "out")
    path = WORST.partition(":")[2]
    (back,) = report.data["put_back"]
    assert (back["layer"], back["to"]) == (path, "float") and back["bytes_added"] > 0
    assert report.data["sensitivity"]["layers"][0]["layer"] == path
    first, *_, last = report.data["put_back_steps"]
    assert first["layers"] == 0 and first["drop"] > 0.0003 >= min(
        step["drop"] for step in report.data["put_back_steps"]
    )
    assert last["layers"] == 1
    assert all(verdict.met for verdict in report.verdicts)
    folder = report.out / "bundles" / foreign.name
    assert integrity.read_manifest(folder).passes[-1].name == "put-back"
    reasons = {node.name: node.reason for node in audit(folder).parts["encoder"].float_nodes}
    assert any("put back: alone it costs" in reason for name, reason in reasons.items() if path in name)
    again = load_model(report.out / "model")
    assert again.quantization is not None and WORST not in again.quantization.layers
    assert path in (report.out / "report.html").read_text()
    assert json.loads((report.out / "report.json").read_text())["put_back"] == [back]
