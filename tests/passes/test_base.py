"""The rules that all passes share, and that none of them can break unnoticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from edgec_runtime.manifest import PassRecord
from tiny_models import tiny

from edgec.errors import PassError, UserError
from edgec.models import load_model
from edgec.passes import PASSES, run_pass
from edgec.state import ModelState, PassContext, PassResult, Quantization

REPORT: dict[str, Any] = {"left_alone": {}}


@pytest.fixture
def state(tmp_path: Path) -> ModelState:
    return load_model(tiny("bert", "feature-extraction", tmp_path / "model", num_hidden_layers=1))


@dataclass(frozen=True)
class Shorten:
    """A pass that does what passes do: hand on a changed copy."""

    name: ClassVar[str] = "shorten"

    tokens: int = 16
    also: tuple[str, ...] = ("a", "b")

    def requires(self, state: ModelState) -> None:
        if state.spec.max_length < self.tokens:
            raise UserError("the rows are shorter already")

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        spec = dataclasses.replace(state.spec, max_length=self.tokens)
        report = {"left_alone": {"encoder:model": "not a table"}, "rows": (1, 2), "by": {"way": (3,)}}
        return PassResult(dataclasses.replace(state, spec=spec), report)

    def ensures(self, before: ModelState, after: ModelState) -> None:
        if not after.spec.max_length < before.spec.max_length:
            raise PassError("nothing was shortened")


def test_a_pass_is_recorded_with_its_options_and_figures(state: ModelState, tmp_path: Path) -> None:
    first = PassRecord("earlier", {}, {"left_alone": {}})
    after = run_pass(Shorten(tokens=20), dataclasses.replace(state, history=(first,)), PassContext(tmp_path))
    assert after.spec.max_length == 20 and state.spec.max_length == 64
    record = PassRecord(
        "shorten",
        # Lists, as they come back from a JSON file.
        {"tokens": 20, "also": ["a", "b"]},
        {"left_alone": {"encoder:model": "not a table"}, "rows": [1, 2], "by": {"way": [3]}},
    )
    assert after.history == (first, record)
    assert state.history == ()


def test_what_a_pass_requires_comes_first(state: ModelState, tmp_path: Path) -> None:
    class Never(Shorten):
        def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
            raise AssertionError("it ran all the same")

    with pytest.raises(UserError, match="the rows are shorter already"):
        run_pass(Never(tokens=100), state, PassContext(tmp_path))


def test_what_a_pass_promises_is_checked(state: ModelState, tmp_path: Path) -> None:
    with pytest.raises(PassError, match="nothing was shortened"):
        run_pass(Shorten(tokens=64), state, PassContext(tmp_path))


def _in_place(state: ModelState) -> ModelState:
    with torch.no_grad():
        state.parts["encoder"].model.encoder.layer[0].output.dense.weight.mul_(0.5)
    return dataclasses.replace(state)


def _behind_torchs_back(state: ModelState) -> ModelState:
    state.parts["encoder"].model.embeddings.word_embeddings.weight.data[3, 2] += 1e-3
    return dataclasses.replace(state)


def _new_tensor(state: ModelState) -> ModelState:
    module = state.parts["encoder"].model.encoder.layer[0].output.dense
    module.bias = torch.nn.Parameter(torch.zeros_like(module.bias))
    return dataclasses.replace(state)


def _lost_module(state: ModelState) -> ModelState:
    state.parts["encoder"].model.embeddings.LayerNorm = None
    return dataclasses.replace(state)


def _half_precision(state: ModelState) -> ModelState:
    state.parts["encoder"].model.embeddings.LayerNorm.half()
    return dataclasses.replace(state)


@pytest.mark.parametrize(
    "change", [_in_place, _behind_torchs_back, _new_tensor, _lost_module, _half_precision], ids=lambda f: f.__name__
)
def test_a_pass_leaves_its_input_as_it_is(
    state: ModelState, tmp_path: Path, change: Callable[[ModelState], ModelState]
) -> None:
    class Careless(Shorten):
        def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
            return PassResult(change(state), REPORT)

    with pytest.raises(PassError, match="pass shorten changed the state that it was given"):
        run_pass(Careless(), state, PassContext(tmp_path))


def test_a_pass_returns_a_state_of_its_own(state: ModelState, tmp_path: Path) -> None:
    class Same(Shorten):
        def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
            return PassResult(state, REPORT)

    with pytest.raises(PassError, match="pass shorten returned the state that it was given"):
        run_pass(Same(), state, PassContext(tmp_path))


@pytest.mark.parametrize("report", [{}, {"left_alone": None}, {"left_alone": ["encoder:model"]}])
def test_a_pass_says_what_it_left_alone(state: ModelState, tmp_path: Path, report: dict[str, Any]) -> None:
    class Silent(Shorten):
        def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
            return PassResult(super().apply(state, ctx).state, report)

    with pytest.raises(PassError, match="pass shorten does not say which layers it left alone"):
        run_pass(Silent(), state, PassContext(tmp_path))


def test_tensors_of_every_type_are_looked_at(state: ModelState, tmp_path: Path) -> None:
    state.parts["encoder"].model.embeddings.LayerNorm.to(torch.bfloat16)
    state.parts["encoder"].register_buffer("step", torch.tensor(3))
    assert run_pass(Shorten(), state, PassContext(tmp_path)).spec.max_length == 16


def test_a_decision_is_part_of_the_state(state: ModelState, tmp_path: Path) -> None:
    class Deciding(Shorten):
        def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
            after = super().apply(state, ctx).state
            object.__setattr__(state, "quantization", Quantization("dynamic", {}))
            return PassResult(after, REPORT)

    with pytest.raises(PassError, match="changed the state"):
        run_pass(Deciding(), state, PassContext(tmp_path))


def test_every_pass_goes_by_its_own_name() -> None:
    for name, kind in PASSES.items():
        assert kind.name == name  # type: ignore[attr-defined]
        assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert kind.__doc__
