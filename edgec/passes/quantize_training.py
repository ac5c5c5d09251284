"""Quantization-aware training: a calibrated model goes on learning while it rounds, and its ranges follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from edgec.data.examples import Example, Text
from edgec.errors import PassError
from edgec.nn.fake_layers import FakeLinear
from edgec.nn.fake_points import FakePoint, apply_points
from edgec.nn.fake_quantize import fake_quantized
from edgec.numerics.ranges import Range
from edgec.passes.learn import copied, fit
from edgec.state import ModelState, PassContext, PointQuantization, Quantization
from edgec.training.distillation import Distillation, Matching
from edgec.training.features import Featurizer, TrainingRow
from edgec.training.objectives import Objective, Supervised
from edgec.training.options import TrainingOptions
from edgec.training.quantization import Average, Follow, Rounding

LABELLED_TASKS: Final = ("text-classification", "token-classification", "question-answering")
SHOWN: Final = 5
"""How many ranges the report shows: those that moved the most."""


@dataclass(frozen=True)
class TrainingSettings:
    """The options of quantize that say how it trains; see there."""

    training: TrainingOptions
    start_step: int
    momentum: float
    average_checkpoints: int


def train_rounded(
    state: ModelState, decision: Quantization, settings: TrainingSettings, ctx: PassContext
) -> tuple[ModelState, dict[str, Any]]:
    """`state` with trained weights and with `decision`, whose ranges are those that training ended with.

    A copy of the part rounds as decided, in torch (edgec.nn.fake_quantize), from start_step on; gradients pass straight
    through. Smoothing factors, outlier channels and bias corrections stay as they are. Raises what the training loop
    raises. The second result is for the report.
    """
    ((name, part),) = state.parts.items()
    mine = decision.of_part(name)
    student: Any = fake_quantized(part, dataclasses.replace(mine, points={}))
    points = apply_points(student, mine.points)
    objective, rows, aim = _aim(state, student, ctx)
    rounding = Rounding(objective, student, points, momentum=settings.momentum)
    before = rounding.by_name()
    training = settings.training
    average = (
        Average(settings.average_checkpoints, training.checks, settings.start_step)
        if settings.average_checkpoints > 1
        else None
    )
    report: dict[str, Any] = {"objective": aim, "start_step": settings.start_step}
    learner = dataclasses.replace(state, parts={name: student}, quantization=None)
    with rounding.following(student):
        trained = fit(
            learner,
            rows,
            rounding,
            training,
            ctx,
            label="train with rounding",
            callbacks=[Follow(rounding, settings.start_step), *([] if average is None else [average])],
        )
    rounding.to("cpu")
    if average is not None:
        _load(student, rounding, average.mean)
    rounding.put()
    rounding.rescale(searched=True)
    report |= trained.to_dict()
    if average is not None:
        report["averaged_checkpoints"] = average.taken
        report["best_step"] = None
        if rounding.names:
            report["adjusted_batches"] = rounding.adjust(
                student,
                rows,
                batch_size=training.batch_size,
                pad_id=int(state.tokenizer.pad_token_id or 0),
                seed=ctx.seed,
                progress=ctx.progress,
            )
    report["ranges"], report["largest_changes"] = len(rounding.names), _moved(before, rounding.by_name())
    after = copied(state)
    _take_weights(after.parts[name], student)
    return dataclasses.replace(after, quantization=_learned(decision, name, student, points)), report


def training_texts(ctx: PassContext) -> tuple[Text, ...]:
    """What a model without labels to learn from is run on: unlabelled texts, else those of labelled rows, else those
    that calibrate."""
    labelled = tuple(example.request for example in ctx.data.train if isinstance(example, Example))
    return ctx.data.unlabelled or labelled or ctx.texts


def _aim(state: ModelState, student: Any, ctx: PassContext) -> tuple[Objective, Sequence[TrainingRow], str]:
    """What is minimised, on which rows, and its name in the report."""
    featurizer = Featurizer(state, say=ctx.say)
    if ctx.data.train and state.spec.task in LABELLED_TASKS:
        return Supervised(multi_label=state.spec.multi_label), featurizer.labelled(ctx.data.train), "labels"
    (teacher,) = state.parts.values()
    embeds = state.spec.task == "feature-extraction"
    matching = Matching(embeddings="cosine" if state.spec.normalize else "mse", multi_label=state.spec.multi_label)
    weights = {"embeddings" if embeds else "logits": 1.0}
    return Distillation(student, teacher, weights, matching), featurizer.texts(training_texts(ctx)), "float outputs"


def _load(student: Any, rounding: Rounding, mean: Mapping[str, torch.Tensor]) -> None:
    """Give part and ranges the tensors of the learner whose parts they were."""
    for prefix, module in (("part.", student), ("objective.", rounding)):
        found = {name.removeprefix(prefix): one for name, one in mean.items() if name.startswith(prefix)}
        module.load_state_dict(found, strict=False)


def _take_weights(part: torch.nn.Module, student: torch.nn.Module) -> None:
    """Copy the weights of the fake-quantized part, which has each where the float one has it."""
    trained = dict(student.named_parameters())
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            if name not in trained:
                raise PassError(f"the parameter {name} is not in the model that was trained")
            parameter.copy_(trained[name])


def _learned(
    decision: Quantization, part: str, student: torch.nn.Module, points: Mapping[str, FakePoint]
) -> Quantization:
    """`decision` with the ranges that the part rounds on now."""
    layers = dict(decision.layers)
    for key in layers:
        name, _, path = key.partition(":")
        layer = student.get_submodule(path) if name == part else None
        if isinstance(layer, FakeLinear):
            layers[key] = layer.quantization
    moved: dict[str, PointQuantization] = {f"{part}:{path}": fake.point for path, fake in points.items()}
    return dataclasses.replace(decision, layers=layers, points={**decision.points, **moved})


def _moved(before: Mapping[tuple[str, str], Range], after: Mapping[tuple[str, str], Range]) -> dict[str, Any]:
    """The ranges that changed the most, in parts of their width before."""

    def change(name: tuple[str, str]) -> float:
        (low, high), (new_low, new_high) = before[name], after[name]
        return max(abs(new_low - low), abs(new_high - high)) / max(high - low, 1e-12)

    largest = sorted(before, key=change, reverse=True)[:SHOWN]
    return {f"{path}/{name}": {"before": before[path, name], "after": after[path, name]} for path, name in largest}
