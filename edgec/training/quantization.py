"""Training with rounding: ranges that follow the data, scales that follow the weights, and a mean over checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import nn

from edgec.errors import PassError, UserError
from edgec.nn.fake_layers import FakeEmbedding, FakeLinear
from edgec.nn.fake_points import FakePoint
from edgec.numerics.ranges import Range
from edgec.state import Progress
from edgec.training.features import Batch, TrainingRow, collate
from edgec.training.objectives import Objective, outputs_of

SEARCH_EVERY: Final = 10
"""Steps between two searches for clipping ranges, each of which costs about as much as a step. Scales of weights that
are cut at their extremes follow every step."""

ADJUSTED: Final = 100
"""Batches that the ranges are adjusted on after checkpoints were averaged: by then 0.9 ** 100 of the old ones is left.
Bie et al. 2020, section 4.2, take 1,000, which weighs the same batches."""

_INPUT: Final = "input"
_SCALES: Final = "scales.pt"
_SUMS: Final = "averaged.pt"


class Rounding(nn.Module):
    """`objective` on a fake-quantized part, whose fixed ranges follow what passes by (Bie et al. 2020, section 3.1).

    After each optimizer step `follow` takes the mean extremes of its rows, of all processes, into the moving averages;
    momentum: the weight of what was. Each row counts as a batch of its own, as in calibration: the extremes of many
    rows together grow with their number. Padding does not count, nor do pairs of tokens that attention hides. A step
    rounds on the ranges of the steps before it. In evaluation mode nothing is observed.

    points: as apply_points returned them. The ranges are a buffer, so that checkpoints hold them: (ranges, 2), in the
    order of `names`, each a module path and the name of a tensor (PointQuantization.ranges; "input" of a layer).
    """

    ranges: torch.Tensor

    def __init__(
        self, objective: Objective, part: nn.Module, points: Mapping[str, FakePoint], *, momentum: float
    ) -> None:
        super().__init__()
        self.objective, self.momentum = objective, momentum
        # In plain dicts: the part is trained and saved as such, and not once more as ours.
        self._layers = {path: one for path, one in part.named_modules() if isinstance(one, FakeLinear | FakeEmbedding)}
        self._points = dict(points)
        linear = {path: one for path, one in self._layers.items() if isinstance(one, FakeLinear)}
        self._static = {path: one for path, one in linear.items() if one.quantization.input_range is not None}
        found: dict[tuple[str, str], Range] = {
            (path, _INPUT): one.quantization.input_range
            for path, one in self._static.items()
            if one.quantization.input_range is not None
        }
        found |= {(path, name): ends for path, one in points.items() for name, ends in one.point.ranges.items()}
        self.names = tuple(found)
        self.register_buffer("ranges", torch.tensor([*found.values()], dtype=torch.float32).reshape(-1, 2))
        # Of the batch that runs (lowest, highest), and of the step (sum of lowest, of highest, rows).
        self._batch: dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]] = {}
        self._seen: dict[tuple[str, str], torch.Tensor] = {}
        self._mask: torch.Tensor | None = None
        self._adjusting = False

    def forward(self, part: Any, batch: Batch) -> torch.Tensor:
        return self.objective(part, batch)

    def by_name(self) -> dict[tuple[str, str], Range]:
        """The ranges as they are now."""
        return {name: (low, high) for name, (low, high) in zip(self.names, self.ranges.tolist(), strict=True)}

    def put(self) -> None:
        """Let layers and points round on the ranges as they are now."""
        found = self.by_name()
        for path, layer in self._static.items():
            layer.quantization = replace(layer.quantization, input_range=found[path, _INPUT])
        for path, fake in self._points.items():
            fake.point = replace(fake.point, ranges={name: found[path, name] for name in fake.point.ranges})

    def round(self, on: bool) -> None:
        """Whether the part rounds in training mode; in evaluation mode it always does."""
        for one in (*self._layers.values(), *self._points.values()):
            one.rounding = on

    def rescale(self, *, searched: bool) -> None:
        """Let the scales of weights follow them; those with a search for a clipping range only where `searched`."""
        for layer in self._layers.values():
            if searched or not layer.searched:
                layer.rescale()

    def follow(self, step: int) -> None:
        """Take what was seen since the call before into the averages. Raises PassError where it is not finite."""
        if not self.names:
            return
        self._close()
        nothing = torch.zeros(3, device=self.ranges.device)
        seen = torch.stack([self._seen.get(name, nothing) for name in self.names])
        self._seen = {}
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(seen)
        wrong = (~seen.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if wrong:
            path, name = self.names[wrong[0]]
            raise PassError(
                f"the {name} of {path} is infinite or undefined at step {step}", "lower learning_rate, or raise warmup"
            )
        extremes, rows = seen[:, :2], seen[:, 2:]
        averaged = self.momentum * self.ranges + (1 - self.momentum) * extremes / rows
        self.ranges.copy_(torch.where(rows > 0, averaged, self.ranges))

    def scales(self) -> dict[str, torch.Tensor]:
        """Those of the weights, by module path: what a resumed training has to round on."""
        return {path: layer.scale for path, layer in self._layers.items()}

    def take_scales(self, scales: Mapping[str, torch.Tensor]) -> None:
        for path, layer in self._layers.items():
            layer.scale = scales[path].to(layer.scale.device)

    @contextmanager
    def following(self, part: nn.Module) -> Iterator[None]:
        """Inside, the part's training forwards are observed."""

        def begin(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._close()
            self._mask = inputs[1].bool() if module.training or self._adjusting else None

        handle = part.register_forward_pre_hook(begin)
        for path, layer in self._static.items():
            layer.note = partial(self._note, path, _INPUT)
        for path, fake in self._points.items():
            fake.note = partial(self._note, path)
        try:
            yield
        finally:
            handle.remove()
            for layer in self._static.values():
                layer.note = None
            for fake in self._points.values():
                fake.note = None

    def adjust(
        self, part: Any, rows: Sequence[TrainingRow], *, batch_size: int, pad_id: int, seed: int, progress: Progress
    ) -> int:
        """Move the ranges on ADJUSTED batches of `rows`, the weights fixed, in evaluation mode: no dropout.

        Returns how many batches that took (Bie et al. 2020, section 4.2).
        """
        part.eval()
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        step = progress("adjust ranges", ADJUSTED)
        self._adjusting = True
        try:
            with self.following(part), torch.no_grad():
                for done, chosen in enumerate(islice(cycle(batches), ADJUSTED), start=1):
                    outputs_of(part, collate([rows[index] for index in chosen], pad_id))
                    self.follow(done)
                    self.put()
                    step(done)
        finally:
            self._adjusting = False
        return ADJUSTED

    def _note(self, path: str, name: str, values: torch.Tensor, counted: torch.Tensor | None = None) -> None:
        if self._mask is None:
            return
        low, high = _extremes(values.detach(), _real(values, name, self._mask, counted), len(self._mask))
        if name == "probabilities":
            # As calibrated (edgec.passes.points): in a batch there are zeros that are not in a text that runs alone.
            low = torch.zeros_like(low)
        if (path, name) in self._batch:  # a layer that runs twice
            before = self._batch[path, name]
            low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
        self._batch[path, name] = low, high

    def _close(self) -> None:
        """End a batch: its rows' extremes are added to those of the step."""
        for name, (low, high) in self._batch.items():
            found = torch.stack([low.sum(), high.sum(), torch.ones_like(low).sum()])
            self._seen[name] = self._seen[name] + found if name in self._seen else found
        self._batch = {}


def _extremes(values: torch.Tensor, real: torch.Tensor | None, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and the largest value of each row, (rows,); of what has no rows, the positions of DeBERTa, (1,).

    real: those that count, None: all.
    """
    if values.shape[0] != rows:
        values = values[None]
    axes = tuple(range(1, values.ndim))
    if real is None:
        return values.amin(dim=axes), values.amax(dim=axes)
    return (
        values.masked_fill(~real, torch.inf).amin(dim=axes),
        values.masked_fill(~real, -torch.inf).amax(dim=axes),
    )


def _real(values: torch.Tensor, name: str, mask: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor | None:
    """Which of `values` belong to tokens, so that it broadcasts with them; None: all.

    mask: (batch, tokens). counted: what attention does not hide.
    """
    if name in ("scores", "probabilities"):  # (batch, heads, tokens, tokens), the last axis that of the keys
        real = mask[:, None, :, None] & mask[:, None, None, :]
        return real if counted is None else real & counted
    if name in ("query", "key", "value"):  # (batch, heads, tokens, size)
        return mask[:, None, :, None]
    # Neither pooled states nor positions have tokens.
    return mask[..., None] if values.ndim == 3 and values.shape[:2] == mask.shape else None


class Follow(transformers.TrainerCallback):
    """Rounds from `start_step` on, and lets ranges and scales follow after every step."""

    def __init__(self, rounding: Rounding, start_step: int) -> None:
        self.rounding, self.start_step = rounding, start_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.max_steps <= self.start_step:
            raise UserError(
                f"start_step is {self.start_step}, and training ends after {state.max_steps} steps",
                "lower start_step, or train longer",
            )
        kept = _beside(args, state, _SCALES)
        if kept.is_file():
            self.rounding.take_scales(torch.load(kept, weights_only=True))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Told by the step alone, and by what a checkpoint holds: a resumed run goes on as it would have.
        self.rounding.put()
        self.rounding.round(state.global_step >= self.start_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.rounding.follow(state.global_step)
        self.rounding.put()
        self.rounding.rescale(searched=state.global_step % SEARCH_EVERY == 0)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            torch.save(self.rounding.scales(), _beside(args, state, _SCALES))


class Average(transformers.TrainerCallback):
    """The mean of weights and ranges over the last `count` checks of the training.

    checks: how many there are in all. `mean` has it after training, by the names of the learner's state.
    """

    def __init__(self, count: int, checks: int, start_step: int) -> None:
        self.count, self.checks, self.start_step = count, checks, start_step
        self.taken = 0
        self._sums: dict[str, torch.Tensor] = {}

    @property
    def mean(self) -> dict[str, torch.Tensor]:
        return {name: total / self.taken for name, total in self._sums.items()}

    def steps(self, total: int) -> list[int]:
        """The steps after which weights are taken, of a training of `total` steps."""
        every = max(1, total // self.checks)
        return [step for k in range(self.count) if (step := total - k * every) > 0]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        first = self.steps(state.max_steps)[-1]
        if first <= self.start_step:
            raise UserError(
                f"average_checkpoints reaches back to step {first}, and rounding begins at step {self.start_step}",
                "average fewer checkpoints, lower start_step, or train longer",
            )
        kept = _beside(args, state, _SUMS)
        if kept.is_file():
            self.taken, self._sums = torch.load(kept, weights_only=True)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step not in self.steps(state.max_steps):
            return
        now = {name: one.detach() for name, one in model.state_dict().items() if one.is_floating_point()}
        self._sums = {name: self._sums.get(name, 0.0) + one.cpu() for name, one in now.items()}
        self.taken += 1

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and self.taken:
            torch.save((self.taken, self._sums), _beside(args, state, _SUMS))


def _beside(args: Any, state: Any, file: str) -> Path:
    """A file in the checkpoint of the step that training is at."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / file
