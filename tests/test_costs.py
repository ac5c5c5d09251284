"""The measured cost table: what is tried, what is kept, what is taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from edgec_runtime.check import check
from tiny_models import SENTENCES, tiny

from edgec import costs
from edgec.costs import Choices, Cost
from edgec.devices import open_device
from edgec.errors import UserError
from edgec.exporter import Exporter
from edgec.graph.forms import Forms
from edgec.models import load_model
from edgec.passes import Quantize, run_pass
from edgec.state import PassContext
from edgec.target import Target


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    folder = tmp_path_factory.mktemp("costs")
    state = load_model(tiny("bert", "feature-extraction", folder / "model"))
    return Exporter(run_pass(Quantize(), state, PassContext(folder, SENTENCES)), name="costs")


def test_only_what_is_clearly_faster_is_taken() -> None:
    slower = Cost("norm", "skip", 0.8, 0.7, 0.9)
    unsteady = Cost("norm", "skip", 1.3, 0.95, 1.5)
    noise = Cost("norm", "skip", 1.01, 1.005, 1.02)
    faster, fastest = Cost("attention", "mha", 1.05, 1.02, 1.1), Cost("attention", "qattention", 1.08, 1.03, 1.1)
    assert costs.best((slower, faster)) == Forms(attention="mha")
    assert costs.best((unsteady,)) == costs.best((noise,)) == costs.best(()) == Forms()
    assert costs.best((fastest, faster)) == costs.best((faster, fastest)) == Forms(attention="qattention")


def test_costs_are_measured_once_and_kept(
    exporter: Exporter, here: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path))
    with open_device("local") as device:
        facts = device.facts()
        first = costs.choose(exporter, here, device, facts)
        assert first.source == "measured"
        assert [(cost.choice, cost.option) for cost in first.costs] == list(costs.ALTERNATIVES)
        assert all(0 < cost.p10 <= cost.ratio <= cost.p90 for cost in first.costs)
        second = costs.choose(exporter, here, device, facts)
        assert second == Choices(first.forms, "kept", first.costs)
        (file,) = (tmp_path / "costs").glob("*.json")
        entry = json.loads(file.read_text())
        assert entry["onnxruntime"] == facts["versions"]["onnxruntime"] and entry["machine"]["cpu"] == facts["cpu"]
        other = {**facts, "versions": {**facts["versions"], "onnxruntime": "0.0.1"}}
        assert costs.choose(exporter, here, device, other).source == "measured"
        file.write_text("{")
        assert costs.choose(exporter, here, device, facts).source == "measured", "a damaged entry is measured again"


def test_a_choice_is_replayed_from_a_bundle(exporter: Exporter, here: Target, tmp_path: Path) -> None:
    forms = Forms(norm="skip", attention="mha")
    manifest = exporter.write(tmp_path / "bundle", here, forms=forms)
    assert manifest.parts[0].forms == {"norm": "skip", "attention": "mha", "mask": "always"}
    assert check(tmp_path / "bundle").ok
    assert costs.replayed(tmp_path / "bundle") == Choices(forms, "replayed")
    exporter.write(tmp_path / "again", here, forms=costs.replayed(tmp_path / "bundle").forms)
    for name in ("encoder.onnx", "encoder.onnx.data", "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "bundle" / name).read_bytes()


def test_a_bundle_without_forms_cannot_be_replayed(exporter: Exporter, here: Target, tmp_path: Path) -> None:
    manifest = exporter.write_plain(tmp_path / "plain", here)
    assert manifest.parts[0].optimize_at_load and manifest.parts[0].precision == "fp32"
    assert check(tmp_path / "plain").ok
    with pytest.raises(UserError, match="does not say in which forms"):
        costs.replayed(tmp_path / "plain")
