"""The commands export, verify, bench, run and audit as functions, on a build of a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import edgec_runtime
import numpy as np
import pytest
from edgec_runtime.check import check
from edgec_runtime.errors import BundleNotFound
from exact import answers_right
from tiny_models import SENTENCES

import edgec
from edgec.errors import BudgetMissed, OutputExists, UserError
from edgec.exporter import Exporter
from edgec.models import save_build
from edgec.state import ModelState
from edgec.target import Target, load_target

pytestmark = pytest.mark.filterwarnings("ignore::edgec_runtime.BundleWarning")


@pytest.fixture(scope="module")
def build(quantized: ModelState, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved build, which lies where compress puts it."""
    folder = tmp_path_factory.mktemp("build")
    save_build(quantized, folder / "model")
    return folder


@pytest.fixture(scope="module")
def bundle(exporter: Exporter, here: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / here.name
    exporter.write(folder, here)
    return folder


def test_export_of_a_model_is_fp32(quantized: ModelState, here: Target, tmp_path: Path) -> None:
    source = quantized.spec.source
    manifest = edgec.export(source, target=here.name, out=tmp_path / "b", max_length=16)
    assert (manifest.parts[0].precision, manifest.preprocessing.max_length) == ("fp32", 16)
    assert manifest.passes == () and check(tmp_path / "b").ok
    with pytest.raises(OutputExists):
        edgec.export(source, target=here.name, out=tmp_path / "b")


@pytest.mark.parametrize("forms", ["kept", "default"])
def test_without_a_device_the_forms_are_those_of_the_target(forms: str, build: Path, tmp_path: Path) -> None:
    for name, gelu in (("arm64", "tanh"), ("x86_64-avx2", "exact")):
        manifest = edgec.export(build, target=name, out=tmp_path / name, forms=forms)
        assert manifest.parts[0].precision == "int8" and answers_right(tmp_path / name)
        assert manifest.parts[0].forms["gelu"] == gelu == load_target(name).forms.gelu


def test_the_forms_of_a_bundle_are_taken_for_any_target(build: Path, bundle: Path, tmp_path: Path) -> None:
    manifest = edgec.export(build, target="arm64", out=tmp_path / "b", forms=str(bundle))
    assert manifest.parts[0].forms["gelu"] == "exact"


def test_verify(bundle: Path) -> None:
    found = edgec.verify(bundle)
    assert found["ok"] is True and found["device"] == "local"
    assert found["max_abs"] <= found["limit_max_abs"]
    with pytest.raises(BundleNotFound, match="nowhere does not exist"):
        edgec.verify(bundle / "nowhere")


def test_run_gives_json_values(bundle: Path) -> None:
    vectors = edgec.run(bundle, list(SENTENCES[:2]))
    with edgec_runtime.load(bundle) as model:
        np.testing.assert_array_equal(np.array(vectors, np.float32), model.embed(SENTENCES[:2]))
    json.dumps(vectors)


def test_bench(exporter: Exporter, bundle: Path, here: Target, tmp_path: Path) -> None:
    exporter.write(tmp_path / "baseline", here, precision="fp32")
    bundles = [tmp_path / "baseline", bundle]
    found = edgec.bench(bundles, tokens=(8,), batch=(1, 2), rounds=2, cold_start=False)
    assert [one.path for one in found.bundles] == bundles
    assert list(found.bundles[1].shapes) == [(1, 8), (2, 8)]
    assert found.settings["rounds"] == 2 and found.bundles[1].cold_start_ms is None


def test_audit(bundle: Path, here: Target) -> None:
    found = edgec.audit(bundle)
    assert found.int8_share > 0.5 and found.target == here.name


# Export that measures: a speed-up that is missed is refused, or fp32 ships.


def test_a_missed_speed_up_writes_nothing(build: Path, here: Target, tmp_path: Path) -> None:
    with pytest.raises(BudgetMissed, match=r"x fp32 \(p10 .*x the plain export on local.* where 99x is asked for"):
        edgec.export(build, target=here.name, out=tmp_path / "out", on="local", forms="default", speedup=99)
    assert list(tmp_path.iterdir()) == []


def test_a_missed_speed_up_falls_back(build: Path, here: Target, tmp_path: Path) -> None:
    said: list[str] = []
    manifest = edgec.export(
        build,
        target=here.name,
        out=tmp_path / "out",
        on="local",
        forms="default",
        speedup=99,
        on_miss="fallback",
        say=said.append,
    )
    assert manifest.parts[0].precision == "fp32" and manifest.measured
    assert any("the speed-up is missed, fp32 ships instead" in line for line in said)
    assert check(tmp_path / "out").ok


def test_what_cannot_be_measured_is_told(build: Path, here: Target, foreign: Target, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a device"):
        edgec.export(build, target=here.name, out=tmp_path / "out", speedup=2)
    said: list[str] = []
    with pytest.raises(UserError, match=f"local is not of the target {foreign.name}"):
        edgec.export(build, target=foreign.name, out=tmp_path / "out", on="local", say=said.append)
    assert said == [], "before the model is loaded"
    assert list(tmp_path.iterdir()) == []
