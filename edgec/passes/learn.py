"""What the passes that train have in common: the wiring between a state, its data and the training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from edgec.data.examples import Question
from edgec.errors import DataError, UserError
from edgec.state import ModelState, PassContext
from edgec.task_rules import METRICS

if TYPE_CHECKING:
    from edgec.training.features import TrainingRow
    from edgec.training.loop import TrainingReport
    from edgec.training.objectives import Objective
    from edgec.training.options import TrainingOptions


LEAST_LENGTH: Final = 8
"""Tokens of a row: the special ones, and some of each of two texts."""


def require_room(max_length: int | None) -> None:
    """Raises ValueError for rows that no text would fit into."""
    if max_length is not None and max_length < LEAST_LENGTH:
        raise ValueError(f"max_length should be at least {LEAST_LENGTH} tokens, not {max_length}")


def require_length(max_length: int | None, state: ModelState) -> None:
    """Raises UserError for rows that are longer than those the model reads."""
    limit = state.spec.max_length
    if max_length is not None and max_length > limit:
        raise UserError(
            f"max_length: {max_length} tokens are more than the {limit} that this model reads",
            "lower it, or leave it out: a longer text gives several rows, or is cut there",
        )


def require_train(name: str, ctx: PassContext) -> None:
    """Raises DataError where there are no labelled rows."""
    if not ctx.data.train:
        raise DataError(f"{name} needs labelled rows to train on", "give data.train in the recipe")


def require_scored(options: TrainingOptions, ctx: PassContext, task: str | None) -> None:
    """Raises UserError for a metric or patience where nothing is scored, and for a metric that `task` does not have.

    task: None where it is not known yet.
    """
    if not ctx.data.validation:
        for name in ("metric", "patience"):
            if getattr(options, name) is not None:
                raise UserError(
                    f"{name} is about the scores on data.validation, which is not given",
                    f"give data.validation in the recipe, or leave {name} out",
                )
    elif options.metric is not None and task in METRICS and options.metric not in METRICS[task]:
        raise UserError(f"metric: {task} has no {options.metric!r}", f"it has {', '.join(METRICS[task])}")


def require_float(name: str, state: ModelState) -> None:
    """Raises UserError where the model is quantized already."""
    if state.quantization is not None:
        raise UserError(
            f"{name} trains in float, and the model is quantized already", f"put {name} before quantize in the recipe"
        )


def require_whole(name: str, state: ModelState) -> None:
    """Raises UserError where the model is decoupled, and its layers are no stack any more."""
    if getattr(state.parts["encoder"], "seam", None) is not None:
        raise UserError(
            f"the model is decoupled, and {name} works on a whole one", f"put {name} before decouple in the recipe"
        )


def fit(
    state: ModelState,
    rows: Sequence[TrainingRow],
    objective: Objective,
    options: TrainingOptions,
    ctx: PassContext,
    *,
    label: str,
    callbacks: Sequence[Any] = (),
    folder: str = "",
) -> TrainingReport:
    """Train the part of `state` in place; the best weights on ctx.data.validation are kept, where there is that.

    The zeros of state.sparse stay zero. folder: below the pass's own, where one pass trains more than once.
    """
    from edgec.training.loop import train

    require_scored(options, ctx, state.spec.task)
    ((name, part),) = state.parts.items()
    held = [key.removeprefix(f"{name}:") for key in state.sparse if key.startswith(f"{name}:")]
    return train(
        part,
        rows,
        objective,
        options,
        pad_id=int(state.tokenizer.pad_token_id or 0),
        seed=ctx.seed,
        folder=ctx.training_folder / folder,
        label=label,
        validate=(lambda: scores(state, ctx)) if ctx.data.validation else None,
        held=held,
        callbacks=callbacks,
        progress=ctx.progress,
        say=ctx.say,
    )


def scores(state: ModelState, ctx: PassContext) -> Mapping[str, float]:
    """What the model of `state` scores on ctx.data.validation; the first figure is its task's main one."""
    from edgec.models.torch_model import torch_model
    from edgec.scoring import score

    with torch_model(state) as model:
        # Where some questions have no answer, saying so must be able to win.
        unanswerable = any(isinstance(row, Question) and not row.answers for row in ctx.data.validation)
        return score(model, ctx.data.validation, where="data.validation", null_answers=unanswerable)


def copied(state: ModelState) -> ModelState:
    """`state` with copies of its parts, which may be changed."""
    import copy

    return dataclasses.replace(state, parts={name: copy.deepcopy(part) for name, part in state.parts.items()})
