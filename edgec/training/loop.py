"""One thin layer over transformers.Trainer: any objective, on one process or many, resumable after a kill."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from torch import nn
from transformers.trainer_pt_utils import LengthGroupedSampler

from edgec.errors import PassError, UserError
from edgec.processes import world_size
from edgec.state import Progress, no_progress
from edgec.training.callbacks import EVAL, MAIN, Best, Checkpoints, Epochs, Held, Log
from edgec.training.checkpoint import in_order, is_whole
from edgec.training.features import TrainingRow, collate
from edgec.training.groups import parameter_groups
from edgec.training.options import TrainingOptions
from edgec.training.together import on_cpu

if TYPE_CHECKING:
    from edgec.training.objectives import Objective

Validate = Callable[[], Mapping[str, float]]
"""Scores the part as it is now; the first figure is the main one."""

_CHECKPOINTS_KEPT: Final = 2


@dataclass(frozen=True)
class TrainingReport:
    """steps: optimizer steps taken. losses: the mean loss since the entry before, by step. scores: what validation
    gave, by step. best_step: the step whose weights were kept; None: the last one's. stopped_early: patience ended it.
    processes: how many trained together, each on batches of its own.
    """

    steps: int
    rows: int
    losses: dict[int, float] = field(default_factory=dict)
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    best_step: int | None = None
    stopped_early: bool = False
    processes: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def train(
    part: nn.Module,
    rows: Sequence[TrainingRow],
    objective: Objective,
    options: TrainingOptions,
    *,
    pad_id: int,
    seed: int,
    folder: Path,
    label: str = "train",
    validate: Validate | None = None,
    held: Sequence[str] = (),
    callbacks: Sequence[transformers.TrainerCallback] = (),
    progress: Progress = no_progress,
    say: Callable[[str], None] = lambda line: None,
) -> TrainingReport:
    """Train `part` in place, on the parameters that require a gradient, and leave it in evaluation mode on the CPU.

    rows: what objective's batches are made of. folder: for checkpoints; where it holds some, training goes on from the
    last, to the same weights as without the interruption. validate: what picks the best checkpoint, by options.metric,
    or its first figure. held: names of parameters whose zeros stay zero. callbacks: of transformers' Trainer. Raises
    UserError where there is nothing to train on or no such metric, PassError where the loss becomes infinite or no
    number.
    """
    if not rows:
        raise UserError(f"{label}: there are no rows to train on", "give data.train, or data.unlabelled")
    learner = _Learner(part, objective)
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        raise PassError(f"{label}: no parameter is to be trained")
    # Before the arguments: a group of processes is joined by them.
    arguments = _arguments(options, len(rows), seed, folder, validate is not None)
    best = Best(learner, folder, f"{EVAL}{options.metric or MAIN}", options.patience)
    order = _Order(rows, options, seed)
    checkpoints = Checkpoints(folder, say)
    beside = [Log(progress, label), order.follow, *([Held(part, held)] if held else []), *callbacks]
    with _quiet():
        trainer = _Trainer(
            model=learner,
            args=arguments,
            train_dataset=_Dataset(rows),
            eval_dataset=_Dataset(rows[:1]) if validate else None,
            data_collator=partial(_collated, pad_id=pad_id),
            optimizers=(_optimizer(learner, part, options), None),
            # Checkpoints last: one is whole when all others have written what they have to say.
            callbacks=[*beside, *([best] if validate else []), checkpoints],
        )
        trainer.validate, trainer.order = validate, order
        trainer.remove_callback(transformers.PrinterCallback)
        torch.manual_seed(seed)
        last = _last(folder, clear=arguments.should_save)
        if last is not None:
            best.resume(last)
        with checkpoints.before_interruption():
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    best.restore()
    part.to("cpu").eval()
    history = trainer.state.log_history
    report = TrainingReport(
        steps=trainer.state.global_step,
        rows=len(rows),
        losses={entry["step"]: round(float(entry["loss"]), 6) for entry in history if "loss" in entry},
        scores={entry["step"]: _scores(entry) for entry in history if any(key.startswith(EVAL) for key in entry)},
        best_step=best.step,
        stopped_early=trainer.state.global_step < trainer.state.max_steps,
        processes=arguments.world_size,
    )
    if arguments.should_save:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def total_steps(options: TrainingOptions, rows: int) -> int:
    """Optimizer steps, which all processes take together."""
    if options.steps is not None:
        return options.steps
    batches = -(-rows // (options.batch_size * world_size()))
    return max(1, round(options.epochs * max(1, batches // options.accumulate)))


def _last(folder: Path, *, clear: bool) -> Path | None:
    """The newest whole checkpoint. clear: those after it, which a kill has cut short, go."""
    found = in_order(folder)
    while found and not is_whole(found[-1]):
        half = found.pop()
        if clear:
            shutil.rmtree(half, ignore_errors=True)
    return found[-1] if found else None


def _scores(entry: Mapping[str, Any]) -> dict[str, float]:
    found = {key.removeprefix(EVAL): float(value) for key, value in entry.items() if key.startswith(EVAL)}
    found.pop(MAIN)
    return found


def _arguments(
    options: TrainingOptions, rows: int, seed: int, folder: Path, validated: bool
) -> transformers.TrainingArguments:
    every = max(1, total_steps(options, rows) // options.checks)
    return transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        num_train_epochs=options.epochs,
        max_steps=options.steps or -1,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant_with_warmup" if options.schedule == "constant" else options.schedule,
        warmup_steps=options.warmup,
        weight_decay=options.weight_decay,
        max_grad_norm=options.clip,
        seed=seed,
        data_seed=seed,
        use_cpu=on_cpu(),
        # The callback Checkpoints asks for them.
        save_strategy="no",
        save_total_limit=_CHECKPOINTS_KEPT,
        eval_strategy="steps" if validated else "no",
        eval_steps=every,
        logging_steps=every,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        # Heads that a task does not use, and layers that are frozen, get no gradient.
        ddp_find_unused_parameters=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


class _Learner(nn.Module):
    """What the Trainer trains: part and objective as one module whose forward is the loss."""

    accepts_loss_kwargs = False
    """The loss is a mean over this process's batch: the Trainer divides it by accumulate, and averages over processes.
    """

    def __init__(self, part: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.part = part
        self.objective = objective

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.objective(self.part, batch)}


class _Dataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as the Trainer wants them: mappings, whose input_ids tell their length."""

    def __init__(self, rows: Sequence[TrainingRow]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.rows[index].ids, "row": self.rows[index]}


class _Order(LengthGroupedSampler):
    """Rows of about the same length together, in an order of each epoch's own: that of the seed and the epoch alone.

    The Trainer's order hangs on all that was drawn before, so that a resumed epoch would have another one.
    """

    def __init__(self, rows: Sequence[TrainingRow], options: TrainingOptions, seed: int) -> None:
        # Of all rows of a step: however many processes share them, they are the same.
        step = options.batch_size * options.accumulate * world_size()
        super().__init__(step, lengths=[len(row) for row in rows])
        self.seed = seed
        self.follow = Epochs()

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.follow.epoch)
        return super().__iter__()


def _collated(items: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    return collate([item["row"] for item in items], pad_id)


def _optimizer(learner: nn.Module, part: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    # The fused step goes over the tensors once: on a CPU 10 times faster, where the vocabulary is most of the weights.
    return torch.optim.AdamW(
        parameter_groups(learner, part, options), lr=options.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True
    )


class _Trainer(transformers.Trainer):
    """Scores by `validate`, and saves a part whose tensors share memory."""

    validate: Validate | None = None
    order: _Order
    control: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> _Order:
        return self.order

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        assert self.validate is not None
        found = dict(self.validate())
        scores = {f"{EVAL}{name}": value for name, value in found.items()}
        scores[f"{EVAL}{MAIN}"] = next(iter(found.values()))
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        # safetensors refuses tied weights; the Trainer reads this form as well.
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict() if state_dict is None else state_dict, folder / "pytorch_model.bin")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The Trainer tells on the console what the report tells better."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
