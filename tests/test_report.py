"""report.json and the table made from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from edgec_runtime.manifest import GroupQuality, Part, Quality
from figures import bench_report, manifest

from edgec.budget import Verdict
from edgec.costs import Choices, Cost
from edgec.data.readers import Sample
from edgec.devices.compare import Ratio
from edgec.evaluation.original import Original
from edgec.put_back import Outcome, PutBack
from edgec.ranking import LayerSensitivity, Ranking
from edgec.report import COLUMNS, Report, make_report, rows, title, warnings, write_report
from edgec.target import Forms


def _report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "recipe": {"edgec": 1, "passes": [{"quantize": {"scheme": "static"}}]},
        "command": "edgec compress --recipe made-up",
        "device": "local",
        "facts": {"arch": "aarch64"},
        "history": manifest().passes,
        "original": None,
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
        "calibration": Sample(("a", "b", "c"), ("de", "en", "en")),
        "data": {"train": {"rows": 3, "skipped": 1, "repaired": 0}},
        "choices": Choices(Forms(norm="skip"), "measured", (Cost("norm", "skip", 1.2, 1.1, 1.3),)),
        "ranking": None,
        "outcome": None,
        "audits": {"arm64": {"int8_share": 0.9}},
        "tensors": {"arm64": [{"module": "model.pooler", "snr_db": 30.0, "cosine": 0.999}]},
        "archives": {"arm64": 20_000_000},
        "seconds": 12.34,
    }
    return make_report(Path("out"), **{**values, **changes})


def test_what_the_report_holds(tmp_path: Path) -> None:
    report = _report()
    write_report(tmp_path, report)
    data = json.loads((tmp_path / "report.json").read_text())
    assert list(data) == [
        *("schema", "command", "recipe", "device", "machine", "versions", "source", "passes", "original"),
        *(
            "baseline",
            "bundles",
            "measured",
            "bench",
            "budget",
            "fell_back",
            "calibration",
            "data",
            "choices",
            "sensitivity",
        ),
        *("put_back", "put_back_steps", "seconds"),
    ]
    assert data["schema"] == 2 and data["seconds"] == 12.3 and data["measured"] == "arm64"
    assert data["baseline"]["path"] == "baseline" and data["baseline"]["precision"] == "fp32"
    assert [one["path"] for one in data["bundles"]] == ["bundles/arm64", "bundles/x86_64-vnni"]
    first = data["bundles"][0]
    assert set(first) == {
        *("path", "target", "precision", "bytes", "graph_bytes", "build_id", "digest", "quality", "parity"),
        *("forms", "golden", "schedule", "measured", "verified", "audit", "tensors", "spread"),
        "archive_bytes",
    }
    assert [one["verified"] for one in data["bundles"]] == [
        {"device": "local", "max_abs": 0.001, "min_cosine": 0.9999},
        None,
    ]
    assert "verified" not in data["baseline"]
    assert (first["audit"], first["tensors"][0]["snr_db"], first["spread"]) == ({"int8_share": 0.9}, 30.0, None)
    assert [one["archive_bytes"] for one in data["bundles"]] == [20_000_000, None]
    assert (data["bundles"][1]["audit"], data["bundles"][1]["tensors"]) == (None, None)
    assert data["calibration"] == {"texts": 3, "groups": {"de": 1, "en": 2}}
    assert data["choices"] == {
        **{"norm": "skip", "attention": "packed", "mask": "always", "gelu": "exact", "source": "measured"},
        "measured": [{"choice": "norm", "option": "skip", "ratio": 1.2, "p10": 1.1, "p90": 1.3}],
    }
    assert (data["sensitivity"], data["put_back"], data["put_back_steps"]) == (None, [], [])
    assert first["bytes"] == 20_000_000 and first["graph_bytes"] == 20_000_000 - 2000
    quality = {"metric": "cosine", "before": 1.0, "after": 0.996, "drop": 0.004, "n": 50}
    assert first["quality"] == {**quality, "group": "", "groups": {}}
    assert data["budget"][2] == {
        **{"target": "x86_64-vnni", "what": "accuracy_drop", "limit": 0.01},
        **{"value": 0.02, "met": False, "group": ""},
    }
    assert data["bench"]["bundles"][1]["shapes"][0]["p50_ms"] == 10.0
    assert data["passes"] == [{"name": "quantize", "options": {"scheme": "static"}, "report": {"left_alone": {}}}]


def test_layers_that_were_put_back() -> None:
    worst = LayerSensitivity("encoder:model.a", "static", 0.02, 0.9, 100, 400)
    ranking = Ranking("made-up", "cosine", 64, (worst,), 1.5)
    back = PutBack("encoder:model.a", "float", "put back: alone it costs 0.02 in cosine", 0.02, 300)
    data = _report(ranking=ranking, outcome=Outcome(None, (back,), ((0, 0.03), (1, 0.004)), True)).data
    assert [(one["layer"], one["drop"]) for one in data["sensitivity"]["layers"]] == [("model.a", 0.02)]
    assert [(one["layer"], one["to"], one["bytes_added"]) for one in data["put_back"]] == [("model.a", "float", 300)]
    assert data["put_back_steps"] == [{"layers": 0, "drop": 0.03}, {"layers": 1, "drop": 0.004}]


def test_the_plain_export_stands_beside_the_two(tmp_path: Path) -> None:
    bench = bench_report()
    plain = {**bench.data["bundles"][0], "path": "/gone"}
    three = dataclasses.replace(bench, data={**bench.data, "bundles": [*bench.data["bundles"], plain]})
    found = _report(bench=three).data["bench"]["bundles"]
    assert [one["path"] for one in found] == ["baseline", "bundles/arm64", "plain"]


def test_an_int8_bundle_that_is_slower_is_told() -> None:
    assert warnings(_report()) == []
    bench = bench_report()
    shapes = {
        shape: dataclasses.replace(figures, ratio=Ratio(0.8, 0.75, 0.85))
        for shape, figures in bench.bundles[1].shapes.items()
    }
    slower = dataclasses.replace(
        bench, bundles=(bench.bundles[0], dataclasses.replace(bench.bundles[1], shapes=shapes))
    )
    (told,) = warnings(_report(bench=slower))
    assert told.startswith("arm64 is slower than fp32 on local: 0.80x (p10 0.75, p90 0.85)")
    assert warnings(_report(bench=None, measured=None)) == []


def _original(quality: Quality | None) -> Original:
    return Original("prune", (30_000_000, 22_500_000), quality, "" if quality else "the model had other labels then")


def test_what_the_passes_cost_stands_beside_what_rounding_costs() -> None:
    lost = Quality("span_f1", 0.61, 0.52, 0.12, 200, "yor", {"yor": GroupQuality(0.6, 0.48, 0.12, 90)})
    recipe = {"edgec": 1, "budget": {"accuracy_drop": 0.1}}
    report = _report(original=_original(lost), recipe=recipe)
    first, baseline, _, _ = (dict(zip(COLUMNS, row, strict=True)) for row in rows(report))
    assert (first["bundle"], first["MB"], first["quality"]) == ("before prune", "120.0 weights", "span_f1 0.6100")
    assert (baseline["bundle"], baseline["quality"]) == ("fp32 baseline", "span_f1 0.5200")
    assert {len(row) for row in rows(report)} == {len(COLUMNS)}
    assert report.data["original"]["quality"]["groups"]["yor"]["drop"] == 0.12
    (told,) = warnings(report)
    assert told.startswith(
        "the passes cost 0.12 in span_f1 in the group yor before int8, beside the model before prune"
    )
    recipe = {"edgec": 1, "budget": {"accuracy_drop": 0.2}}
    assert warnings(_report(original=_original(lost), recipe=recipe)) == []


def test_models_that_do_not_compare_have_their_sizes() -> None:
    report = _report(original=_original(None))
    first, baseline, _, _ = (dict(zip(COLUMNS, row, strict=True)) for row in rows(report))
    assert (first["MB"], first["quality"], baseline["quality"]) == ("120.0 weights", "-", "-")
    assert report.data["original"]["reason"] == "the model had other labels then"
    assert warnings(report) == []


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
    assert other["budget"] == "missed: accuracy_drop 0.02 (0.01) (speedup not measured)"


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
