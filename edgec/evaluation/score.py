"""Scores a model on data files: opens both, and tells the figures of every group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import edgec_runtime
from edgec_runtime.manifest import MANIFEST_FILE

from edgec.data.examples import Labelled
from edgec.data.files import OnError
from edgec.data.load import Files, read_rows
from edgec.errors import DataError, UserError
from edgec.formats import LABELLED, TABLES, format_of
from edgec.scoring import Measure, measure
from edgec.state import ModelState, Progress, no_progress
from edgec.task_rules import FORMATS

if TYPE_CHECKING:
    from edgec_runtime.loading import Model

GroupMetrics = dict[str, float | int | None]

DEFAULT_LABEL: Final = "label"
DEFAULT_SCORE: Final = "score"
_ENCODER: Final = "the model is one for feature-extraction, which is scored on pairs of texts with a score"


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model.

    metrics: those of the task, the main one first (edgec.scoring). groups: column, then value, to the same metrics and
    n, the rows with that value; a metric is None where the group is too small to have one. n: rows scored; skipped:
    malformed rows passed over; repaired: tags put right.
    """

    metrics: dict[str, float]
    groups: dict[str, dict[str, GroupMetrics]] = field(default_factory=dict)
    n: int = 0
    skipped: int = 0
    repaired: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def evaluate(
    model: str | Path | ModelState | Model,
    data: Files,
    *,
    revision: str | None = None,
    format: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    label_separator: str | None = None,
    group_by: Sequence[str] = (),
    rows: int | None = None,
    first_row: int = 0,
    null_answers: bool = False,
    on_error: OnError = "raise",
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Score `model` on the rows of `data`.

    model: a bundle, a model source or a build that `edgec.models.load_model` takes, or one that is loaded
    already. data: a file, or several by name. revision: of a hub id. text-classification compares the best label with
    `label` (by name, or by index where the file has numbers), default column "label"; feature-extraction takes pairs
    and correlates their cosine similarity with `label`, default column "score"; token-classification takes conll and
    conllu, question-answering squad. format, text, text_pair, label_separator, group_by, rows, first_row, on_error: see
    edgec.data.load.read_rows. null_answers: see edgec.scoring.score. threads: of a bundle. Raises DataError for the
    data, UserError for a model that cannot be scored, and what loading raises.
    """
    loaded, owned = _open(model, threads, revision)
    try:
        if null_answers and loaded.manifest.task != "question-answering":
            raise UserError(
                f"null answers are for question-answering, and the model does {loaded.manifest.task}", "leave them out"
            )
        try:
            found = read_rows(
                data,
                format=format,
                text=text,
                text_pair=text_pair,
                label=label or _default_label(loaded.manifest.task, data, format),
                label_separator=label_separator,
                group_by=group_by,
                rows=rows,
                first_row=first_row,
                on_error=on_error,
            )
        except DataError as error:
            if label is not None or repr(DEFAULT_SCORE) not in error.message:
                raise
            raise DataError(error.message, f"{error.hint}; {_ENCODER}") from None
        where = ", ".join(map(str, data.values())) if isinstance(data, Mapping) else str(data)
        of = measure(loaded, found.examples, where=where, null_answers=null_answers, progress=progress)
    finally:
        if owned:
            loaded.close()
    every = of(range(len(found.examples)))
    metrics = {name: value for name, value in every.items() if value is not None}
    if len(metrics) != len(every):
        raise DataError(
            f"{where}: the scores or the similarities are all equal, so there is no correlation",
            "give pairs of different similarity",
        )
    groups = {column: _by_group(found.examples, column, of) for column in group_by}
    return Evaluation(metrics, groups, len(found.examples), found.skipped, found.repaired)


def _open(model: str | Path | ModelState | Model, threads: int | None, revision: str | None) -> tuple[Model, bool]:
    """The model ready to run, and whether it is this module's to close. A bundle needs no torch, so none is loaded."""
    source = isinstance(model, str | Path) and not Path(model, MANIFEST_FILE).is_file()
    if revision is not None and not source:
        raise UserError(f"revision {revision!r} was given, but {model} is not a hub id", "leave the revision out")
    if isinstance(model, str | Path) and Path(model, MANIFEST_FILE).is_file():
        return edgec_runtime.load(model, threads=threads), True
    if not isinstance(model, str | Path | ModelState):
        return model, False
    from edgec.models import load_model
    from edgec.models.torch_model import torch_model

    if isinstance(model, ModelState):
        return torch_model(model), True
    return torch_model(load_model(model, revision=revision)), True


def _default_label(task: str, data: Files, format: str | None) -> str | None:
    """The column of the label where none is named. Refuses a format that the task is not scored on, before reading."""
    path = next(iter(data.values())) if isinstance(data, Mapping) else data
    kind = format_of(path, format)
    if task not in FORMATS:
        raise UserError(f"evaluate does not score {task}", f"it scores {', '.join(FORMATS)}")
    if kind not in FORMATS[task]:
        raise UserError(
            f"{path}: {task} is not scored on the format {kind}",
            f"it is scored on {', '.join(FORMATS[task])}; where the name misleads, give the format (--format)",
        )
    if kind in LABELLED or kind not in TABLES:
        return None
    return DEFAULT_LABEL if task == "text-classification" else DEFAULT_SCORE


def _by_group(examples: Sequence[Labelled], column: str, of: Measure) -> dict[str, GroupMetrics]:
    rows: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        rows[example.groups[column]].append(i)
    return {value: {**of(rows[value]), "n": len(rows[value])} for value in sorted(rows)}
