"""Rounding that training can pass through, and activations as whole steps of a scale."""

from __future__ import annotations

from typing import Any, Final

import torch

from edgec.numerics.activations import activation_scale

_U8: Final = 255
_S8: Final = 127


class _RoundThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def round_through(x: torch.Tensor) -> torch.Tensor:
    """Round half to even, with the gradient of the identity (straight-through estimator, Bengio et al. 2013)."""
    return _RoundThrough.apply(x)


def steps_of_range(x: torch.Tensor, low: float, high: float, bits: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` on the fixed scale of [low, high], as u8 with a zero point holds it.

    Returns (whole steps from zero, shape of x; the scale, one number): x is about their product. With fewer than 8
    bits x is clipped to the range first, because u8 itself would hold more.
    """
    scale, zero = activation_scale(low, high, bits)
    step, zero_point = torch.tensor(scale), float(zero)
    if bits < 8:
        x = x.clamp(low, high)
    return (round_through(x / step) + zero_point).clamp(0, _U8) - zero_point, step


def steps_of_tensor(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As steps_of_range, the range being that of `x` itself, zero included (ONNX DynamicQuantizeLinear)."""
    known = x.detach()
    low, high = known.amin().clamp(max=0), known.amax().clamp(min=0)
    step = torch.where(high > low, (high - low) / _U8, 1.0)
    zero_point = torch.round((-low / step).clamp(0, _U8))
    return (round_through(x / step) + zero_point).clamp(0, _U8) - zero_point, step


def steps_of_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` (.., channels) in 255 levels around zero, each row on a scale of its own (.., 1), its largest magnitude 127.

    A row of zeros has the scale 1.
    """
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    step = torch.where(largest > 0, largest / _S8, 1.0)
    return round_through(x / step).clamp(-_S8, _S8), step
