"""Layers that an interrupted ranking has finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Finished:
    """Measured layers by name, kept in a file of JSON lines: the key of the measurement, then a line a layer.

    A file of another key is replaced, and so is what a killed process left half written at its end. path None: they
    are kept in memory alone.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path = path
        self.layers: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        head = {"key": key}
        lines = _objects(path)
        if lines[:1] == [head]:
            self.layers = {line["layer"]: line for line in lines[1:]}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text("".join(map(_line, (head, *self.layers.values()))), encoding="utf-8")
        temporary.replace(path)

    def add(self, layer: str, figures: dict[str, Any]) -> None:
        """Note a layer; from here on a killed process does not lose it."""
        self.layers[layer] = {"layer": layer, **figures}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(self.layers[layer]))


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"


def _objects(path: Path) -> list[dict[str, Any]]:
    """The lines of the file up to the first that is no whole one."""
    found: list[dict[str, Any]] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            found.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return found
