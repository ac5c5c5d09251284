"""Verdicts: within, beyond, and where there was nothing to judge."""

from __future__ import annotations

import pytest
from edgec_runtime.manifest import GroupQuality, Quality
from figures import bench_report, manifest

from edgec.budget import JUDGED_SHAPE, Verdict, judge, judged_shape, room, worst_drop
from edgec.evaluation.quality import with_groups
from edgec.recipe import Budget

EVERYTHING = Budget(accuracy_drop=0.01, size_mb=25, speedup=1.5, p50_ms=12)


def _by_what(verdicts: list[Verdict]) -> dict[str, Verdict]:
    assert len({(v.target, v.what) for v in verdicts}) == len(verdicts)
    return {verdict.what: verdict for verdict in verdicts}


def test_nothing_asked_nothing_judged() -> None:
    assert judge(Budget(), {"arm64": manifest()}, bench_report(), "arm64") == []


def test_all_limits_are_kept() -> None:
    verdicts = _by_what(judge(EVERYTHING, {"arm64": manifest()}, bench_report(), "arm64"))
    assert verdicts == {
        "accuracy_drop": Verdict("arm64", "accuracy_drop", 0.01, 0.004, True),
        "size_mb": Verdict("arm64", "size_mb", 25, 20.0, True),
        "speedup": Verdict("arm64", "speedup", 1.5, 3.0, True),
        "p50_ms": Verdict("arm64", "p50_ms", 12, 10.0, True),
    }


@pytest.mark.parametrize(
    ("what", "verdict"),
    [
        ("accuracy_drop", _by_what(judge(EVERYTHING, {"t": manifest(drop=0.011)}, None, None))),
        ("size_mb", _by_what(judge(EVERYTHING, {"t": manifest(megabytes=25.1)}, None, None))),
        ("speedup", _by_what(judge(EVERYTHING, {"t": manifest()}, bench_report((14.0, 10.0)), "t"))),
        ("p50_ms", _by_what(judge(EVERYTHING, {"t": manifest()}, bench_report((60.0, 13.0)), "t"))),
    ],
)
def test_each_limit_can_be_missed_alone(what: str, verdict: dict[str, Verdict]) -> None:
    assert verdict[what].met is False
    assert all(one.met is not False for name, one in verdict.items() if name != what)
    assert "misses the budget of" in str(verdict[what])


def test_a_limit_is_within_itself() -> None:
    budget = Budget(accuracy_drop=0.004, size_mb=20.0, speedup=3.0, p50_ms=10.0)
    assert all(one.met for one in judge(budget, {"t": manifest()}, bench_report(), "t"))


def test_speed_is_judged_on_the_measured_target_alone() -> None:
    found = judge(EVERYTHING, {"arm64": manifest(), "other": manifest("other")}, bench_report(), "arm64")
    speed = {(v.target, v.what): (v.value, v.met) for v in found if v.what in ("speedup", "p50_ms")}
    assert speed == {
        ("arm64", "speedup"): (3.0, True),
        ("arm64", "p50_ms"): (10.0, True),
        ("other", "speedup"): (None, None),
        ("other", "p50_ms"): (None, None),
    }
    assert "other: speedup was not measured" in map(str, found)


def test_no_data_no_drop() -> None:
    (verdict,) = judge(Budget(accuracy_drop=0.01), {"t": manifest(drop=None)}, None, None)
    assert (verdict.value, verdict.met) == (None, None)


def test_the_worst_group_is_judged_and_named() -> None:
    quality = with_groups(
        Quality("cosine", 1.0, 0.997, 0.003, 30),
        {"en": GroupQuality(1.0, 0.999, 0.001, 20), "de": GroupQuality(1.0, 0.993, 0.007, 10)},
    )
    bundles = {"t": manifest(quality=quality)}
    drop, size = judge(Budget(accuracy_drop=0.005, size_mb=25), bundles, None, None)
    assert (drop.value, drop.met, drop.group) == (0.007, False, "de")
    assert str(drop) == "t: accuracy_drop 0.007 (group de) misses the budget of 0.005"
    assert size.group == ""
    assert "group" not in str(size)
    (kept,) = judge(Budget(accuracy_drop=0.01), bundles, None, None)
    assert str(kept) == "t: accuracy_drop 0.007 (group de) within the budget of 0.01"


def test_what_is_left_to_put_layers_back() -> None:
    bundles = {"a": manifest(drop=0.01, megabytes=20), "b": manifest(drop=0.03, megabytes=22), "c": manifest(drop=None)}
    assert worst_drop(bundles) == 0.03
    assert worst_drop({"c": bundles["c"]}) is None
    assert room(Budget(size_mb=25), bundles) == pytest.approx(3e6)
    assert room(Budget(size_mb=21), bundles) == pytest.approx(-1e6)
    assert room(Budget(accuracy_drop=0.1), bundles) is None


def test_a_model_of_short_rows_is_judged_on_its_longest() -> None:
    assert judged_shape(bench_report().bundles[0]) == JUDGED_SHAPE == (1, 128)
    short = bench_report(tokens=(16, 32))
    assert judged_shape(short.bundles[1]) == (1, 32)
    assert _by_what(judge(EVERYTHING, {"t": manifest()}, short, "t"))["p50_ms"].value == 10.0
