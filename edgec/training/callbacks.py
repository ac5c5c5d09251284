"""What happens beside the steps of training: progress, checkpoints, the best weights, zeros that stay."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import nn

from edgec.errors import PassError, UserError
from edgec.processes import world_size
from edgec.state import Progress
from edgec.training.checkpoint import CHECKPOINT, mark_whole

SECONDS_BETWEEN: Final = 60.0
"""How much work a kill may cost: a checkpoint is three times the model, so one every few steps would cost more."""

EVAL: Final = "eval_"
"""What the Trainer puts before the names of scores."""
MAIN: Final = "main"
"""Under this name the first of the scores is there once more."""


class Log(transformers.TrainerCallback):
    """Progress, and an end to a training that has diverged."""

    def __init__(self, progress: Progress, label: str) -> None:
        self.progress, self.label = progress, label
        self.done: Callable[[int], None] = lambda step: None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.done = self.progress(self.label, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.done(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.done(state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise PassError(
                f"{self.label}: the loss is {loss} at step {state.global_step}", "lower learning_rate, or raise warmup"
            )


class Checkpoints(transformers.TrainerCallback):
    """Asks for a checkpoint where SECONDS_BETWEEN have passed since the one before, and at an interruption.

    The last of the callbacks: it marks what has been written as whole. folder: of the checkpoints. say: is told that
    an interruption was heard.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.last = time.monotonic()
        self.interrupted = self.written = False

    @contextlib.contextmanager
    def before_interruption(self) -> Iterator[None]:
        """Ctrl-C inside lets the step end and a checkpoint be written, then raises KeyboardInterrupt; the second one
        does so at once. Where Ctrl-C means something else than KeyboardInterrupt it goes on meaning that, and so it
        does where several processes train, which would have to agree on the step.
        """
        polite: list[signal.Signals] = []
        if threading.current_thread() is threading.main_thread() and world_size() == 1:
            both = (signal.SIGINT, signal.SIGTERM)
            polite = [one for one in both if signal.getsignal(one) is signal.default_int_handler]
        for one in polite:
            signal.signal(one, self._interrupt)
        try:
            yield
        finally:
            for one in polite:
                signal.signal(one, signal.default_int_handler)
        if self.interrupted:
            if not self.written:
                self.say("the training was over by then; what followed its last checkpoint is learned once more")
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: object) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.say("interrupted: the step ends and a checkpoint is written (once more stops at once)")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:  # each writes a file of its own
            torch.distributed.barrier()
        if state.is_world_process_zero:
            mark_whole(self.folder / f"{CHECKPOINT}{state.global_step}")
        # Not before: the checkpoint holds what `control` says.
        control.should_training_stop |= self.interrupted
        self.written = self.interrupted

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:  # what goes on from there would take a step too many
            return
        due = self.interrupted or time.monotonic() - self.last >= SECONDS_BETWEEN
        if args.world_size > 1:  # all processes save together, so the first one's clock counts
            flag = torch.tensor([float(due)], device=args.device)  # NCCL has no tensors on the CPU
            torch.distributed.broadcast(flag, src=0)
            due = bool(flag.item())
        if due:
            control.should_save = True
            self.last = time.monotonic()


class Epochs(transformers.TrainerCallback):
    """Which epoch it is, from 0."""

    epoch = 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.epoch = math.floor(state.epoch or 0)


class Best(transformers.TrainerCallback):
    """Keeps the weights of the best score, and ends training after `patience` scores that were no better.

    main: the figure that decides. What it knows is written beside each checkpoint, so that a run that goes on after a
    kill ends with the same weights.
    """

    def __init__(self, learner: nn.Module, folder: Path, main: str, patience: int | None) -> None:
        self.learner, self.folder, self.main, self.patience = learner, folder, main, patience
        self.step: int | None = None
        self.score = -math.inf
        self.waited = 0
        self.weights: dict[str, torch.Tensor] = {}

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float] | None = None, **_: Any
    ) -> None:
        known = metrics or {}
        if self.main not in known:
            names = [name.removeprefix(EVAL) for name in known if name.startswith(EVAL) and name != EVAL + MAIN]
            raise UserError(
                f"metric: the validation does not give {self.main.removeprefix(EVAL)!r}",
                f"it gives {', '.join(names)}",
            )
        score = known[self.main]
        if score > self.score:
            self.score, self.step, self.waited = score, state.global_step, 0
            self.weights = {name: tensor.detach().clone() for name, tensor in self.learner.state_dict().items()}
        else:
            self.waited += 1
            if self.patience is not None and self.waited >= self.patience:
                control.should_training_stop = True
                control.should_save = False  # what goes on from there would train on

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        place = self.folder / f"{CHECKPOINT}{state.global_step}"
        if state.is_world_process_zero and self.step is not None:
            torch.save(self.weights, place / "best.pt")
            known = {"step": self.step, "score": self.score, "waited": self.waited}
            (place / "best.json").write_text(json.dumps(known), encoding="utf-8")

    def resume(self, checkpoint: Path) -> None:
        """Take up what was written beside `checkpoint`, where a score was known by then."""
        if (checkpoint / "best.json").is_file():
            known = json.loads((checkpoint / "best.json").read_text(encoding="utf-8"))
            self.step, self.score, self.waited = known["step"], known["score"], known["waited"]
            self.weights = torch.load(checkpoint / "best.pt", weights_only=True)

    def restore(self) -> None:
        """Give the learner the best weights."""
        if self.weights:
            self.learner.load_state_dict(self.weights)


class Held(transformers.TrainerCallback):
    """Zeros that were there before training are put back after every step."""

    def __init__(self, part: nn.Module, names: Sequence[str]) -> None:
        self.parameters = [part.get_parameter(name) for name in names]
        self.kept = [parameter.detach() != 0 for parameter in self.parameters]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        with torch.no_grad():
            for parameter, kept in zip(self.parameters, self.kept, strict=True):
                parameter.mul_(kept.to(parameter.device))
