"""lora: learn a task with small adapters beside a frozen encoder."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from edgec.errors import PassError, UserError
from edgec.passes.learn import fit, require_float, require_length, require_whole
from edgec.passes.supervised import MEANINGS, SupervisedOptions, lesson, require_one_label, require_taught
from edgec.state import ModelState, PassContext, PassResult


@dataclass(frozen=True, kw_only=True)
class Lora(SupervisedOptions):
    __doc__ = f"""Low-rank adaptation (Hu et al. 2022, equation 3): h = W x + alpha / r * B A x, with W frozen. The
    adapters stay beside the weights until fuse-adapters merges them. Rank, alpha and learning rate are those of the
    authors' scripts for RoBERTa-base on GLUE.

    r: the rank of B A. alpha: how much the adapters count: their product is scaled by alpha / r. dropout: the share of
    an adapter's inputs that is left out at random in training. targets: patterns (fnmatch) of the module paths of the
    linear layers that get adapters; null: the queries, keys and values of every layer. train_head: the head of the task
    is trained along, in full. {MEANINGS}"""

    name: ClassVar[str] = "lora"

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    train_head: bool = True
    learning_rate: float = 4e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r < 1:
            raise ValueError(f"r should be at least 1, not {self.r}")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ValueError(f"alpha should be above 0, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a share, at least 0 and below 1, not {self.dropout}")
        if self.targets is not None and not self.targets:
            raise ValueError("targets names no layer; null takes the queries, keys and values")

    def requires_data(self, ctx: PassContext) -> None:
        require_one_label(self, ctx.data.train)
        require_taught(self.name, self, self, ctx)

    def requires(self, state: ModelState) -> None:
        require_whole(self.name, state)
        require_float(self.name, state)
        require_length(self.max_length, state)
        if state.lora is not None:
            raise UserError("the model has LoRA adapters already", "merge them with fuse-adapters first")
        require_dense(state, self._targets(state.parts["encoder"]))

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        import torch

        from edgec.nn.adapters import inject, is_adapter, settings
        from edgec.nn.layout import depth

        taught = lesson(self, state, ctx)
        if taught.new_head and not self.train_head:
            raise UserError(
                f"the model gets a new head for {taught.state.spec.task}, and train_head is false",
                "let the head train along, or finetune it before",
            )
        part: Any = taught.state.parts["encoder"]
        targets = self._targets(part)
        lora = settings(targets, rank=self.r, alpha=self.alpha, dropout=self.dropout)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.seed)
            inject(part.model, lora)
        below = depth(part)
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(is_adapter(name) or (self.train_head and below[name] == 0))
        adapters = sum(p.numel() for name, p in part.named_parameters() if is_adapter(name))
        learning = sum(p.numel() for p in part.parameters() if p.requires_grad)
        total = sum(p.numel() for p in part.parameters())
        after = dataclasses.replace(taught.state, lora=lora)
        trained = fit(after, taught.rows, taught.objective, self.trains, ctx, label="lora")
        for parameter in part.parameters():
            parameter.requires_grad_(True)
        report: dict[str, Any] = {
            "task": after.spec.task,
            "labels": list(after.spec.labels or ()),
            "examples": len(ctx.data.train),
            "targets": targets,
            "adapter_parameters": adapters,
            "trained_parameters": learning,
            "frozen_parameters": total - learning,
            "new_head": taught.new_head,
            **trained.to_dict(),
            "left_alone": {},
        }
        return PassResult(after, report)

    def ensures(self, before: ModelState, after: ModelState) -> None:
        import torch

        from edgec.nn.adapters import is_adapter, without_adapters

        old, new = (_encoder(state).state_dict() for state in (before, after))
        if after.lora is None or not any(map(is_adapter, new)):
            raise PassError("lora put no adapter beside any layer")
        plain = without_adapters(new)
        for name, tensor in old.items():
            if name in plain and ".pooler." not in f".{name}" and not torch.equal(tensor, plain[name]):
                raise PassError(f"lora changed {name} of the encoder, which was to stay as it is")

    def _targets(self, part: Any) -> list[str]:
        """Module paths of the layers that get adapters. Raises UserError for a pattern that matches none."""
        from edgec.nn.adapters import attention_projections, linear_layers

        for pattern in self.targets or ():
            if not linear_layers(part, [pattern]):
                raise UserError(
                    f"no linear layer of the encoder matches targets: {pattern}",
                    f"module paths look like {linear_layers(part)[0]}",
                )
        return attention_projections(part) if self.targets is None else linear_layers(part, self.targets)


def require_dense(state: ModelState, paths: list[str]) -> None:
    """Raises UserError where one of the layers at `paths` has zeros that are meant: an adapter would fill them."""
    for path in paths:
        if f"encoder:{path}.weight" in state.sparse:
            raise UserError(
                f"{path} was pruned, and merging an adapter into it would fill its zeros",
                "prune after fuse-adapters, or give adapters to other layers",
            )


def _encoder(state: ModelState) -> Any:
    """Without the task's head."""
    from edgec.nn.layout import base_path

    part = state.parts["encoder"]
    return part.get_submodule(base_path(part))
