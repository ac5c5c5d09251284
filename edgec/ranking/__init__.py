"""Which layers cost the most: each alone in few bits, the worst first.

    edgec.ranking.measure.rank(state, texts)     a model that a pass has quantized
    edgec.sensitivity("org/model", "texts.txt")  a build, or a model source that is quantized first

The package is called `ranking` because `sensitivity` is a function of the public surface.
"""

from __future__ import annotations

from .result import LayerSensitivity, Ranking
from .source import sensitivity

__all__ = ["LayerSensitivity", "Ranking", "sensitivity"]
