"""Golden vectors are those of the target's CPUs, also where the exporting machine would answer otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgec_runtime import cpu, golden

from edgec.emulation import emulate, spread
from edgec.exporter import Exporter
from edgec.target import load_target


def test_the_exporting_cpu_does_not_show(exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_target("x86_64-vnni")
    expected = golden.read(_golden(exporter, tmp_path / "native")) if _has_vnni() else None
    opened = []
    monkeypatch.setattr("edgec.exporter.cpu.features", lambda: frozenset({"avx2"}))
    monkeypatch.setattr("edgec.exporter.emulate", lambda graph, kind: opened.append(kind) or emulate(graph, kind))
    exporter.write(tmp_path / "emulated", target)
    assert set(opened) == {"vnni"}, "without VNNI the answers are those of an emulated CPU that has it"
    monkeypatch.undo()
    found = golden.read(tmp_path / "emulated" / "golden.npz")
    if expected is not None:
        for a, b in zip(expected.outputs, found.outputs, strict=True):
            assert all(np.allclose(a[name], b[name], atol=1e-6) for name in a)
    assert spread(tmp_path / "emulated", ["vnni"])["vnni"].max_abs < 1e-6


def _golden(exporter: Exporter, folder: Path) -> Path:
    exporter.write(folder, load_target("x86_64-vnni"))
    return folder / "golden.npz"


def _has_vnni() -> bool:
    return "vnni" in {cpu.feature(name) for name in cpu.features() or ()}
