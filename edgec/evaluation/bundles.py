"""What a bundle lost against its fp32 form, on the evaluation data of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgec_runtime.manifest import GroupQuality, Quality

from edgec.data.readers import Sample
from edgec.emulation import load_as_target
from edgec.errors import DataError
from edgec.recipe import EvaluationData
from edgec.state import Progress, no_progress

from .quality import quality, with_groups
from .score import Evaluation, evaluate

if TYPE_CHECKING:
    from edgec_runtime.loading import Model


def bundle_quality(
    baseline: Path,
    folder: Path,
    data: EvaluationData,
    sample: Sample,
    *,
    before: Evaluation | None = None,
    progress: Progress = no_progress,
) -> Quality:
    """By the labels of `data` where it has them, by the cosine against the bundle `baseline` where it has texts alone.

    What is told is what the target's CPUs answer, emulated where this one would answer otherwise.

    before: what scored() says of the baseline, where it is known. sample: the texts of `data`, with their groups where
    it names a group_column; the drop is then that of the worst group. Raises DataError for the data, a group without
    enough rows for the metric among it, and what loading raises.
    """
    with load_as_target(baseline) as reference, load_as_target(folder) as candidate:
        return quality_between(reference, candidate, data, sample, before=before, progress=progress)


def scored(folder: Path, data: EvaluationData, *, progress: Progress = no_progress) -> Evaluation | None:
    """The bundle's scores on `data`; None where that has no labels."""
    if not data.scored:
        return None
    with load_as_target(folder) as model:
        return _score(model, data, progress)


def quality_between(
    reference: Model,
    candidate: Model,
    data: EvaluationData,
    sample: Sample,
    *,
    before: Evaluation | None = None,
    after: Evaluation | None = None,
    progress: Progress = no_progress,
) -> Quality:
    """What `candidate` loses against `reference`; see bundle_quality. before, after: their scores, where known."""
    if data.scored:
        before, after = before or _score(reference, data, progress), after or _score(candidate, data, progress)
        return _lost(before, after, data)
    return quality(
        reference,
        candidate,
        candidate.manifest.task,
        sample.texts,
        groups=sample.groups,
        mask_token=candidate.manifest.postprocessing.mask_token or "",
        progress=progress,
    )


def _score(model: Model, data: EvaluationData, progress: Progress) -> Evaluation:
    return evaluate(
        model,
        data.paths or data.path,
        format=data.format,
        text=data.text_column,
        text_pair=data.text_pair_column,
        label=data.label_column,
        label_separator=data.label_separator,
        group_by=() if data.group_column is None else (data.group_column,),
        rows=data.rows,
        first_row=data.first_row,
        on_error=data.on_error,
        progress=progress,
    )


def _lost(before: Evaluation, after: Evaluation, data: EvaluationData) -> Quality:
    metric: str = data.metric or next(iter(after.metrics))  # the first is the task's main one
    if metric not in after.metrics:
        raise DataError(
            f"{data.shown}: these rows have no {metric}", f"they give {', '.join(after.metrics)}: choose one of those"
        )
    groups = {}
    for name, figures in after.groups.get(data.group_column or "", {}).items():
        was, now = before.groups[data.group_column or ""][name].get(metric), figures.get(metric)
        if was is None or now is None:
            raise DataError(
                f"{data.shown}: the group {name!r} of {data.group_column} has no {metric}: its {figures['n']} rows are "
                "too few, or all alike",
                "give the group more rows, or leave group_column out",
            )
        groups[name] = GroupQuality(was, now, was - now, int(figures["n"] or 0))
    drop = before.metrics[metric] - after.metrics[metric]
    return with_groups(Quality(metric, before.metrics[metric], after.metrics[metric], drop, after.n), groups)
