"""Golden vectors are those of the target's CPUs, also where the exporting machine would answer otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgec_runtime import cpu, golden
from edgec_runtime.manifest import TargetInfo

from edgec.auditing import tensor_errors
from edgec.emulation import adapt, emulate, foreign_kind, spread
from edgec.exporter import Exporter
from edgec.target import load_target


def test_the_exporting_cpu_does_not_show(exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_target("x86_64-vnni")
    expected = golden.read(_golden(exporter, tmp_path / "native")) if _has_vnni() else None
    opened = []
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"avx2"}))
    monkeypatch.setattr("edgec.exporter.emulate", lambda graph, kind: opened.append(kind) or emulate(graph, kind))
    exporter.write(tmp_path / "emulated", target)
    assert set(opened) == {"vnni"}, "without VNNI the answers are those of an emulated CPU that has it"
    monkeypatch.undo()
    found = golden.read(tmp_path / "emulated" / "golden.npz")
    if expected is not None:
        for a, b in zip(expected.outputs, found.outputs, strict=True):
            assert all(np.allclose(a[name], b[name], atol=1e-6) for name in a)
    assert spread(tmp_path / "emulated", ["vnni"])["vnni"].max_abs < 1e-6


@pytest.mark.parametrize(
    ("machine", "features", "arch", "needed", "kind"),
    [
        ("x86_64", {"avx2"}, "x86_64", (), None),
        ("x86_64", {"avx2"}, "x86_64", ("vnni",), "vnni"),
        ("x86_64", {"avx2"}, "aarch64", (), "arm64"),
        ("x86_64", {"avx2", "avx512_vnni"}, "aarch64", (), None),
        ("x86_64", {"avx2", "avx_vnni"}, "x86_64", ("vnni",), None),
        ("aarch64", {"asimd"}, "aarch64", (), None),
        ("aarch64", {"asimd"}, "x86_64", ("vnni",), "vnni"),
        ("aarch64", None, "x86_64", ("vnni",), None),
    ],
)
def test_what_is_emulated_where(
    machine: str,
    features: set[str] | None,
    arch: str,
    needed: tuple[str, ...],
    kind: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    monkeypatch.setattr(cpu, "features", lambda: features)
    assert foreign_kind(TargetInfo("any", arch, needed)) == kind


@pytest.mark.parametrize("name", ["arm64", "x86_64-vnni"])
def test_a_cpu_that_saturates_exports_for_those_that_do_not(
    name: str, exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also compares every layer with torch, which would find a saturated sum."""
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"avx2"}))
    parity = exporter.write(tmp_path / name, load_target(name)).parity["int8_against_reference"]
    assert parity["worst_share"] > 0.97


def test_the_error_of_tensors_is_that_of_the_targets_cpus(
    exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = load_target("x86_64-vnni")
    exporter.write(tmp_path / "int8", target)
    exporter.write(tmp_path / "fp32", target, precision="fp32")
    monkeypatch.setattr(cpu, "features", lambda: frozenset({"avx2"}))
    rewritten = tensor_errors(tmp_path / "int8", tmp_path / "fp32", adapt=adapt)
    # Saturated sums would cost several dB.
    worst = min(error.snr_db for error in rewritten if error.snr_db is not None)
    assert worst > 20
    if _has_vnni():
        own = tensor_errors(tmp_path / "int8", tmp_path / "fp32")
        assert [error.module for error in own] == [error.module for error in rewritten]
        assert min(error.snr_db for error in own if error.snr_db is not None) == pytest.approx(worst, abs=0.5)


def _golden(exporter: Exporter, folder: Path) -> Path:
    exporter.write(folder, load_target("x86_64-vnni"))
    return folder / "golden.npz"


def _has_vnni() -> bool:
    return "vnni" in {cpu.feature(name) for name in cpu.features() or ()}
