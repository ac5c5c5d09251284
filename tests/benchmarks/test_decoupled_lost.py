"""What a step of the decoupled benchmark costs: of the same questions, over the seeds that both models have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.decoupled import quality
from benchmarks.decoupled.lost import lost


def _cell(name: str, seed: int, each: list[float]) -> dict[str, Any]:
    return {"name": name, "seed": seed, "each": each}


def test_the_interval_is_that_of_paired_rows() -> None:
    rng = np.random.default_rng(3)
    before = rng.uniform(0, 100, 400)
    after = before - rng.normal(2.0, 5.0, 400)
    found = lost([_cell("a", 0, before.tolist()), _cell("b", 0, after.tolist())], "b", "a")
    assert found is not None and found["seeds"] == 1 and found["below"] == "a"
    each = before - after
    half = 1.96 * each.std(ddof=1) / len(each) ** 0.5
    assert found["mean"] == pytest.approx(each.mean())
    assert found["low"] == pytest.approx(each.mean() - half, abs=0.1)
    assert found["high"] == pytest.approx(each.mean() + half, abs=0.1)


def test_seeds_are_averaged_where_both_models_have_them() -> None:
    cells = [
        _cell("a", 0, [100.0, 0.0]),
        _cell("b", 0, [50.0, 0.0]),
        _cell("a", 1, [100.0, 100.0]),
        _cell("b", 1, [100.0, 50.0]),
        _cell("a", 2, [100.0, 100.0]),
    ]
    # Each of the two rows loses 25 on the average of two seeds, so every draw of rows does.
    assert lost(cells, "b", "a") == {"below": "a", "mean": 25.0, "low": 25.0, "high": 25.0, "seeds": 2}


def test_nothing_is_told_where_no_seed_has_both() -> None:
    assert lost([_cell("a", 0, [1.0]), _cell("b", 1, [1.0])], "b", "a") is None
    assert lost([{"name": "a", "seed": 0, "f1": 1.0}, _cell("b", 0, [1.0])], "b", "a") is None


def test_every_cell_but_the_teacher_is_set_beside_another_cell() -> None:
    names = {name for before in quality.BEFORE.items() for name in before}
    assert names - quality.BEFORE.keys() == {"standard"}


def test_the_table_tells_what_the_last_step_cost() -> None:
    result = {
        "on": "stsb",
        "means": {
            "accuracy": {
                "standard": {"mean": 85.0, "std": 0.0, "seeds": 1},
                "3-3": {"mean": 80.0, "std": 0.0, "seeds": 1},
            },
            "always_one": {
                "standard": {"mean": 60.0, "std": 0.0, "seeds": 1},
                "3-3": {"mean": 60.0, "std": 0.0, "seeds": 1},
            },
        },
        "lost": {"3-3": {"below": "standard", "mean": 5.0, "low": 2.0, "high": 8.25, "seeds": 1}},
    }
    assert quality.table(result).splitlines()[2:] == [
        "| standard | 85.0 | 60.0 |  |",
        "| 3-3 | 80.0 | 60.0 | 5.0 (2.0 to 8.2) |",
    ]
