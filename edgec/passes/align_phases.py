"""What the align pass does, phase by phase."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from edgec.data.examples import Example, Question, Tagged, Text
from edgec.errors import UserError
from edgec.models import FAMILIES, load_model
from edgec.models.aligned import attach, head, set_head
from edgec.models.build import is_build
from edgec.models.heads import moved, with_head
from edgec.models.source import locate
from edgec.models.student import require_same_vocabulary
from edgec.nn.adapters import is_adapter
from edgec.nn.alignment import AlignmentAdapter
from edgec.nn.fake_quantize import fake_quantized
from edgec.nn.layout import base_path, depth
from edgec.passes.extend import extended, renamed
from edgec.passes.learn import copied, fit
from edgec.passes.supervised import lesson
from edgec.state import ModelState, PassContext, PassResult
from edgec.training.alignment import Alignment, FrozenStates, OnStates, distance, in_evaluation, rows_of
from edgec.training.features import Featurizer, TrainingRow

if TYPE_CHECKING:
    from edgec.passes.align import Align
    from edgec.passes.supervised import Lesson

_MILLION = 10**6


class Phases:
    """One run of the align pass on `state`.

    after: the model that comes out. work: what is trained; where the model is quantized its part computes as the
    decision says, with adapter and head in float, and these are copied to `after` at the end. Both are made at once,
    and raise UserError and ModelError for a large model that does not fit.
    """

    def __init__(self, step: Align, state: ModelState, ctx: PassContext) -> None:
        self.step, self.before, self.ctx = step, state, ctx
        self.large = self._load()
        self.length = min(step.max_length or state.spec.max_length, state.spec.max_length, self.large.spec.max_length)
        self.after, self.lesson = self._prepared()
        self.part: Any = self.after.parts["encoder"]
        self.new_head = self._attach()
        if self.new_head and state.spec.task == self.after.spec.task:
            ctx.say(f"align: the head for {state.spec.task} begins anew, as it reads other states than before")
        self.work = self.after
        self.decision = None
        if state.quantization is not None:
            before: Any = state.parts["encoder"]
            decided = [*state.quantization.layers, *state.quantization.points]
            self.decision = renamed(state.quantization, moved(decided, before, self.part))
            fake = fake_quantized(self.part, self.decision.of_part("encoder"))
            self.work = dataclasses.replace(self.after, parts={"encoder": fake})
        self.trained: Any = self.work.parts["encoder"]
        self.pad_id = int(state.tokenizer.pad_token_id or 0)
        self.compressed, self.wanted = self._states()
        self.alignment = Alignment(self.compressed, self.wanted)

    def result(self) -> PassResult:
        flags = {name: parameter.requires_grad for name, parameter in self.part.named_parameters()}
        encoder = self.trained.get_submodule(base_path(self.trained))
        phases: dict[str, Any] = {}
        for phase in self.step.phases:
            joint = phase == 3 and self.step.mode == "joint"
            with nullcontext() if joint else in_evaluation(encoder):
                phases[str(phase)] = self._phase(phase)
        for name, parameter in self.part.named_parameters():
            parameter.requires_grad_(flags[name])
        for phase in self.step.phases:
            self._file(phase).unlink(missing_ok=True)
        after, added, left_alone = self._finished()
        adapter, spec = self.part.adapter, after.spec
        size = sum(parameter.numel() for parameter in adapter.parameters())
        report: dict[str, Any] = {
            "large": {"name": self.large.spec.name, "sha256": self.large.spec.sha256},
            "window": adapter.window,
            "units": adapter.units,
            "widths": [adapter.inputs, adapter.outputs],
            "parameters": {
                "adapter": size,
                "large": (total := encoder_size(self.large.parts["encoder"])),
                "share": round(size / total, 4),
            },
            "mode": self.step.mode,
            "task": spec.task,
            "labels": list(spec.labels or ()),
            "new_head": self.new_head,
            "phases": phases,
            "quantized": added,
            "left_alone": left_alone,
        }
        return PassResult(after, report)

    def _phase(self, phase: int) -> dict[str, Any]:
        """Train one phase, or take up what an interrupted run finished."""
        if (known := self._take_up(phase)) is not None:
            return known
        ctx, step = self.ctx, self.step
        joint = phase == 3 and step.mode == "joint"
        rows, texts = self._rows(phase)
        if joint:
            self.compressed.clear()
        kept = 0
        if not joint:
            kept = self.compressed.keep(texts, self.pad_id, f"align: states for phase {phase}", ctx.progress)
        if phase != 3:
            self.wanted.keep(texts, self.pad_id, f"align: states to reach in phase {phase}", ctx.progress)
        before = distance(self.trained, texts, self.alignment, self.pad_id)
        objective: Any = self.alignment
        if phase == 3:
            assert self.lesson is not None
            objective = self.lesson.objective if joint else OnStates(self.lesson.objective, self.compressed)
        else:
            ctx = dataclasses.replace(ctx, data=dataclasses.replace(ctx.data, validation=()))
        learns = self._learns(phase)
        for name, parameter in self.trained.named_parameters():
            parameter.requires_grad_(learns(name))
        options = step.trained(phase)
        done = fit(self.work, rows, objective, options, ctx, label=f"align phase {phase}", folder=f"phase{phase}")
        after = distance(self.trained, texts, self.alignment, self.pad_id)
        report = {
            "learning_rate": options.learning_rate,
            "mse": [_digits(before["mse"]), _digits(after["mse"])],
            "cosine": [_digits(before["cosine"]), _digits(after["cosine"])],
            "kept": round(kept / len(texts), 4),
            **done.to_dict(),
        }
        if phase == 1:  # phases 2 and 3 read the same rows
            self.compressed.clear()
            self.wanted.clear()
        if phase != step.phases[-1]:
            self._finish(phase, report)
        plain: dict[str, Any] = json.loads(json.dumps(report))  # as one that is taken up
        return plain

    def _load(self) -> ModelState:
        """The large model: of its task where its head is asked for, else what lies below any head."""
        source = self.step.large
        build = is_build(locate(source).folder)
        found = load_model(source, task=None if build or self.step.head == "large" else "feature-extraction")
        require_same_vocabulary(found, self.before, source)
        if found.quantization is not None:
            raise UserError(f"the large model {source} is quantized", "name the one that it was made from")
        if self.step.head == "large":
            task, asked = found.spec.task, self.step.task
            if task == "fill-mask" or asked not in (None, task):
                raise UserError(
                    f"{source} is a model for {task}, and its head serves nothing else", "train a new one: head: new"
                )
            own = self.before.spec
            if task == "feature-extraction" and own.task != task:
                raise UserError(
                    f"{source} has no head: it is a model for {task}",
                    f"name one that was fine-tuned for {own.task}, or train a new head: head: new",
                )
            if self.before.lora is not None and (task, found.spec.labels) != (own.task, own.labels):
                raise UserError(
                    f"the model has LoRA adapters, which learnt another task than {source}, or other labels",
                    "train a new head: head: new",
                )
        found.parts["encoder"].requires_grad_(False)
        return found

    def _prepared(self) -> tuple[ModelState, Lesson | None]:
        """A copy of the model for the task, without an adapter and its decision, and what phase 3 takes."""
        plain = dataclasses.replace(copied(self.before), quantization=None)
        plain.parts["encoder"].adapter = None
        large, own = self.large.spec, self.before.spec
        changes: dict[str, Any] = {"max_length": self.length}
        if self.step.head == "large":
            changes |= {"task": large.task, "labels": large.labels, "multi_label": large.multi_label}
        elif self.before.lora is not None:
            changes |= {"labels": own.labels, "multi_label": own.multi_label}
        if 3 in self.step.phases:
            found = lesson(dataclasses.replace(self.step, **changes), plain, self.ctx)
            return found.state, found
        if self.step.head == "large":
            made = with_head(
                plain,
                large.task,
                labels=large.labels,
                multi_label=large.multi_label,
                pairs=large.pairs,
                seed=self.ctx.seed,
            )
            return made, None
        return plain, None

    def _attach(self) -> bool:
        """Put the adapter and its head on the part. Returns whether the head is new."""
        taught: Any = self.large.parts["encoder"]
        known: AlignmentAdapter | None = self.before.parts["encoder"].adapter
        if known is not None and known.outputs != taught.hidden_size:
            raise UserError(
                f"the model's adapter gives states of width {known.outputs}, those of {self.step.large} have "
                f"{taught.hidden_size}",
                "name the large model that it was made for",
            )
        kept = known is not None and not (self.lesson is not None and self.lesson.new_head)
        adapter = copy.deepcopy(known) if known is not None else self._new_adapter(taught.hidden_size)
        if kept:
            self.part.attach(adapter)  # its head has read aligned states before
        else:
            attach(self.part, adapter, seed=self.ctx.seed)
        if self.step.head == "large":
            set_head(self.part, head(taught))
        self.part.eval()
        sparse = tuple(name for name in self.after.sparse if kept or depth(self.part).get(name.partition(":")[2]))
        self.after = dataclasses.replace(self.after, sparse=sparse)
        return not kept and self.step.head == "new" and bool(head(self.part))

    def _new_adapter(self, outputs: int) -> AlignmentAdapter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.ctx.seed)
            return AlignmentAdapter(self.part.hidden_size, outputs, window=self.step.window, units=self.step.units)

    def _states(self) -> tuple[FrozenStates, FrozenStates]:
        """Of the compressed model before the adapter, and what the large model's head reads. They share the memory."""
        taught: Any = self.large.parts["encoder"].eval()
        adapter, config = self.part.adapter, taught.model.config
        limit = self.step.cache_mb * _MILLION * adapter.inputs // (adapter.inputs + adapter.outputs)
        mine = FrozenStates(
            lambda ids, mask, types: self.trained.to(ids.device).encoded(ids, mask, types),
            adapter.inputs,
            types="token_type_ids" in self.part.input_names,
            limit=limit,
        )
        yours = FrozenStates(
            lambda ids, mask, types: taught.to(ids.device).aligned(ids, mask, types),
            adapter.outputs,
            types=FAMILIES[config.model_type].token_types and config.type_vocab_size > 1,
            limit=self.step.cache_mb * _MILLION - limit,
        )
        return mine, yours

    def _rows(self, phase: int) -> tuple[Sequence[TrainingRow], Sequence[TrainingRow]]:
        """What the phase trains on, and the texts of it as rows without targets."""
        if phase == 1:
            texts: Sequence[TrainingRow] = self._featurizer.texts(self.ctx.data.unlabelled)
        else:
            texts = rows_of(self._featurizer, self.ctx.data.train)
        if phase == 3:
            assert self.lesson is not None
            return self.lesson.rows, texts
        return texts, texts

    @cached_property
    def _featurizer(self) -> Featurizer:
        return Featurizer(self.after, max_length=self.length, say=self.ctx.say)

    def _learns(self, phase: int) -> Callable[[str], bool]:
        """Which parameters of the part learn, by name."""
        below, joint, lora = depth(self.trained), self.step.mode == "joint", self.before.lora is not None

        def learns(name: str) -> bool:
            if name.startswith("adapter."):
                return True
            if phase != 3 or not below[name]:
                return phase == 3
            return joint and (is_adapter(name) or not lora)

        return learns

    def _finished(self) -> tuple[ModelState, list[str], dict[str, str]]:
        """The state, the layers that joined its decision, and those that did not, with the reason."""
        if self.decision is None:
            return self.after, [], {}
        self.part.adapter.load_state_dict(self.trained.adapter.state_dict())
        set_head(self.part, head(self.trained))
        linear = [f"encoder:{path}" for path, one in self.part.named_modules() if isinstance(one, nn.Linear)]
        inside = moved(linear, self.part, self.part)
        new = [key for key in linear if key not in inside]
        data = self.ctx.data
        texts = self.ctx.texts or tuple(map(_text, data.train)) or data.unlabelled
        decision, left_alone = extended(self.work, self.decision, new, texts, self.ctx)
        added = [key for key in new if key in decision.layers]
        return dataclasses.replace(self.after, quantization=decision), added, left_alone

    def _take_up(self, phase: int) -> dict[str, Any] | None:
        """The report of a phase that an interrupted run finished, whose adapter is taken; None where there is none."""
        file = self._file(phase)
        if not file.is_file():
            return None
        self.trained.adapter.load_state_dict(load_file(file))
        with safe_open(file, "pt") as header:
            report: dict[str, Any] = json.loads(header.metadata()["report"])
        return report

    def _finish(self, phase: int, report: dict[str, Any]) -> None:
        """Note a finished phase, so that a kill in a later one does not cost it."""
        file = self._file(phase)
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(f".{os.getpid()}")
        save_file(self.trained.adapter.state_dict(), half, metadata={"report": json.dumps(report)})
        half.replace(file)

    def _file(self, phase: int) -> Path:
        return self.ctx.training_folder / f"phase{phase}.safetensors"


def encoder_size(part: Any) -> int:
    """Parameters of a model without its head."""
    below = depth(part)
    return sum(parameter.numel() for name, parameter in part.named_parameters() if below[name])


def _text(example: Any) -> Text:
    if isinstance(example, Question):
        return example.question, example.context
    assert isinstance(example, Example | Tagged)
    return example.request if isinstance(example, Example) else example.text


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
