"""report.json and the table made from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from edgec_runtime.manifest import Part
from figures import bench_report, manifest

from edgec.budget import Verdict
from edgec.report import COLUMNS, Report, make_report, rows, title, write_report


def _report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "recipe": {"edgec": 1, "passes": [{"quantize": {"scheme": "static"}}]},
        "command": "edgec compress --recipe made-up",
        "device": "local",
        "facts": {"arch": "aarch64"},
        "history": manifest().passes,
        "baseline": manifest(megabytes=90, drop=None, parts=(Part("encoder", "encoder.onnx", "fp32", (), ()),)),
        "bundles": {"arm64": manifest(), "x86_64-vnni": manifest("x86_64-vnni", drop=0.02)},
        "bench": bench_report(),
        "measured": "arm64",
        "verified": {"arm64": {"device": "local", "max_abs": 0.001, "min_cosine": 0.9999}},
        "verdicts": [
            Verdict("arm64", "accuracy_drop", 0.01, 0.004, True),
            Verdict("arm64", "speedup", 1.5, 3.0, True),
            Verdict("x86_64-vnni", "accuracy_drop", 0.01, 0.02, False),
            Verdict("x86_64-vnni", "speedup", 1.5, None, None),
        ],
        "fell_back": [],
        "seconds": 12.34,
    }
    return make_report(Path("out"), **{**values, **changes})


def test_what_the_report_holds(tmp_path: Path) -> None:
    report = _report()
    write_report(tmp_path, report)
    data = json.loads((tmp_path / "report.json").read_text())
    assert list(data) == [
        *("schema", "command", "recipe", "device", "machine", "versions", "source", "passes", "baseline"),
        *("bundles", "measured", "bench", "budget", "fell_back", "seconds"),
    ]
    assert data["schema"] == 1 and data["seconds"] == 12.3 and data["measured"] == "arm64"
    assert data["baseline"]["path"] == "baseline" and data["baseline"]["precision"] == "fp32"
    assert [one["path"] for one in data["bundles"]] == ["bundles/arm64", "bundles/x86_64-vnni"]
    first = data["bundles"][0]
    assert set(first) == {
        *("path", "target", "precision", "bytes", "graph_bytes", "build_id", "digest", "quality", "parity"),
        *("golden", "schedule", "measured", "verified"),
    }
    assert [one["verified"] for one in data["bundles"]] == [
        {"device": "local", "max_abs": 0.001, "min_cosine": 0.9999},
        None,
    ]
    assert "verified" not in data["baseline"]
    assert first["bytes"] == 20_000_000 and first["graph_bytes"] == 20_000_000 - 2000
    assert first["quality"] == {"metric": "cosine", "before": 1.0, "after": 0.996, "drop": 0.004, "n": 50}
    assert data["budget"][2] == {
        **{"target": "x86_64-vnni", "what": "accuracy_drop", "limit": 0.01},
        **{"value": 0.02, "met": False},
    }
    assert data["bench"]["bundles"][1]["shapes"][0]["p50_ms"] == 10.0
    assert data["passes"] == [{"name": "quantize", "options": {"scheme": "static"}, "report": {"left_alone": {}}}]


def test_a_report_is_strict_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_report(tmp_path, _report(facts={"load": float("nan")}))


def test_the_table() -> None:
    baseline, measured, other = (dict(zip(COLUMNS, row, strict=True)) for row in rows(_report()))
    assert baseline == {
        **{"bundle": "fp32 baseline", "MB": "90.0", "p50 ms": "30.00", "p90 ms": "33.00", "speed-up": "1.00x"},
        **{"cold start ms": "300", "peak MiB": "100", "quality": "-", "budget": "-"},
    }
    assert measured == {
        **{"bundle": "arm64", "MB": "20.0", "p50 ms": "10.00", "p90 ms": "11.00", "speed-up": "3.00x"},
        **{"cold start ms": "300", "peak MiB": "101", "quality": "cosine 0.9960", "budget": "met"},
    }
    assert other["speed-up"] == "not measured here" and other["p50 ms"] == other["peak MiB"] == "-"
    assert other["budget"] == "missed: accuracy_drop 0.02 (0.01)"


def test_the_title_tells_what_was_timed() -> None:
    assert title(_report()) == "made-up: batch 1, 128 tokens, 1 thread, on local"
    assert "32 tokens" in title(_report(bench=bench_report(tokens=(16, 32))))
    assert rows(_report(bench=bench_report(tokens=(16, 32))))[1][2] == "10.00"


def test_nothing_measured() -> None:
    report = _report(bench=None, measured=None, verdicts=[Verdict("arm64", "speedup", 1.5, None, None)])
    assert report.data["bench"] is None and report.data["measured"] is None
    table = [dict(zip(COLUMNS, row, strict=True)) for row in rows(report)]
    assert {row["speed-up"] for row in table} == {"not measured here"}
    assert [row["budget"] for row in table] == ["-", "met (speedup not measured)", "none set"]


def test_unstable_times_are_marked() -> None:
    bench = bench_report()
    shaky = dataclasses.replace(bench.bundles[1].shapes[1, 128], unstable=True)
    second = dataclasses.replace(bench.bundles[1], shapes={(1, 128): shaky})
    report = _report(bench=dataclasses.replace(bench, bundles=(bench.bundles[0], second)))
    assert rows(report)[1][4] == "3.00x (unstable)"


def test_a_target_that_fell_back_shows_the_figures_of_what_ships() -> None:
    float_bundle = manifest(megabytes=90, drop=None, parts=(Part("encoder", "encoder.onnx", "fp32", (), ()),))
    report = _report(
        bundles={"arm64": float_bundle},
        verdicts=[Verdict("arm64", "accuracy_drop", 0.01, 0.5, False)],
        fell_back=["arm64"],
    )
    row = dict(zip(COLUMNS, rows(report)[1], strict=True))
    assert (row["MB"], row["p50 ms"], row["speed-up"]) == ("90.0", "30.00", "1.00x")
    assert row["budget"] == "missed: accuracy_drop 0.5 (0.01); fp32 ships"
    assert report.data["bundles"][0]["precision"] == "fp32" and report.data["fell_back"] == ["arm64"]
