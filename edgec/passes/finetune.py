"""finetune: train the model, or only a new head, for a task on labelled rows."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from edgec.errors import PassError, UserError
from edgec.passes.learn import fit, require_float, require_length
from edgec.passes.supervised import MEANINGS, SupervisedOptions, lesson, require_one_label, require_taught
from edgec.state import ModelState, PassContext, PassResult


@dataclass(frozen=True, kw_only=True)
class Finetune(SupervisedOptions):
    __doc__ = f"""Supervised training on data.train.

    train: what learns, "all" of the model or the "head" alone, on a frozen encoder. {MEANINGS}"""

    name: ClassVar[str] = "finetune"

    train: Literal["all", "head"] = "all"

    def requires_data(self, ctx: PassContext) -> None:
        require_one_label(self, ctx.data.train)
        require_taught(self.name, self, self, ctx)

    def requires(self, state: ModelState) -> None:
        require_float(self.name, state)
        require_length(self.max_length, state)
        if state.lora is not None:
            raise UserError("the model has LoRA adapters beside its weights", "merge them with fuse-adapters first")

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        from edgec.nn.layout import base_path
        from edgec.training.alignment import in_evaluation

        taught = lesson(self, state, ctx)
        after = taught.state
        part = after.parts["encoder"]
        frozen = 0
        with ExitStack() as stack:
            if self.train == "head":
                frozen = _freeze(part)
                stack.enter_context(in_evaluation(part.get_submodule(base_path(part))))
            trained = fit(after, taught.rows, taught.objective, self.trains, ctx, label="finetune")
        for parameter in part.parameters():
            parameter.requires_grad_(True)
        report: dict[str, Any] = {
            "task": after.spec.task,
            "labels": list(after.spec.labels or ()),
            "examples": len(ctx.data.train),
            "frozen_parameters": frozen,
            "new_head": taught.new_head,
            **trained.to_dict(),
            "left_alone": {},
        }
        return PassResult(after, report)

    def ensures(self, before: ModelState, after: ModelState) -> None:
        if after.spec.task != (self.task or before.spec.task):
            raise PassError(f"finetune was to train for {self.task}, and the model is one for {after.spec.task}")


def _freeze(part: Any) -> int:
    """Only what lies behind the encoder goes on learning. Returns how many parameters do not."""
    from edgec.nn.layout import depth

    below, frozen = depth(part), 0
    for name, parameter in part.named_parameters():
        if below[name]:
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    return frozen
