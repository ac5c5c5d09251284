"""Cells of the papers' tables: trained once, kept through a kill, averaged over seeds; tables and pictures of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.papers import alad, distillation, plot, pruning, quantization
from benchmarks.papers.cells import Cell, Kept, over_seeds, run
from benchmarks.papers.data import LANGUAGES, drawn

SUITES = {"alad": alad, "pruning": pruning, "distillation": distillation, "quantization": quantization}


def test_a_finished_cell_is_not_trained_again(tmp_path: Path) -> None:
    trained: list[str] = []

    def cell(name: str, seed: int) -> Cell:
        def make() -> dict[str, Any]:
            trained.append(f"{name}{seed}")
            if name == "b" and len(trained) == 2:
                raise KeyboardInterrupt
            return {"f1": seed + 1.5}

        return Cell(name, seed, make)

    file = tmp_path / "x.cells.jsonl"
    cells = [cell("a", 0), cell("b", 0), cell("b", 1)]
    with pytest.raises(KeyboardInterrupt):
        run(cells, Kept(file))
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"key": "b | seed 0", "f1"')  # what a kill leaves of a line
    found = run(cells, Kept(file))
    assert trained == ["a0", "b0", "b0", "b1"]
    assert [(one["name"], one["seed"], one["f1"]) for one in found] == [("a", 0, 1.5), ("b", 0, 1.5), ("b", 1, 2.5)]
    assert run(cells, Kept(file)) == found and len(trained) == 4


def test_cells_of_other_settings_are_not_taken_for_these(tmp_path: Path) -> None:
    cell = Cell("a", 0, lambda: {"f1": 1.0})
    run([cell], Kept(tmp_path / "x.jsonl", {"steps": 2, "rates": (1e-4, 5e-4)}))
    assert Kept(tmp_path / "x.jsonl", {"steps": 2, "rates": (1e-4, 5e-4), "new": 1}).cells.keys() == {cell.key}
    with pytest.raises(SystemExit, match="was trained with steps 2, not 3"):
        Kept(tmp_path / "x.jsonl", {"steps": 3})


def test_means_and_deviations_are_those_of_numpy() -> None:
    found = [{"name": "a", "f1": value} for value in (1.0, 4.0, 10.0)] + [{"name": "b", "f1": 7.0}]
    means = over_seeds(found, "f1")
    assert means["a"]["mean"] == np.mean([1, 4, 10]) and means["a"]["std"] == np.std([1, 4, 10], ddof=1)
    assert means["b"] == {"mean": 7.0, "std": 0.0, "seeds": 1}


def test_rows_are_drawn_alike_and_in_their_order() -> None:
    rows = list(range(100))
    chosen = drawn(rows, 10)
    assert chosen == drawn(rows, 10) and list(chosen) == sorted(set(chosen)) and len(chosen) == 10
    assert drawn(rows, 1000) == tuple(rows)


@pytest.mark.parametrize("name", SUITES)
def test_every_cell_has_a_key_of_its_own_and_a_place_in_table_and_picture(name: str, tmp_path: Path) -> None:
    suite: Any = SUITES[name]
    cells = list(suite.cells(argparse.Namespace(data=tmp_path, seeds=2)))
    assert len({cell.key for cell in cells}) == len(cells)
    found = [{"name": cell.name, "seed": cell.seed, **figures(cell, place)} for place, cell in enumerate(cells)]
    result = {"settings": suite.SETTINGS, **suite.summary(found)}
    table = suite.table(result)
    assert table.count("\n") >= 4 and "nan" not in table
    plot.draw(name, result, tmp_path / "a.svg")
    plot.draw(name, result, tmp_path / "b.svg")
    picture = (tmp_path / "a.svg").read_bytes()
    assert picture == (tmp_path / "b.svg").read_bytes() and b"<svg" in picture


def figures(cell: Cell, place: int) -> dict[str, Any]:
    """Numbers as a suite's cells have them."""
    left_out = next((one for one in LANGUAGES if cell.name.startswith(f"without {one}")), None)
    languages = dict.fromkeys([left_out] if left_out else LANGUAGES, 50.0 + place)
    shares = [word.rstrip(",") for word in cell.name.split() if word.rstrip(",").endswith("%")]
    sparsity = int(shares[0].rstrip("%")) / 100 if shares else None
    return {
        "f1": 50.0 + place,
        "figure": 50.0 + place,
        "languages": languages,
        "sparsity": sparsity,
        **({"left_out": left_out} if left_out else {}),
        "parameters": 1000,
        "smaller": 0.25,
        "megabytes": 12.0,
        "speedup": 2.0,
        "latency_less": 0.5,
    }
