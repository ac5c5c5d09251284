"""align: an adapter that gives a compressed model's tokens the states of a larger one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from edgec.errors import DataError, PassError, UserError
from edgec.passes.learn import require_length, require_train, require_whole
from edgec.passes.supervised import MEANINGS, SupervisedOptions, require_taught
from edgec.state import ModelState, PassContext, PassResult
from edgec.training.options import TrainingOptions

FROZEN_RATE: Final = 1e-4
JOINT_RATE: Final = 5e-5


@dataclass(frozen=True, kw_only=True)
class Align(SupervisedOptions):
    __doc__ = f"""Alignment Adapter (Rai, Dhaka, Awekar, section 2): R'_i = F(R_(i-[n/2]) .. R_i .. R_(i+[n/2])).

    F is a network with one hidden layer that reads a window of the compressed model's token states, learns to give
    those of the large model, and then serves the head. Defaults are the paper's (section 2.1).

    large: the large model, a folder, hub id or pkg://package/path with the same vocabulary. window: how many tokens
    the adapter reads. units: of the adapter's hidden layer. phases: which are trained: 1, on data.unlabelled, and 2,
    on the texts of data.train, make the adapter's states like the large model's by their mean squared difference; 3
    learns the task on the labels of data.train. mode: in phase 3 the compressed model is "frozen", or learns along,
    "joint"; of a model with LoRA adapters they learn along, and the weights beside them stay. head: on the aligned
    states stands a "new" head, or that of the "large" model, which then gives the task and its labels.
    phase1_learning_rate: the highest of phase 1. phase1_epochs: of phase 1. phase1_steps: of phase 1; null: as its
    epochs say. phase2_learning_rate: the highest of phase 2. phase2_epochs: of phase 2. phase2_steps: of phase 2;
    null: as its epochs say. cache_mb: how many 10**6 bytes of states of frozen models are kept between epochs; what
    finds no room is computed anew. {MEANINGS}
    learning_rate: the highest of phase 3, after the warm-up; null: 1e-4 frozen, 5e-5 joint. epochs: of phase 3; the
    paper has 4 for tagging and 3 for question answering. steps: of phase 3; null: as the epochs say."""

    name: ClassVar[str] = "align"

    large: str
    window: Literal[1, 3, 5] = 5
    units: int = 1280
    phases: tuple[int, ...] = (1, 2, 3)
    mode: Literal["frozen", "joint"] = "frozen"
    head: Literal["new", "large"] = "new"
    phase1_learning_rate: float = 5e-4
    phase1_epochs: float = 1.0
    phase1_steps: int | None = None
    phase2_learning_rate: float = 1e-4
    phase2_epochs: float = 10.0
    phase2_steps: int | None = None
    learning_rate: float | None = None  # type: ignore[assignment]
    epochs: float = 4.0
    cache_mb: int = 2000

    def __post_init__(self) -> None:
        for phase in (1, 2, 3):
            self.trained(phase)
        supervised = {name: getattr(self, name) for name in SupervisedOptions.__dataclass_fields__}
        SupervisedOptions(**{**supervised, "learning_rate": FROZEN_RATE})
        if not self.phases or list(self.phases) != sorted(set(self.phases) & {1, 2, 3}):
            raise ValueError(f"phases should be some of 1, 2 and 3, in this order, not {list(self.phases)}")
        if self.units < 1:
            raise ValueError(f"units should be at least 1, not {self.units}")
        if self.cache_mb < 0:
            raise ValueError(f"cache_mb should not be below 0, and it is {self.cache_mb}")
        if 3 not in self.phases:
            for name in ("task", "labels"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for phase 3, which is not among the phases")
            if self.mode == "joint":
                raise ValueError("mode: joint is for phase 3, which is not among the phases")

    def trained(self, phase: int) -> TrainingOptions:
        """How phase 1, 2 or 3 trains. Raises ValueError, naming the option, for a value out of its range."""
        values = {name: getattr(self, name) for name in TrainingOptions.__dataclass_fields__}
        if phase != 3:
            own = {name: getattr(self, f"phase{phase}_{name}") for name in ("learning_rate", "epochs", "steps")}
            values |= {**own, "metric": None, "patience": None}
        elif self.learning_rate is None:
            values["learning_rate"] = FROZEN_RATE if self.mode == "frozen" else JOINT_RATE
        try:
            return TrainingOptions(**values)
        except ValueError as error:
            raise (error if phase == 3 else ValueError(f"phase{phase}_{error}")) from None

    def requires_data(self, ctx: PassContext) -> None:
        if 1 in self.phases and not ctx.data.unlabelled:
            raise DataError(
                "phase 1 of align needs plain texts", "give data.unlabelled in the recipe, or phases: [2, 3]"
            )
        if 3 in self.phases:
            require_taught(self.name, self, self.trained(3), ctx)
        elif 2 in self.phases:
            require_train(self.name, ctx)

    def requires(self, state: ModelState) -> None:
        require_whole(self.name, state)
        require_length(self.max_length, state)
        task = self.task or state.spec.task
        if task == "fill-mask":
            raise UserError("a model for fill-mask takes no alignment adapter", "name the task to align it for")
        if state.quantization is not None and self.mode == "joint":
            raise UserError(
                "the model is quantized, and its weights cannot learn along",
                "align with mode: frozen, or before quantize",
            )
        adapter = state.parts["encoder"].adapter
        if 3 not in self.phases and self.head == "new" and task != "feature-extraction" and adapter is None:
            raise UserError(
                f"without phase 3 the new head for {task} would stay untrained", "add 3 to phases, or take head: large"
            )
        if state.lora is not None and (task != state.spec.task or self.labels not in (None, state.spec.labels)):
            raise UserError(
                "the model has LoRA adapters, which learnt another task or other labels",
                "leave task and labels out, or merge them with fuse-adapters first",
            )
        if adapter is not None and (adapter.window, adapter.units) != (self.window, self.units):
            raise UserError(
                f"the model has an adapter of window {adapter.window} and {adapter.units} units already",
                "give the same window and units to train it on",
            )

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        from edgec.passes.align_phases import Phases

        return Phases(self, state, ctx).result()

    def ensures(self, before: ModelState, after: ModelState) -> None:
        import torch

        part: Any = after.parts["encoder"]
        if part.adapter is None or (part.adapter.window, part.adapter.units) != (self.window, self.units):
            raise PassError("align left the model without the adapter that was asked for")
        for name, tensor in part.state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise PassError(f"the tensor {name} is not finite", "lower the learning rates")
        if self.mode == "frozen":
            old = _encoder(before)
            for name, tensor in _encoder(after).items():
                if not torch.equal(tensor, old[name]):
                    raise PassError(f"align changed {name} of the compressed model, which was to stay as it is")


def _encoder(state: ModelState) -> dict[str, Any]:
    """The tensors below the head."""
    from edgec.nn.layout import base_path

    part = state.parts["encoder"]
    tensors = part.get_submodule(base_path(part)).state_dict()
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
