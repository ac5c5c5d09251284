"""Weights to int8: symmetric, a scale a channel, the clipping range searched for the least squared error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FULL_RANGE = 127
REDUCED_RANGE = 64
"""Largest magnitude where u8 x s8 products are summed in pairs in 16 bits: 2 * 255 * 64 = 32640 fits, 127 does not."""


def quantize_per_channel(
    weight: npt.NDArray[np.float32], *, reduce_range: bool = False, steps: int = 20, smallest: float = 0.6
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantize a matrix of shape (inputs, channels), a scale a channel (column).

    steps: how many clipping ranges between `smallest` and 1.0 of the channel's largest magnitude are tried; the one
    with the least squared error is kept. Returns (int8 weights, float32 scales of shape (channels,)).
    """
    largest = FULL_RANGE if not reduce_range else REDUCED_RANGE
    magnitude = np.abs(weight).max(axis=0).astype(np.float32)
    # A channel of zeros has no range of its own; any scale represents it.
    magnitude = np.where(magnitude > 0, magnitude, np.float32(1))
    best_error = np.full(weight.shape[1], np.inf)
    best_scale = magnitude / largest
    for fraction in np.linspace(1.0, smallest, steps, dtype=np.float32):
        scale = magnitude * fraction / largest
        rounded = np.clip(np.rint(weight / scale), -largest, largest)
        error = np.square(rounded * scale - weight).sum(axis=0)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, scale, best_scale)
    scale = best_scale.astype(np.float32)
    return np.clip(np.rint(weight / scale), -largest, largest).astype(np.int8), scale


def quantize_rows(
    table: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantize an embedding table of shape (rows, width), a scale a row. No clipping: each row stands for a token.

    Returns (int8 table, float32 scales of shape (rows, 1)).
    """
    magnitude = np.abs(table).max(axis=1, keepdims=True).astype(np.float32)
    scale = np.where(magnitude > 0, magnitude, np.float32(1)) / np.float32(FULL_RANGE)
    return np.rint(table / scale).astype(np.int8), scale.astype(np.float32)


def activation_scale(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of u8 activations that span [low, high]; zero is always representable.

    ONNX QuantizeLinear: q = saturate(round(x / scale) + zero_point).
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255) if high > low else np.float32(1)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))
