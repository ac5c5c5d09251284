"""Manifests and benchmark reports made up for tests of what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgec_runtime.manifest import (
    Execution,
    FileInfo,
    Golden,
    Manifest,
    Part,
    PassRecord,
    Postprocessing,
    Preprocessing,
    Quality,
    Source,
    TargetInfo,
)

from edgec.devices.compare import BenchReport, read_report


def manifest(target: str = "arm64", *, megabytes: float = 20.0, drop: float | None = 0.004, **fields: Any) -> Manifest:
    """One graph of that size; drop None: not evaluated."""
    files = (
        FileInfo("encoder.onnx", "0" * 64, 1000),
        FileInfo("encoder.onnx.data", "0" * 64, round(megabytes * 1e6) - 3000),
        FileInfo("tokenizer.json", "0" * 64, 2000),
    )
    values: dict[str, Any] = {
        "format": 1,
        "name": "made-up",
        "build_id": "0123456789abcdef",
        "task": "feature-extraction",
        "family": "bert",
        "target": TargetInfo(target, "aarch64"),
        "parts": (Part("encoder", "encoder.onnx", "int8", (), ()),),
        "files": files,
        "preprocessing": Preprocessing("tokenizer.json", 128, 0),
        "postprocessing": Postprocessing(),
        "execution": Execution(),
        "golden": Golden("golden.npz", 0.1, 0.999),
        "source": Source("a/model", "1" * 64),
        "passes": (PassRecord("quantize", {"scheme": "static"}, {"left_alone": {}}),),
        "quality": None if drop is None else Quality("cosine", 1.0, 1 - drop, drop, 50),
        "versions": {"edgec": "0.1.0"},
    }
    return Manifest(**{**values, **fields}).sealed()


def bench_report(p50_ms: tuple[float, float] = (30.0, 10.0), tokens: tuple[int, ...] = (16, 64, 128)) -> BenchReport:
    """Of fp32 and int8: p50 of the longest rows, and half of that for every length below."""
    bundles = []
    for number, p50 in enumerate(p50_ms):
        shapes = []
        for shorter, length in enumerate(reversed(tokens)):
            shapes.append({"batch": 1, "tokens": length, **_figures(p50 / 2**shorter, p50_ms[0] / p50)})
        bundles.append(
            {
                "path": "elsewhere",
                "name": "made-up",
                "build_id": "0123456789abcdef",
                "task": "feature-extraction",
                "precision": ("fp32", "int8")[number],
                "target": "arm64",
                "bytes": 20_000_000,
                "load_ms": 50.0,
                "peak_memory_mb": 100.0 + number,
                "cold_start_ms": 300.4,
                "cold_start_ratio": {"median": 2.0, "p10": 1.9, "p90": 2.1},
                "shapes": shapes,
                "schedules": {"streams": _figures(p50, 1.0), "batches": _figures(p50, 1.0)},
            }
        )
    data = {"schema": 1, "machine": {}, "settings": {}, "warnings": [], "bundles": bundles}
    return read_report(data, [Path("baseline"), Path("bundles/arm64")], "local")


def _figures(p50: float, ratio: float) -> dict[str, Any]:
    return {
        "rounds": 20,
        "calls": 100,
        "mean_ms": p50,
        "p50_ms": p50,
        "p90_ms": p50 * 1.1,
        "p99_ms": p50 * 1.5,
        "texts_per_s": 1e3 / p50,
        "ratio": {"median": ratio, "p10": ratio * 0.9, "p90": ratio * 1.1},
        "unstable": False,
    }
