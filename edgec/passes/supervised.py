"""What the passes that learn a task from labelled rows have in common: its options, its head, its rows and its loss."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgec.data.examples import Example, Labelled, Tagged
from edgec.errors import DataError, UserError
from edgec.passes.learn import require_room, require_scored, require_train
from edgec.state import ModelState, PassContext
from edgec.training.options import MEANINGS as TRAINING_MEANINGS
from edgec.training.options import TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from edgec.training.features import TrainingRow
    from edgec.training.objectives import Supervised

Task = Literal["text-classification", "token-classification", "question-answering", "feature-extraction"]

MEANINGS = f"""
    task: what to train for; null: the model's own task. A model made for another one, such as a sentence encoder, gets
    a new head. labels: of classification tasks, in the order of the outputs; null: those that data.train has, "O"
    first. multi_label: a text may have several labels, or none (data.train.label_separator parts them). class_weights:
    what a label's rows count in the loss: the "same", or "balanced", each label as much as any other (the mean weight
    is 1), with multi_label the rows that have it as much as those that do not. max_score: the score of two texts that
    mean the same; feature-extraction. max_length: tokens a training row; null: the model's.
    {TRAINING_MEANINGS}"""
"""One sentence or two for each option: the docstring of a pass ends with them."""


@dataclass(frozen=True, kw_only=True)
class SupervisedOptions(TrainingOptions):
    __doc__ = f"""How a pass learns a task from data.train.
    {MEANINGS}"""

    task: Task | None = None
    labels: tuple[str, ...] | None = None
    multi_label: bool = False
    class_weights: Literal["same", "balanced"] = "same"
    max_score: float = 5.0
    max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_score <= 0:
            raise ValueError(f"max_score should be above 0, not {self.max_score}")
        require_room(self.max_length)
        if self.multi_label and self.task not in (None, "text-classification"):
            raise ValueError(f"multi_label is for text-classification, not for {self.task}")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("labels names a label twice")


def require_taught(name: str, options: SupervisedOptions, training: TrainingOptions, ctx: PassContext) -> None:
    """What can be told before the model is loaded: rows are there, and options and labels fit them.

    training: how the phase trains that learns from the labels. Raises DataError or UserError.
    """
    require_train(name, ctx)
    require_scored(training, ctx, options.task)
    if options.task in ("text-classification", "token-classification") and options.labels is not None:
        _require_named(options.labels, ctx.data.train, options.multi_label)
    if options.task == "feature-extraction":
        require_scores(ctx.data.train, options.max_score)


@dataclass(frozen=True)
class Lesson:
    """state: a copy of the model with the head of the task. rows, objective: what fit() takes. new_head: the head is
    another than before, with random weights.
    """

    state: ModelState
    rows: list[TrainingRow]
    objective: Supervised
    new_head: bool


def lesson(options: SupervisedOptions, state: ModelState, ctx: PassContext) -> Lesson:
    """Everything that training `state` for the task on ctx.data.train takes.

    Raises UserError for labels where the task has none, DataError for rows that do not fit the task.
    """
    from edgec.models.heads import with_head
    from edgec.training.features import Featurizer
    from edgec.training.objectives import Supervised

    task, examples = options.task or state.spec.task, ctx.data.train
    if options.multi_label and task != "text-classification":
        raise UserError(f"multi_label is for text-classification, not for {task}", "leave it out, or name the task")
    require_one_label(options, examples)
    labels = _labels(options.labels, examples, task, state.spec.labels, options.multi_label)
    if labels is not None and not labels:
        raise DataError("data.train has no labels", "name their column: data.train.label_column")
    if labels is not None and len(labels) < 2 and not options.multi_label:
        raise DataError(
            f"data.train has one label alone, {labels[0]!r}: there is nothing to tell apart",
            "give rows of other labels, or name those that the head shall have: labels",
        )
    if task == "feature-extraction":
        require_scores(examples, options.max_score)
    pairs = any(isinstance(example, Example) and example.text_pair is not None for example in examples)
    made = with_head(
        state, task, labels=labels, multi_label=options.multi_label, pairs=pairs or state.spec.pairs, seed=ctx.seed
    )
    folded = Counter(label.lower() for label in labels or ())
    if alike := [label for label in labels or () if folded[label.lower()] > 1]:
        ctx.say(f"the labels {', '.join(map(repr, alike))} differ by case alone: they are labels of their own")
    weighted = options.class_weights == "balanced"
    objective = Supervised(
        multi_label=made.spec.multi_label,
        class_weights=_weights(examples, labels or (), options.multi_label) if weighted else None,
        score_range=(0.0, options.max_score),
    )
    heads = [(spec.task, spec.labels, spec.multi_label) for spec in (state.spec, made.spec)]
    new_head = heads[0] != heads[1] and task != "feature-extraction"
    return Lesson(
        made, Featurizer(made, max_length=options.max_length, say=ctx.say).labelled(examples), objective, new_head
    )


def require_one_label(options: SupervisedOptions, examples: Sequence[Labelled]) -> None:
    """Raises UserError where rows have several labels, and the head has one."""
    if not options.multi_label and any(isinstance(one, Example) and one.labels is not None for one in examples):
        raise UserError(
            "rows of data.train may have several labels (data.train.label_separator), and the head gives one",
            "say multi_label: true, or leave label_separator out",
        )


def _labels(
    named: tuple[str, ...] | None,
    examples: Sequence[Labelled],
    task: str,
    before: tuple[str, ...] | None,
    multi_label: bool,
) -> tuple[str, ...] | None:
    """The labels of the head: those named, those the model has where they cover the data, else those of the data."""
    if task not in ("text-classification", "token-classification"):
        if named is not None:
            raise UserError(f"labels are named, and {task} has none", "leave labels out")
        return None
    found = set(_occurrences(examples, multi_label))
    if named is None and before is not None and found <= set(before):
        return before
    if named is None:
        return tuple(sorted(found, key=_order))
    _require_named(named, examples, multi_label)
    return named


def _require_named(named: tuple[str, ...], examples: Sequence[Labelled], multi_label: bool) -> None:
    if missing := sorted(set(_occurrences(examples, multi_label)) - set(named)):
        raise DataError(f"data.train has the label {missing[0]!r}, which `labels` does not name", "add it to labels")


def require_scores(examples: Sequence[Labelled], highest: float) -> None:
    """Raises DataError, with the place, for a score of a pair that is none between 0 and the highest."""
    for example in examples:
        if not isinstance(example, Example) or example.text_pair is None or example.label is None:
            continue
        place = f"{example.path or 'data.train'}:{example.line}" if example.line else "data.train"
        try:
            score = float(example.label)
        except ValueError:
            raise DataError(
                f"{place}: the score {example.label!r} is not a number", "name the column of the scores: label_column"
            ) from None
        if not 0 <= score <= highest:
            raise DataError(
                f"{place}: the score {example.label} is not between 0 and max_score, {highest:g}",
                "say the score of two texts that mean the same: max_score",
            )


def _occurrences(examples: Sequence[Labelled], multi_label: bool) -> Counter[str]:
    """How often each label occurs."""
    counts: Counter[str] = Counter()
    for example in examples:
        if isinstance(example, Tagged):
            counts.update(example.tags)
        elif isinstance(example, Example):
            if example.label is None:
                raise DataError("data.train has no labels", "name their column: data.train.label_column")
            counts.update(example.every_label if multi_label else [example.label])
    return counts


def _order(label: str) -> tuple[bool, float, str]:
    """ "O" first, numbers by their value, the rest by name."""
    try:
        return label != "O", float(label), ""
    except ValueError:
        return label != "O", 0.0, label


def _weights(examples: Sequence[Labelled], labels: Sequence[str], multi_label: bool) -> torch.Tensor:
    """Inversely proportional to how often a label occurs; their mean is 1. multi_label: as many times as the label
    occurs it does not. A label that never occurs counts 1.
    """
    import torch

    counts = _occurrences(examples, multi_label)
    if multi_label:
        without = {label: len(examples) - counts[label] for label in labels}
        return torch.tensor([max(1, without[label]) / counts[label] if counts[label] else 1.0 for label in labels])
    inverse = torch.tensor([1 / counts[label] if counts[label] else 0.0 for label in labels])
    weights = inverse / inverse[inverse > 0].mean()
    return torch.where(inverse > 0, weights, torch.ones(()))
