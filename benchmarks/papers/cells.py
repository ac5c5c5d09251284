"""A table is made of cells, each trained once and kept: a run that is killed goes on with the next one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """name: its row in the table. seed: of everything random. make: trains and scores; its figures are JSON values."""

    name: str
    seed: int
    make: Callable[[], Figures]

    @property
    def key(self) -> str:
        return f"{self.name} | seed {self.seed}"


class Kept:
    """Finished cells, one JSON object a line; a line that a kill cut short does not count.

    settings: of this run, kept with every cell. Ends the program where the file has cells of other settings: they are
    another table's.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.file = file
        self.settings = json.loads(json.dumps(settings or {}))
        self.cells: dict[str, dict[str, Any]] = {}
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        self.whole = not text or text.endswith("\n")
        if text:
            for line in text.splitlines():
                try:
                    one = json.loads(line)
                except ValueError:
                    continue
                self._require_ours(one)
                self.cells[one["key"]] = one

    def _require_ours(self, one: Mapping[str, Any]) -> None:
        theirs = one.get("settings", {})
        for name in self.settings.keys() & theirs.keys():
            if self.settings[name] != theirs[name]:
                raise SystemExit(
                    f"error: {self.file}: the cell {one['key']!r} was trained with {name} {theirs[name]!r}, not "
                    f"{self.settings[name]!r}\n  hint: name another --out"
                )

    def add(self, cell: Cell, figures: Figures) -> None:
        one = {"key": cell.key, "name": cell.name, "seed": cell.seed, **figures, "settings": self.settings}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(one, ensure_ascii=False) + "\n"
        with self.file.open("a", encoding="utf-8") as stream:
            # A line that a kill cut short must not take this one along.
            stream.write(line if self.whole else f"\n{line}")
        self.whole = True
        self.cells[cell.key] = one


def run(cells: Iterable[Cell], kept: Kept) -> list[dict[str, Any]]:
    """The figures of all cells, those that `kept` does not have trained now."""
    wanted = list(cells)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), transient=True) as progress:
        bar = progress.add_task("cells", total=len(wanted))
        for cell in wanted:
            progress.update(bar, description=cell.key[:60])
            if cell.key not in kept.cells:
                kept.add(cell, cell.make())
            progress.advance(bar)
    return [{name: value for name, value in kept.cells[cell.key].items() if name != "settings"} for cell in wanted]


def over_seeds(found: Iterable[Mapping[str, Any]], figure: str) -> dict[str, dict[str, float]]:
    """By name of the cell the mean of a figure over the seeds, its standard deviation, and the number of seeds."""
    values: dict[str, list[float]] = {}
    for one in found:
        if figure in one:
            values.setdefault(one["name"], []).append(float(one[figure]))
    return {
        name: {
            "mean": float(np.mean(numbers)),
            "std": float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0,
            "seeds": len(numbers),
        }
        for name, numbers in values.items()
    }
