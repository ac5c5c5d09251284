"""How far a model is from its float form where there are no labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from edgec_runtime.manifest import GroupQuality, Quality

from edgec.data.examples import Text
from edgec.data.metrics import cosines
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
    groups: Sequence[str] = (),
    mask_token: str = "[MASK]",
    progress: Progress = no_progress,
) -> Quality:
    """1 - mean cosine of the candidate's graph outputs against the reference's, as `Quality.drop`.

    A text's figure is the mean over its rows: the one embedding, one row of logits a token
    (token-classification) or a mask (fill-mask), one row a text for other logits. texts: see `requests_for`. groups:
    what each text belongs to; the drop is then that of the worst group. Raises DataError where there are no texts, and
    BundleError for a text that cannot be encoded.
    """
    from edgec.models.requests import requests_for  # the package loads torch, which scoring a bundle does without

    requests = requests_for(task, texts, mask_token=mask_token)
    figures: list[float] = []
    step = progress("quality", len(requests))
    for start in range(0, len(requests), _CHUNK):
        chunk = requests[start : start + _CHUNK]
        pairs = zip(reference.raw(chunk), candidate.raw(chunk), strict=True)
        figures += [agreement(expected, actual) for expected, actual in pairs]
        step(len(figures))
    members: dict[str, list[float]] = {}
    if groups:
        # A pair is two requests where the task reads one text at a time.
        counts = [len(requests_for(task, [text], mask_token=mask_token)) for text in texts]
        for name, figure in zip(np.repeat(np.array(groups, object), counts), figures, strict=True):
            members.setdefault(name, []).append(figure)
    mean = float(np.mean(figures))
    by_group = {name: _cosine(found) for name, found in members.items()}
    return with_groups(Quality("cosine", 1.0, mean, 1.0 - mean, len(figures)), by_group)


def with_groups(overall: Quality, groups: Mapping[str, GroupQuality]) -> Quality:
    """`overall` with its groups: the drop becomes that of the worst, the first by name of equal ones."""
    if not groups:
        return overall
    by_name = dict(sorted(groups.items()))
    worst = max(by_name, key=lambda name: by_name[name].drop)
    return Quality(
        overall.metric, overall.before, overall.after, by_name[worst].drop, overall.n, group=worst, groups=by_name
    )


def agreement(expected: Mapping[str, npt.NDArray[Any]], actual: Mapping[str, npt.NDArray[Any]]) -> float:
    """Mean cosine over the rows of every output, (rows, size) or (size,)."""
    figures = [cosines(np.atleast_2d(expected[name]), np.atleast_2d(actual[name])).mean() for name in expected]
    return float(np.mean(figures))


def _cosine(figures: Sequence[float]) -> GroupQuality:
    mean = float(np.mean(figures))
    return GroupQuality(1.0, mean, 1.0 - mean, len(figures))
