"""fuse-adapters: merge adapters into the weights, and show that the answers stayed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgec.errors import ParityError, PassError, UserError
from edgec.passes.learn import copied, require_float
from edgec.passes.supervised import Task
from edgec.state import ModelState, PassContext, PassResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgec.graph.parity import Outputs


@dataclass(frozen=True, kw_only=True)
class FuseAdapters:
    """Replaces LoRA adapters, and every module that can be fused, by plain layers: W + alpha / r * B A (Hu et al. 2022,
    section 4.1). What the model answers before and after is compared.

    adapter: a folder that peft wrote, to be put on the model and merged; null: the adapters that the model has. task:
    what that adapter was trained for, where it brings the head; null: the model's. labels: in the order of that head's
    outputs; null: the model's. tolerance: how far any output may move, absolute. int8: also compare with the fused
    model on dynamic int8, a scale a token, whose mean cosine has to reach 0.9.
    """

    name: ClassVar[str] = "fuse-adapters"

    adapter: str | None = None
    task: Task | None = None
    labels: tuple[str, ...] | None = None
    tolerance: float = 1e-4
    int8: bool = True

    def __post_init__(self) -> None:
        if not (self.tolerance > 0 and math.isfinite(self.tolerance)):
            raise ValueError(f"tolerance should be above 0, not {self.tolerance}")
        if self.adapter is None and (self.task is not None or self.labels is not None):
            raise ValueError("task and labels are those of an adapter, which is not named")

    def requires_data(self, ctx: PassContext) -> None:
        if self.adapter is not None and not Path(self.adapter).is_dir():
            raise UserError(f"there is no folder {self.adapter}", "name the folder that peft's save_pretrained wrote")

    def requires(self, state: ModelState) -> None:
        from edgec.nn.fuse import fusable
        from edgec.passes.lora import require_dense

        require_float(self.name, state)
        there = fusable(state.parts["encoder"])
        if self.adapter is None and not there:
            raise UserError(
                "the model has no adapters to fuse", "train some with the pass lora, or name a folder: adapter"
            )
        if self.adapter is not None and state.lora is not None:
            raise UserError(
                "the model has LoRA adapters already, and another is named", "put a fuse-adapters without it before"
            )
        require_dense(state, there)

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        from edgec.models.peft_adapter import read_adapter, with_adapter
        from edgec.nn.fuse import fusable, fuse
        from edgec.passes.answers import answers, apart, sample_requests
        from edgec.passes.lora import require_dense

        report: dict[str, Any] = {}
        if self.adapter is not None:
            found = read_adapter(Path(self.adapter))
            state = with_adapter(state, found, task=self.task, labels=self.labels)
            require_dense(state, fusable(state.parts["encoder"]))
            report["adapter_sha256"] = found.sha256
        requests = sample_requests(state, ctx.texts)
        beside = answers(state, requests)
        after = dataclasses.replace(copied(state), lora=None)
        report["fused"] = fuse(after.parts["encoder"])
        parity = apart(beside, answers(after, requests))
        report |= {"requests": len(requests), "tolerance": self.tolerance, "fused_against_adapter": parity.to_dict()}
        if not parity.max_abs <= self.tolerance:
            raise ParityError(
                f"fusing the adapters moved the output {parity.worst!r} by {parity.max_abs:.3g} "
                f"(tolerance {self.tolerance:g})",
                "raise tolerance where the outputs are large; otherwise a module computes something else than it is "
                "fused to",
            )
        if self.int8:
            report["int8_against_adapter"] = _int8(after, requests, beside, ctx)
        return PassResult(after, {**report, "left_alone": {}})

    def ensures(self, before: ModelState, after: ModelState) -> None:
        from edgec.nn.adapters import is_adapter
        from edgec.nn.fuse import fusable

        part = after.parts["encoder"]
        if after.lora is not None or (left := fusable(part)) or (left := list(filter(is_adapter, part.state_dict()))):
            raise PassError(f"fuse-adapters left {'its settings' if after.lora is not None else left[0]}")


def _int8(fused: ModelState, requests: Sequence[Any], beside: Sequence[Outputs], ctx: PassContext) -> dict[str, Any]:
    """The answers of the fused model in int8 against those that it gave with its adapters. Raises ParityError."""
    from edgec.graph.parity import INT8_MIN_COSINE
    from edgec.passes.answers import answers, apart
    from edgec.passes.quantize import Quantize

    rounded = Quantize(scheme="dynamic").apply(fused, ctx).state
    parity = apart(beside, answers(rounded, requests))
    if not (parity.mean_cosine >= INT8_MIN_COSINE and math.isfinite(parity.max_abs)):
        raise ParityError(
            f"fused and in int8 the model no longer answers as with its adapters: mean cosine {parity.mean_cosine:.3f} "
            f"(at least {INT8_MIN_COSINE}), worst output {parity.worst!r} (off by {parity.max_abs:.3g})",
            "train the adapters with a lower learning_rate or alpha; int8: false where the model stays in float",
        )
    return parity.to_dict()
