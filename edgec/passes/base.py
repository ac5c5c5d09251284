"""What a pass is, and the infrastructure that holds it to its word."""

from __future__ import annotations

import dataclasses
from hashlib import sha256
from typing import Any, ClassVar, Protocol

from edgec_runtime.manifest import PassRecord

from edgec.errors import PassError
from edgec.state import ModelState, PassContext, PassResult


class Pass(Protocol):
    """A frozen dataclass of options. `requires` and `ensures` speak of facts of the state, never of other passes."""

    name: ClassVar[str]

    def requires_data(self, ctx: PassContext) -> None:
        """Raises DataError where these options need texts or labelled rows that `ctx` has none of.

        Called before any model is loaded.
        """
        ...

    def requires(self, state: ModelState) -> None:
        """Raises a UserError where the state is not one that the pass can work on."""
        ...

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        """The new state. Leaves `state` as it is and writes only below `ctx.workdir`."""
        ...

    def ensures(self, before: ModelState, after: ModelState) -> None:
        """Raises PassError where the new state is not what the pass promises."""
        ...


def run_pass(step: Pass, state: ModelState, ctx: PassContext) -> ModelState:
    """Apply one pass: its precondition, the work, its promise, and a record in the state's history.

    Raises UserError from `requires`, PassError where the pass broke a rule that all passes share.
    """
    step.requires(state)
    weights = _fingerprint(state)
    result = step.apply(state, ctx)
    if result.state is state:
        raise PassError(f"pass {step.name} returned the state that it was given")
    if _fingerprint(state) != weights:
        raise PassError(f"pass {step.name} changed the state that it was given")
    if not isinstance(result.report.get("left_alone"), dict):
        raise PassError(f"pass {step.name} does not say which layers it left alone")
    step.ensures(state, result.state)
    record = PassRecord(step.name, dataclasses.asdict(step), result.report)  # type: ignore[call-overload]
    return dataclasses.replace(result.state, history=(*state.history, _plain(record)))


def _fingerprint(state: ModelState) -> tuple[Any, ...]:
    """Changes with any tensor of the parts and with the decision."""
    import torch

    tensors = tuple(
        # The bytes themselves: torch's own count of in-place changes misses those made through `.data`.
        (name, tensor.dtype, tensor.shape, sha256(tensor.detach().reshape(-1).view(torch.uint8).numpy()).digest())
        for part in state.parts.values()
        for name, tensor in part.state_dict().items()
    )
    return tensors, state.quantization, state.history


def _plain(record: PassRecord) -> PassRecord:
    """Tuples become lists, as they come back from a JSON file, so that a saved state equals a fresh one."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return PassRecord(record.name, plain(record.options), plain(record.report))
