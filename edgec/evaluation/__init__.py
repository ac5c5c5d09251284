"""Scores a bundle or a torch model on a data file, and tells how far two forms of a model are apart.

A torch model is run by the code that runs bundles, with torch in the place of onnxruntime: the same tokens,
the same truncation, the same answers, so that a difference between two scores is a difference between two
models.
"""

from __future__ import annotations

from edgec.data.metrics import mean_cosine
from edgec.evaluation.bundles import bundle_quality, scored
from edgec.evaluation.quality import RawModel, quality
from edgec.evaluation.score import Evaluation, evaluate

__all__ = ["Evaluation", "RawModel", "bundle_quality", "evaluate", "mean_cosine", "quality", "scored"]
