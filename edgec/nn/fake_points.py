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


def apply_points(part: nn.Module, points: Mapping[str, PointQuantization], *, reduce_range: bool = False) -> None:
    """Make `part` round at exactly these points, in place: the float arithmetic of a fully quantized model.

    points: by module path (`Quantization.of_part(name).points`). reduce_range: as the target's int8.reduce_range;
    keys and values then have magnitudes of at most 64. A tensor is quantized and restored at once (Bie et al. 2020,
    equations 5 to 7), to the nearest level, half to even; gradients pass through. Raises AttributeError where there is
    no such module.
    """
    for path, point in points.items():
        module = part.get_submodule(path)
        if point.kind == "attention":
            attend = partial(_attend, point, reduce_range)
            module.forward = partial(_forward_with, attend, module.forward)
        else:
            module.register_forward_pre_hook(partial(_round_input, point))
            module.register_forward_hook(partial(_round_output, point))


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
    point: PointQuantization,
    reduce_range: bool,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    query = _rounded(query, point, "query")
    key, value = (_rounded_evenly(x, point, name, reduce_range) for name, x in (("key", key), ("value", value)))
    # Scores are rounded before the mask: a hidden key is then no level of theirs, and counts for nothing at all.
    scores = _rounded(attention_scores(query, key, scaling), point, "scores")
    probabilities = _rounded(attention_probabilities(scores, mask), point, "probabilities")
    return (probabilities @ value).transpose(1, 2).contiguous(), None


def _round_input(point: PointQuantization, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    (x,) = inputs
    if point.smoothing is None:
        return _rounded(x, point, "input")
    factors = torch.tensor(point.smoothing)
    return _rounded(x / factors, point, "input") * factors


def _round_output(point: PointQuantization, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return _rounded(output, point, "output")


def _rounded(x: torch.Tensor, point: PointQuantization, name: str) -> torch.Tensor:
    """`x` on levels from a zero point, as u8; `x` itself where it has no range."""
    if name not in point.ranges:
        return x
    step, zero_point = activation_scale(*point.ranges[name], point.bits)
    scale, zero = torch.tensor(step), int(zero_point)
    return (round_through(x / scale).clamp(-zero, 2**point.bits - 1 - zero)) * scale


def _rounded_evenly(x: torch.Tensor, point: PointQuantization, name: str, reduce_range: bool) -> torch.Tensor:
    """`x` on levels around zero, as s8: the second operand of a product."""
    if name not in point.ranges:
        return x
    low, high = point.ranges[name]
    least, most = -(2 ** (point.bits - 1)), 2 ** (point.bits - 1) - 1
    if reduce_range and most > REDUCED_RANGE:
        least, most = -REDUCED_RANGE, REDUCED_RANGE
    scale = torch.tensor(max(-low, high) / most if max(-low, high) > 0 else 1.0)
    return round_through(x / scale).clamp(least, most) * scale
