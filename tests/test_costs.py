"""The measured cost table: what is tried, what is kept, what is taken."""

from __future__ import annotations

import dataclasses
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
from edgec.models import load_model
from edgec.passes import Quantize, run_pass
from edgec.state import PassContext
from edgec.target import Forms, Target, check_forms, load_target


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


def test_the_default_is_that_of_the_target() -> None:
    arm = load_target("arm64").forms
    assert arm == Forms(gelu="tanh")
    assert costs.alternatives(arm)[-1] == ("gelu", "exact")
    assert costs.alternatives(Forms())[-1] == ("gelu", "tanh")
    faster = Cost("norm", "skip", 1.05, 1.02, 1.1)
    assert costs.best((faster,), arm) == Forms(norm="skip", gelu="tanh")
    assert costs.best((Cost("gelu", "exact", 1.05, 1.02, 1.1),), arm) == Forms()


def test_costs_are_measured_once_and_kept(
    exporter: Exporter, here: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path))
    with open_device("local") as device:
        facts = device.facts()
        first = costs.choose(exporter, here, device, facts)
        assert first.source == "measured"
        assert [(cost.choice, cost.option) for cost in first.costs] == [
            *(("norm", "skip"), ("attention", "mha"), ("attention", "qattention"), ("mask", "if-padded")),
            ("gelu", "exact" if here.forms.gelu == "tanh" else "tanh"),
        ]
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
    assert manifest.parts[0].forms == {"norm": "skip", "attention": "mha", "mask": "always", "gelu": "exact"}
    assert check(tmp_path / "bundle").ok
    assert costs.replayed(tmp_path / "bundle") == Choices(forms, "replayed")
    exporter.write(tmp_path / "again", here, forms=costs.replayed(tmp_path / "bundle").forms)
    for name in ("encoder.onnx", "encoder.onnx.data", "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "bundle" / name).read_bytes()


@pytest.mark.parametrize(
    ("forms", "words"),
    [
        ({"gelu": "sigmoid"}, "with gelu: sigmoid, which this edgec has exact, tanh"),
        ({"softmax": "fast"}, "with softmax: fast, which this edgec does not know"),
    ],
)
def test_unknown_forms_are_refused(
    forms: dict[str, str], words: str, exporter: Exporter, here: Target, tmp_path: Path
) -> None:
    manifest = exporter.write(tmp_path / "bundle", here)
    (part,) = manifest.parts
    changed = dataclasses.replace(manifest, parts=(dataclasses.replace(part, forms=forms),))
    (tmp_path / "bundle" / "manifest.json").write_text(changed.sealed().to_text())
    with pytest.raises(UserError, match=words):
        costs.replayed(tmp_path / "bundle")
    with pytest.raises(UserError, match=words):
        check_forms(str(tmp_path / "bundle"))


def test_a_bundle_without_forms_cannot_be_replayed(exporter: Exporter, here: Target, tmp_path: Path) -> None:
    manifest = exporter.write_plain(tmp_path / "plain", here)
    assert manifest.parts[0].optimize_at_load and manifest.parts[0].precision == "fp32"
    assert check(tmp_path / "plain").ok
    with pytest.raises(UserError, match="does not say in which forms"):
        costs.replayed(tmp_path / "plain")
