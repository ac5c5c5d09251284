"""finetune: train the model, or only a new head, for a task on labelled rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgec.data.examples import Example, Labelled, Tagged
from edgec.errors import DataError, PassError, UserError
from edgec.passes.learn import fit, require_float, require_train
from edgec.state import ModelState, PassContext, PassResult
from edgec.training.options import MEANINGS, TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

Task = Literal["text-classification", "token-classification", "question-answering", "feature-extraction"]


@dataclass(frozen=True, kw_only=True)
class Finetune(TrainingOptions):
    __doc__ = f"""Supervised training on data.train.

    task: what to train for; null: the model's own task. A model made for another one, such as a sentence encoder, gets
    a new head. train: what learns, "all" of the model or the "head" alone, on a frozen encoder. labels: of
    classification tasks, in the order of the outputs; null: those that data.train has, "O" first. multi_label: a text
    may have several labels, or none (data.train.label_separator parts them). class_weights: what a label's rows count in
    the loss: the "same", or "balanced", each label as much as any other (the mean weight is 1). max_score: the score of
    two texts that mean the same; feature-extraction. max_length: tokens a training row; null: the model's. {MEANINGS}"""

    name: ClassVar[str] = "finetune"

    task: Task | None = None
    train: Literal["all", "head"] = "all"
    labels: tuple[str, ...] | None = None
    multi_label: bool = False
    class_weights: Literal["same", "balanced"] = "same"
    max_score: float = 5.0
    max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_score <= 0:
            raise ValueError(f"max_score should be above 0, not {self.max_score}")
        if self.multi_label and self.task not in (None, "text-classification"):
            raise ValueError(f"multi_label is for text-classification, not for {self.task}")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("labels names a label twice")

    def requires_data(self, ctx: PassContext) -> None:
        require_train(self.name, ctx)

    def requires(self, state: ModelState) -> None:
        require_float(self.name, state)
        if state.lora is not None:
            raise UserError("the model has LoRA adapters beside its weights", "merge them with fuse-adapters first")

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        from edgec.models.heads import with_head
        from edgec.training.features import Featurizer
        from edgec.training.objectives import Supervised

        task = self.task or state.spec.task
        labels = _labels(self.labels, ctx.data.train, task, state.spec.labels, self.multi_label)
        pairs = any(isinstance(example, Example) and example.text_pair is not None for example in ctx.data.train)
        after = with_head(
            state, task, labels=labels, multi_label=self.multi_label, pairs=pairs or state.spec.pairs, seed=ctx.seed
        )
        part = after.parts["encoder"]
        frozen = _freeze(part) if self.train == "head" else 0
        rows = Featurizer(after, max_length=self.max_length).labelled(ctx.data.train)
        weights = _weights(ctx.data.train, labels or (), self.multi_label) if self.class_weights == "balanced" else None
        objective = Supervised(
            multi_label=after.spec.multi_label, class_weights=weights, score_range=(0.0, self.max_score)
        )
        trained = fit(after, rows, objective, self.trains, ctx, label="finetune")
        for parameter in part.parameters():
            parameter.requires_grad_(True)
        report: dict[str, Any] = {
            "task": task,
            "labels": list(labels or ()),
            "examples": len(ctx.data.train),
            "frozen_parameters": frozen,
            "new_head": part.state_dict().keys() != state.parts["encoder"].state_dict().keys()
            or labels != state.spec.labels,
            **trained.to_dict(),
            "left_alone": {},
        }
        return PassResult(after, report)

    def ensures(self, before: ModelState, after: ModelState) -> None:
        if after.spec.task != (self.task or before.spec.task):
            raise PassError(f"finetune was to train for {self.task}, and the model is one for {after.spec.task}")


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
    if missing := sorted(found - set(named)):
        raise DataError(f"data.train has the label {missing[0]!r}, which `labels` does not name", "add it to labels")
    return named


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
    """Inversely proportional to how often a label occurs; their mean is 1. A label that never occurs counts 1."""
    import torch

    counts = _occurrences(examples, multi_label)
    inverse = torch.tensor([1 / counts[label] if counts[label] else 0.0 for label in labels])
    weights = inverse / inverse[inverse > 0].mean()
    return torch.where(inverse > 0, weights, torch.ones(()))


def _freeze(part: Any) -> int:
    """Only what lies behind the encoder goes on learning. Returns how many parameters do not."""
    from edgec.nn.layout import depth

    below, frozen = depth(part), 0
    for name, parameter in part.named_parameters():
        if below[name]:
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    return frozen
