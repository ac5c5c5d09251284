"""How far a model is from its float form where there are no labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from edgec_runtime.manifest import Quality

from edgec.data.metrics import cosines
from edgec.data.readers import Text
from edgec.state import Progress, no_progress

_CHUNK = 32


class RawModel(Protocol):
    """Gives the outputs of its graph: a loaded bundle, or `torch_model`."""

    def raw(self, requests: Sequence[Any]) -> list[dict[str, npt.NDArray[np.float32]]]: ...


def quality(
    reference: RawModel,
    candidate: RawModel,
    task: str,
    texts: Sequence[Text],
    *,
    mask_token: str = "[MASK]",
    progress: Progress = no_progress,
) -> Quality:
    """1 - mean cosine of the candidate's graph outputs against the reference's, as `Quality.drop`.

    A text's figure is the mean over its rows: the one embedding, one row of logits a token
    (token-classification) or a mask (fill-mask), one row a text for other logits. texts: see `requests_for`.
    Raises DataError where there are none, and BundleError for a text that cannot be encoded.
    """
    from edgec.models.requests import requests_for  # the package loads torch, which scoring a bundle does without

    requests = requests_for(task, texts, mask_token=mask_token)
    figures: list[float] = []
    step = progress("quality", len(requests))
    for start in range(0, len(requests), _CHUNK):
        chunk = requests[start : start + _CHUNK]
        pairs = zip(reference.raw(chunk), candidate.raw(chunk), strict=True)
        figures += [_agreement(expected, actual) for expected, actual in pairs]
        step(len(figures))
    mean = float(np.mean(figures))
    return Quality(metric="cosine", before=1.0, after=mean, drop=1.0 - mean, n=len(figures))


def _agreement(expected: dict[str, npt.NDArray[np.float32]], actual: dict[str, npt.NDArray[np.float32]]) -> float:
    """Mean cosine over the rows of every output, (rows, size) or (size,)."""
    figures = [cosines(np.atleast_2d(expected[name]), np.atleast_2d(actual[name])).mean() for name in expected]
    return float(np.mean(figures))
