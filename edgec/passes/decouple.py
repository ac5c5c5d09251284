"""decouple: the lower layers read question and passage apart, so that those of a passage are computed once."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgec.errors import PassError, UserError
from edgec.passes.learn import copied, fit, require_float, require_length, require_room, require_scored, require_train
from edgec.processes import is_main
from edgec.state import ModelState, PassContext, PassResult
from edgec.training.options import MEANINGS, TrainingOptions

if TYPE_CHECKING:
    from edgec.training.decoupling import Decoupling


@dataclass(frozen=True, kw_only=True)
class Decouple(TrainingOptions):
    __doc__ = f"""Decoupled transformer (ElFadeel and Peshterliev, "Decoupled Transformer for Scalable Inference in
    Open-domain Question Answering", sections 3 and 4). Defaults are the paper's (Table 2).

    split: how many of the lower layers, the input component, read the two texts apart; the layers above, the cross
    component, read them together. compression: how many times fewer channels the kept states of a token have, by a
    linear layer at the seam and one that undoes it (section 4); null: none. compression_steps: optimizer steps in which
    they learn along with the model, after they were made (phase 2); null: as many as without them. distill: the weight
    of the model that comes into the pass as a teacher, lambda; 1 - distill is that of the labels. temperature: what
    softens its answers, T. states: the weight of the mean squared difference of the last hidden states, sigma.
    attention: the same of what the last self-attention gives. contrastive: the weight of an in-batch loss that makes
    the mean states of a question and its passage alike, for retrieval (section 6, future work), of question-answering;
    0: none. max_length:
    tokens a training row; null: the model's. {MEANINGS}"""

    name: ClassVar[str] = "decouple"

    split: int
    compression: float | None = None
    compression_steps: int | None = None
    distill: float = 0.95
    temperature: float = 3.0
    states: float = 0.5
    attention: float = 0.5
    contrastive: float = 0.0
    max_length: int | None = None
    layer_decay: float = 0.95
    clip: float = 3.0
    epochs: float = 4.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require_room(self.max_length)
        if self.split < 1:
            raise ValueError(f"split should be at least 1 layer, not {self.split}")
        if self.compression is not None and not 1 < self.compression <= 16:
            raise ValueError(f"compression should be above 1 and at most 16, not {self.compression}")
        if self.compression_steps is not None and (self.compression is None or self.compression_steps < 1):
            raise ValueError("compression_steps is for a model with compression, and at least 1")
        if not 0 <= self.distill <= 1:
            raise ValueError(f"distill should be between 0 and 1, not {self.distill}")
        for name in ("states", "attention", "contrastive"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is a weight and should not be below 0")
        if self.temperature <= 0:
            raise ValueError(f"temperature should be above 0, not {self.temperature}")

    def requires_data(self, ctx: PassContext) -> None:
        require_train(self.name, ctx)
        require_scored(self, ctx, None)

    def requires(self, state: ModelState) -> None:
        require_float(self.name, state)
        require_length(self.max_length, state)
        part: Any = state.parts["encoder"]
        if state.lora is not None:
            raise UserError("the model has LoRA adapters beside its weights", "merge them with fuse-adapters first")
        if part.adapter is not None:
            raise UserError("the model has an alignment adapter, which was made for its states", "leave align out")
        if part.seam is not None:
            raise UserError("the model is decoupled already", "keep one decouple pass in the recipe")
        from edgec.models.families import FAMILIES
        from edgec.nn.layout import layers

        if not FAMILIES[state.spec.family].decouples:
            raise UserError(
                f"a model of the family {state.spec.family} cannot be decoupled: its positions are relative or rotary, "
                "inside its attention, and have no table that the cross component could start from",
                f"choose one of {', '.join(name for name, family in FAMILIES.items() if family.decouples)}",
            )
        if not state.spec.pairs:
            raise UserError(
                f"this model for {state.spec.task} reads single texts, and there is nothing to read apart",
                "fine-tune it on question-answering or on pairs first",
            )
        if self.contrastive and state.spec.task != "question-answering":
            raise UserError(
                "contrastive makes a question and its passage alike, and the two texts of a pair may be unlike",
                "leave contrastive out: it is for question-answering",
            )
        depth = len(layers(part))
        if self.split >= depth:
            raise UserError(
                f"split {self.split} leaves no layer of {depth} to read both texts together",
                f"split: 1 to {depth - 1}",
            )
        self.width(part.hidden_size)

    def width(self, hidden: int) -> int | None:
        """Of a kept state, in channels. Raises UserError where nothing would be left."""
        if self.compression is None:
            return None
        width = round(hidden / self.compression)
        if width < 1:
            raise UserError(f"compression {self.compression} leaves nothing of {hidden} channels", "lower it")
        return width

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        from edgec.models.decoupled import decoupled
        from edgec.nn.layout import layers

        finished = ctx.training_folder / "finished"
        if (known := _finished(finished)) is not None:
            after, learnt = known
        else:
            after = decoupled(copied(state), self.split)
            learnt = self._trained(after, state, self._rows(after, ctx), ctx, self.trains, "decouple")
        part: Any = after.parts["encoder"]
        report: dict[str, Any] = {
            "split": f"{self.split}-{len(layers(part)) - self.split}",
            "examples": len(ctx.data.train),
            "width": part.hidden_size,
            **learnt,
            "left_alone": {},
        }
        if self.compression is not None:
            if known is None and is_main():
                _finish(finished, after, learnt)
            report |= self.compress(after, state, ctx)
        if is_main():
            shutil.rmtree(finished, ignore_errors=True)
        return PassResult(after, report)

    def compress(self, after: ModelState, teacher: ModelState, ctx: PassContext) -> dict[str, Any]:
        """Compress the kept states of `after`, a decoupled model that has learned from `teacher`, in place: both phases
        of section 4.1. What it reports: the width of a state, the variance that phase 1 keeps, phase 2's training, and
        the variance that is kept after it, by states in float and in the store's int8.
        """
        from edgec.training.compression import explained, with_compression

        part: Any = after.parts["encoder"]
        width = self.width(part.hidden_size)
        if width is None:
            return {}
        rows, pad_id = self._rows(after, ctx), int(after.tokenizer.pad_token_id or 0)
        part.seam = with_compression(part, rows, width, pad_id=pad_id)
        first, _ = explained(part, rows, pad_id=pad_id)
        joint = dataclasses.replace(self.trains, steps=self.compression_steps or self.steps)
        learnt = self._trained(after, teacher, rows, ctx, joint, "compression")
        last, int8 = explained(part, rows, pad_id=pad_id)
        return {
            "width": width,
            "explained_variance": round(first, 4),
            "explained_variance_after": round(last, 4),
            "explained_variance_int8": round(int8, 4),
            "compression": learnt,
        }

    def _rows(self, state: ModelState, ctx: PassContext) -> list[Any]:
        from edgec.training.features import Featurizer

        return Featurizer(state, max_length=self.max_length, say=ctx.say).labelled(ctx.data.train)

    def _trained(
        self,
        state: ModelState,
        teacher: ModelState,
        rows: list[Any],
        ctx: PassContext,
        options: TrainingOptions,
        label: str,
    ) -> dict[str, Any]:
        objective = self.objective(teacher.parts["encoder"], multi_label=teacher.spec.multi_label)
        return fit(state, rows, objective, options, ctx, label=label, folder=label).to_dict()

    def objective(self, teacher: Any, *, multi_label: bool) -> Decoupling:
        """What a decoupled model learns from the part `teacher` with these weights."""
        from edgec.training.decoupling import Decoupling
        from edgec.training.objectives import Supervised

        return Decoupling(
            teacher,
            Supervised(multi_label=multi_label),
            weight=self.distill,
            temperature=self.temperature,
            states=self.states,
            attention=self.attention,
            contrastive=self.contrastive,
        )

    def ensures(self, before: ModelState, after: ModelState) -> None:
        part: Any = after.parts["encoder"]
        if part.seam is None or part.seam.split != self.split:
            raise PassError("decouple left the model whole")
        for name, tensor in part.state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise PassError(f"the tensor {name} is not finite", "lower the learning rate")


def _finish(folder: Path, state: ModelState, report: dict[str, Any]) -> None:
    """Keep the model before compression, so that a kill in what follows does not cost its training."""
    from edgec.files import atomic_folder
    from edgec.models import save_build

    with atomic_folder(folder, force=True) as work:
        save_build(state, work / "model")
        (work / "report.json").write_text(json.dumps(report), encoding="utf-8")


def _finished(folder: Path) -> tuple[ModelState, dict[str, Any]] | None:
    """What an interrupted run kept, and the report of its training; None where there is nothing."""
    from edgec.models import load_build

    if not folder.is_dir():
        return None
    return load_build(folder / "model"), json.loads((folder / "report.json").read_text(encoding="utf-8"))
