"""Rounding inside attention and around layer norms, simulated in torch: the reference of the lowered graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edgec.numerics.activations import activation_scale
from edgec.numerics.weights import REDUCED_RANGE
from edgec.state import PointQuantization

from .rounding import round_through

Note = Callable[[str, torch.Tensor, torch.Tensor | None], None]
"""Takes the name of a tensor as in PointQuantization.ranges, the tensor, and which of its values count: None, all."""


class FakePoint:
    """What one module rounds, and on what.

    point: may be replaced between two forwards by one with other ranges. rounding: where it is off, the module computes
    in float while it is in training mode. note: is told every tensor that a range is to span, at every forward.
    """

    def __init__(self, point: PointQuantization, reduce_range: bool = False) -> None:
        self.point, self.reduce_range = point, reduce_range
        self.rounding = True
        self.note: Note | None = None

    def from_zero_point(
        self, module: nn.Module, name: str, x: torch.Tensor, counted: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`x` on levels from a zero point, as u8; `x` itself where it has no range."""
        if not self._rounds(module, name, x, counted):
            return x
        step, zero_point = activation_scale(*self.point.ranges[name], self.point.bits)
        scale, zero = torch.tensor(step), int(zero_point)
        return (round_through(x / scale).clamp(-zero, 2**self.point.bits - 1 - zero)) * scale

    def around_zero(self, module: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
        """`x` on levels around zero, as s8: the second operand of a product."""
        if not self._rounds(module, name, x, None):
            return x
        low, high = self.point.ranges[name]
        least, most = -(2 ** (self.point.bits - 1)), 2 ** (self.point.bits - 1) - 1
        if self.reduce_range and most > REDUCED_RANGE:
            least, most = -REDUCED_RANGE, REDUCED_RANGE
        scale = torch.tensor(max(-low, high) / most if max(-low, high) > 0 else 1.0)
        return round_through(x / scale).clamp(least, most) * scale

    def _rounds(self, module: nn.Module, name: str, x: torch.Tensor, counted: torch.Tensor | None) -> bool:
        if name not in self.point.ranges:
            return False
        if self.note is not None:
            self.note(name, x, counted)
        return self.rounding or not module.training


def apply_points(
    part: nn.Module, points: Mapping[str, PointQuantization], *, reduce_range: bool = False
) -> dict[str, FakePoint]:
    """Make `part` round at exactly these points, in place: the float arithmetic of a fully quantized model.

    points: by module path (`Quantization.of_part(name).points`). reduce_range: as the target's int8.reduce_range;
    keys and values then have magnitudes of at most 64. A tensor is quantized and restored at once (Bie et al. 2020,
    equations 5 to 7), to the nearest level, half to even; gradients pass through. Returns what rounds, by module path,
    for who trains the part. Raises AttributeError where there is no such module.
    """
    fakes: dict[str, FakePoint] = {}
    for path, point in points.items():
        module = part.get_submodule(path)
        fake = fakes[path] = FakePoint(point, reduce_range)
        if point.kind == "attention":
            module.forward = partial(_forward_with, partial(_attend, fake), module.forward)
        else:
            module.register_forward_pre_hook(partial(_round_input, fake))
            module.register_forward_hook(partial(_round_output, fake))
    return fakes


@contextmanager
def attention_calls(function: Callable[..., Any]) -> Iterator[None]:
    """While this is open, models of transformers compute what they call "sdpa" by `function`.

    function: (module, query, key, value, mask, *, scaling, ...) -> (context (batch, tokens, heads, size), None), the
    first three (batch, heads, tokens, size), the mask as for `attention_probabilities`.
    """
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = function
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = before


def attention_scores(query: torch.Tensor, key: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Scaled dot products (batch, heads, tokens, tokens), before any mask. scaling: None for 1 / sqrt(size)."""
    return query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)


def attention_probabilities(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Their softmax over the keys. mask: (batch, 1, tokens, tokens), true where a key counts; None if all do."""
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1)


def _forward_with(attend: Callable[..., Any], forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with attention_calls(attend):
        return forward(*args, **kwargs)


def _attend(
    fake: FakePoint,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    query = fake.from_zero_point(module, "query", query)
    key, value = (fake.around_zero(module, name, x) for name, x in (("key", key), ("value", value)))
    # Scores are rounded before the mask: a hidden key is then no level of theirs, and counts for nothing at all.
    scores = fake.from_zero_point(module, "scores", attention_scores(query, key, scaling), mask)
    probabilities = fake.from_zero_point(module, "probabilities", attention_probabilities(scores, mask))
    probabilities = nn.functional.dropout(probabilities, dropout, module.training)
    return (probabilities @ value).transpose(1, 2).contiguous(), None


def _round_input(fake: FakePoint, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    (x,) = inputs
    if fake.point.smoothing is None:
        return fake.from_zero_point(module, "input", x)
    factors = torch.tensor(fake.point.smoothing, device=x.device)
    return fake.from_zero_point(module, "input", x / factors) * factors


def _round_output(fake: FakePoint, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return fake.from_zero_point(module, "output", output)
