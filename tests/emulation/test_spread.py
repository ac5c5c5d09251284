"""What a bundle answers on other kinds of CPU: the figures, the command, the manifest, and the runtime's words."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from devices.test_emulated import REQUESTS, int8_bundle, needs_x86_emulator, seal
from edgec_runtime import cpu, golden, load
from edgec_runtime.check import check
from edgec_runtime.integrity import read_manifest
from edgec_runtime.manifest import Manifest
from typer.testing import CliRunner

from edgec import operations
from edgec.cli.verify import verify
from edgec.emulation import KINDS, emulate, spread
from edgec.errors import GateFailed, UserError

pytestmark = pytest.mark.filterwarnings("ignore::edgec_runtime.notices.BundleWarning")

app = typer.Typer()
app.command()(verify)


@pytest.fixture(scope="module")
def seven_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return int8_bundle(tmp_path_factory.mktemp("spread") / "seven", largest=63)


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return int8_bundle(tmp_path_factory.mktemp("spread") / "eight", largest=127)


def emulated_outputs(bundle: Path, kind: str) -> list[golden.Values]:
    with load(bundle, schedule="streams") as model:
        model.runner.engine = emulate(bundle / "encoder.onnx", kind)  # type: ignore[arg-type]
        return model.raw(REQUESTS)


def with_golden(bundle: Path, folder: Path, outputs: list[golden.Values] | None = None, **changes: object) -> Path:
    """A copy of a bundle with other golden outputs, and other values in the manifest's `golden`."""
    shutil.copytree(bundle, folder)
    manifest = read_manifest(folder)
    vectors = golden.read(folder / "golden.npz")
    golden.write(folder / "golden.npz", vectors.requests, vectors.ids, outputs or vectors.outputs, vectors.answers)
    return seal(folder, dataclasses.replace(manifest, golden=dataclasses.replace(manifest.golden, **changes)))


def test_only_eight_bits_without_vnni_are_beyond_the_limits(seven_bits: Path, eight_bits: Path) -> None:
    limits = read_manifest(eight_bits).golden
    found = spread(eight_bits)
    assert tuple(found) == KINDS
    assert {kind: one.within(limits) for kind, one in found.items()} == {"vnni": True, "avx2": False, "arm64": True}
    assert list(found["avx2"].pairs) == ["product"] and found["avx2"].pairs["product"].lost > 0
    assert not found["vnni"].pairs and not found["arm64"].pairs
    assert all(one.within(limits) and not one.pairs for one in spread(seven_bits).values())


def test_figures_are_those_of_the_outputs(eight_bits: Path) -> None:
    vectors = golden.read(eight_bits / "golden.npz")
    answers = emulated_outputs(eight_bits, "avx2")
    pairs = [(e["sentence_embedding"], a["sentence_embedding"]) for e, a in zip(vectors.outputs, answers, strict=True)]
    cosines = [float(e @ a / np.linalg.norm(e) / np.linalg.norm(a)) for e, a in pairs]
    found = spread(eight_bits, ["avx2"])["avx2"]
    assert found.max_abs == pytest.approx(max(np.abs(e - a).max() for e, a in pairs))
    assert found.min_cosine == pytest.approx(min(cosines), abs=1e-6)
    assert found.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-6)
    assert found.min_cosine < found.mean_cosine < 1
    assert found.figures() == pytest.approx(
        {"max_abs": found.max_abs, "min_cosine": found.min_cosine, "mean_cosine": found.mean_cosine}, rel=0.01
    )


@pytest.mark.emulated
@needs_x86_emulator
def test_a_haswell_answers_what_the_emulation_says(eight_bits: Path, tmp_path: Path) -> None:
    expected = with_golden(eight_bits, tmp_path / "haswell", emulated_outputs(eight_bits, "avx2"), max_abs=1e-6)
    assert not check(expected).ok or "vnni" not in {cpu.feature(name) for name in cpu.features() or ()}
    found = operations.verify(expected, on="qemu://Haswell")
    assert found["ok"], found["failure"]
    figures = {kind: one.figures() for kind, one in spread(eight_bits).items()}
    annotated = with_golden(eight_bits, tmp_path / "annotated", spread=figures)
    found = operations.verify(annotated, on="qemu://Haswell")
    assert not found["ok"] and found["max_abs"] == pytest.approx(figures["avx2"]["max_abs"], rel=0.01)
    assert "That was to be expected: this CPU has no VNNI" in found["failure"]


def test_the_runtime_says_whether_a_difference_was_to_be_expected(
    eight_bits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {kind: one.figures() for kind, one in spread(eight_bits).items()}
    saturated = emulated_outputs(eight_bits, "avx2")
    # What another kind of CPU answered: on this machine, whatever it is, it fails.
    other = saturated if check(eight_bits).ok else emulated_outputs(eight_bits, "vnni")
    bundle = with_golden(eight_bits, tmp_path / "other", other, spread=figures)
    monkeypatch.setattr(cpu, "architecture", lambda name=None: name or "x86_64")
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"avx2"}))
    failure = check(bundle).failure or ""
    assert "That was to be expected: this CPU has no VNNI, and its sums of 8-bit products saturate" in failure
    assert f"off by {figures['avx2']['max_abs']:.3g}" in failure
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"avx2", "avx512_vnni"}))
    assert "That was not to be expected: this CPU has VNNI" in (check(bundle).failure or "")
    monkeypatch.setattr(cpu, "features", lambda: None)
    assert "expected" not in (check(bundle).failure or "")
    monkeypatch.setattr(cpu, "architecture", lambda name=None: name or "aarch64")
    assert "That was not to be expected: this is an arm64 CPU" in (check(bundle).failure or "")
    unknown = with_golden(eight_bits, tmp_path / "unknown", other)
    assert "expected" not in (check(unknown).failure or "")


def test_the_spread_is_part_of_the_manifest(eight_bits: Path, tmp_path: Path) -> None:
    figures = {"avx2": {"max_abs": 0.1, "min_cosine": 0.9, "mean_cosine": 0.95}}
    back: Manifest = read_manifest(with_golden(eight_bits, tmp_path / "copy", spread=figures))
    assert back.golden.spread == figures
    assert read_manifest(eight_bits).golden.spread == {}


def test_the_command_prints_kinds_and_layers(eight_bits: Path, tmp_path: Path) -> None:
    file = tmp_path / "spread.json"
    done = CliRunner().invoke(app, [str(eight_bits), "--as", "avx2", "--as", "arm64", "--json", str(file)])
    assert isinstance(done.exception, GateFailed) and done.exception.exit_code == 1
    assert "avx2" in done.exception.message and "arm64" not in done.exception.message
    assert "x86_64-avx2" in done.exception.hint
    data = json.loads(file.read_text())
    assert not data["ok"] and list(data["as"]) == ["avx2", "arm64"]
    (layer,) = data["as"]["avx2"]["layers"]
    assert layer["layer"] == "product" and 0 < layer["lost"] == data["as"]["avx2"]["sums_lost"] < layer["sums"]
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert rows["avx2"][4] == "NO" and rows["arm64"][4] == "yes"
    assert rows["product"][1:3] == [str(layer["lost"]), str(layer["sums"])]


def test_targets_name_kinds_and_what_is_within_passes(seven_bits: Path, eight_bits: Path) -> None:
    for bundle, name, kind in ((eight_bits, "x86_64-vnni", "vnni"), (seven_bits, "x86_64-avx2", "avx2")):
        done = CliRunner().invoke(app, [str(bundle), "--as", name, "--json", "-"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["as"][kind]["within"]


def test_kinds_and_a_device_exclude_each_other(seven_bits: Path) -> None:
    with pytest.raises(UserError, match="on this machine only"):
        operations.verify(seven_bits, on="qemu://Haswell", kinds=["avx2"])
    with pytest.raises(UserError, match="neither"):
        operations.verify(seven_bits, kinds=["sse"])
