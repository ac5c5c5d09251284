"""What one model scores below another on the same rows, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

DRAWS: Final = 10_000


def lost(found: Iterable[Mapping[str, Any]], name: str, before: str) -> dict[str, Any] | None:
    """How far the cells `name` score below the cells `before`, by the figure that both keep of each row.

    mean: over the rows, and over the seeds that both have. low, high: the 2.5th and 97.5th percentile of that over
    draws of as many rows with replacement (the paired bootstrap); seeds are not drawn. None where no seed has both.
    """
    cells = {(cell["name"], cell["seed"]): cell["each"] for cell in found if "each" in cell}
    seeds = [seed for of, seed in cells if of == name and (before, seed) in cells]
    if not seeds:
        return None
    each = np.mean([np.subtract(cells[before, seed], cells[name, seed]) for seed in seeds], axis=0)
    drawn = np.random.default_rng(0).integers(0, len(each), (DRAWS, len(each)))
    low, high = np.percentile(each[drawn].mean(axis=1), (2.5, 97.5))
    mean = float(each.mean())
    return {"below": before, "mean": mean, "low": float(low), "high": float(high), "seeds": len(seeds)}
