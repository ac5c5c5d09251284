"""Turns, ratios and the choice of the baseline, on made-up times."""

from __future__ import annotations

import pytest

from benchmarks.int8 import contenders, fresh, speed
from benchmarks.int8.environments import PeerFailed


def always(milliseconds: float, log: list[str] | None = None, name: str = "") -> speed.Call:
    def call(count: int) -> list[float]:
        if log is not None:
            log.append(name)
        return [milliseconds] * count

    return call


def test_every_second_round_goes_the_other_way() -> None:
    log: list[str] = []
    speed.take_turns({name: always(2000, log, name) for name in "abc"}, rounds=3)
    assert "".join(log[3:]) == "abccbaabc"


def test_a_turn_is_long_enough_for_a_median_and_its_first_call_does_not_count() -> None:
    def slow_at_first(count: int) -> list[float]:
        return [50.0] + [10.0] * (count - 1)

    series, _ = speed.take_turns({"a": slow_at_first}, rounds=2)
    assert series["a"].rounds == [10.0, 10.0]
    assert series["a"].calls == [10.0] * 8  # 4 calls of 10 ms a turn


def test_who_fails_on_the_way_is_dropped_and_named() -> None:
    calls = iter(range(100))

    def breaks(count: int) -> list[float]:
        if next(calls) > 1:
            raise PeerFailed("out of memory")
        return [2000.0] * count

    series, failures = speed.take_turns({"a": breaks, "b": always(2000)}, rounds=4)
    assert failures == {"a": "out of memory"}
    assert list(series) == ["b"]
    assert len(series["b"].rounds) == 4


def test_a_ratio_compares_within_a_round() -> None:
    # The machine is three times slower in the second half: the ratio does not notice.
    base = speed.Series(calls=[10, 10, 30, 30], rounds=[10, 10, 30, 30])
    fast = speed.Series(calls=[5, 5, 15, 15], rounds=[5, 5, 15, 15])
    found = speed.summarise({"fp32-plain": base, "x": fast}, "fp32-plain")
    assert found["x"]["speedup"] == {"median": 2.0, "p10": 2.0, "p90": 2.0}
    assert found["x"]["unstable"] is None
    assert found["x"]["ms"]["p50"] == 10.0
    assert found["fp32-plain"]["unstable"] is not None


def test_the_baseline_is_the_fastest_float_form_and_nothing_else() -> None:
    series = {
        "edgec": speed.Series(rounds=[1.0]),
        "fp32-plain": speed.Series(rounds=[9.0, 9.0, 1.0]),
        "fp32-eager": speed.Series(rounds=[8.0, 8.0, 8.0]),
    }
    assert speed.fastest_float(series) == "fp32-eager"
    with pytest.raises(SystemExit, match="no float form"):
        speed.fastest_float({"edgec": series["edgec"]})


def test_cold_starts_leave_the_first_round_out_and_tell_who_failed() -> None:
    times = iter([(900.0, 99.0), *[(300.0, 80.0)] * 9])
    bare = iter([500.0, *[200.0] * 9])

    def broken() -> tuple[float, float]:
        raise PeerFailed("no such file")

    found = fresh.measure({"a": lambda: next(times), "b": broken}, lambda: next(bare), rounds=4)
    assert found["a"]["rounds"] == 4
    assert found["a"]["over_imports"] == {"p50": 1.5, "p10": 1.5, "p90": 1.5}
    assert found["a"]["peak_memory_mb"] == 80.0
    assert found["b"] == {"error": "no such file"}
    assert found["imports"]["ms"]["p50"] == 200.0


def test_a_slow_starter_has_fewer_rounds() -> None:
    found = fresh.measure({"slow": lambda: (7000.0, 1.0), "quick": lambda: (200.0, 1.0)}, lambda: 100.0, rounds=10)
    assert found["slow"]["rounds"] == 2
    assert found["quick"]["rounds"] == 10


def test_edgec_the_baseline_and_the_reference_always_take_part() -> None:
    chosen = [one.name for one in contenders.choose("openvino")]
    assert {"openvino", "edgec", "torch", "fp32-plain"} <= set(chosen)
    assert "ctranslate2" not in chosen and "optimum" not in chosen
    with pytest.raises(SystemExit, match="no such peer: opnvino"):
        contenders.choose("opnvino")


def test_every_contender_has_its_files() -> None:
    for one in contenders.ALL:
        assert one.path.is_file()
        assert (contenders.PEERS / f"{one.environment}.txt").is_file()
    assert len({one.name for one in contenders.ALL}) == len(contenders.ALL)
