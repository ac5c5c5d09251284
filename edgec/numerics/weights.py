"""Weights to small integers: symmetric, a scale a channel, a block of inputs or a row of a table."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from edgec.state import LayerQuantization

FULL_RANGE: Final = 127
REDUCED_RANGE: Final = 64
"""Largest magnitude where u8 x s8 products are summed in pairs in 16 bits: 2 * 255 * 64 = 32640 fits, 127 does not."""

_TABLE_ROWS: Final = 4096
"""Rows of a table that are quantized at a time: the search holds several copies of what it works on."""

Ints = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]


def quantize_linear(weight: Floats, layer: LayerQuantization, *, reduce_range: bool = False) -> tuple[Ints, Floats]:
    """Quantize the matrix (inputs, channels) of a layer whose activations are quantized too, a scale a channel.

    Of `layer` count bits, per_tensor (the channels share one scale) and clip: clipping ranges between the largest
    magnitude and a fraction of it are tried, and the one with the least squared error is kept. Smoothing is the
    caller's, as are the rows of outliers. reduce_range: see REDUCED_RANGE.
    Returns (int8 weights, float32 scales of shape (channels,)).
    """
    # Sums have other last bits in another memory order, and of two scales that are as good the other one would win.
    weight = np.ascontiguousarray(weight)
    largest = min(2 ** (layer.bits - 1) - 1, REDUCED_RANGE if reduce_range else FULL_RANGE)
    axis = None if layer.per_tensor else 0
    magnitude = _positive(np.abs(weight).max(axis=axis, keepdims=True))
    scale = magnitude / largest
    if layer.clip:
        # Eight bits a channel never gain from clipping more than 0.6; few levels, or one range for all channels, do.
        fractions = np.linspace(1, 0.6, 20) if layer.bits == 8 and not layer.per_tensor else np.linspace(1, 0.2, 39)
        best_error = np.full(magnitude.shape, np.inf, np.float32)
        for fraction in fractions.astype(np.float32):
            tried = magnitude * fraction / largest
            rounded = np.clip(np.rint(weight / tried), -largest, largest)
            error = np.square(rounded * tried - weight).sum(axis=axis, keepdims=True)
            scale = np.where(error < best_error, tried, scale)
            best_error = np.minimum(error, best_error)
    quantized = np.clip(np.rint(weight / scale), -largest, largest).astype(np.int8)
    return quantized, np.broadcast_to(scale, (1, weight.shape[1])).reshape(-1).copy()


def quantize_blocks(weight: Floats, bits: int, block_size: int) -> tuple[Ints, Floats]:
    """Quantize the matrix (inputs, channels) of a layer with float activations, a scale each block_size inputs.

    bits: 8, a block spans [-127, 127] by its largest magnitude; or 4, see `_four_bits`. The last block may be shorter.
    Returns (int8 weights (inputs, channels), float32 scales (blocks, channels)).
    """
    quantized, scales = _quantize_last_axis(np.ascontiguousarray(weight.T), bits, block_size)
    return np.ascontiguousarray(quantized.T), np.ascontiguousarray(scales.T)


def quantize_rows(table: Floats) -> tuple[Ints, Floats]:
    """Quantize an embedding table of shape (rows, width), a scale a row. No clipping: each row stands for a token.

    Returns (int8 table, float32 scales of shape (rows, 1)).
    """
    scale = _positive(np.abs(table).max(axis=1, keepdims=True)) / np.float32(FULL_RANGE)
    return np.rint(table / scale).astype(np.int8), scale


def quantize_row_blocks(table: Floats, block_size: int) -> tuple[Ints, Floats]:
    """Quantize an embedding table of shape (rows, width) to 4 bits, a scale each block_size values of a row.

    Returns (int8 table of values -8..7, float32 scales of shape (rows, blocks)); the last block may be shorter.
    """
    return _quantize_last_axis(table, 4, block_size)


def _quantize_last_axis(rows: Floats, bits: int, block_size: int) -> tuple[Ints, Floats]:
    """(rows, width) -> int8 (rows, width) and float32 scales (rows, blocks)."""
    if bits not in (4, 8):
        raise ValueError(f"blocks have 4 or 8 bits, not {bits}")
    count, width = rows.shape
    blocks = -(-width // block_size)
    quantized = np.empty((count, width), np.int8)
    scales = np.empty((count, blocks), np.float32)
    for start in range(0, count, _TABLE_ROWS):
        part = rows[start : start + _TABLE_ROWS]
        padded = np.zeros((len(part), blocks * block_size), np.float32)
        padded[:, :width] = part
        split = padded.reshape(len(part), blocks, block_size)
        ints, scale = _four_bits(split) if bits == 4 else _eight_bits(split)
        quantized[start : start + _TABLE_ROWS] = ints.reshape(len(part), -1)[:, :width]
        scales[start : start + _TABLE_ROWS] = scale[..., 0]
    return quantized, scales


def _eight_bits(blocks: Floats) -> tuple[Floats, Floats]:
    """(.., size) -> whole numbers in [-127, 127] and the scales (.., 1)."""
    scale = _positive(np.abs(blocks).max(axis=-1, keepdims=True)) / np.float32(FULL_RANGE)
    return np.rint(blocks / scale), scale


def _four_bits(blocks: Floats) -> tuple[Floats, Floats]:
    """(.., size) -> whole numbers in [-8, 7] and the scales (.., 1), which may be negative.

    The sixteen levels reach further below zero than above. The scale's sign puts the value of the largest magnitude
    on the longer side, and its size is the best of 24 in the squared sense: from that where this value is level -7
    down to where 0.58 of it is level -8 and what lies beyond is clipped.
    """
    low, high = blocks.min(axis=-1, keepdims=True), blocks.max(axis=-1, keepdims=True)
    extreme = np.where(high > -low, high, low)
    extreme = np.where(extreme == 0, np.float32(1), extreme)
    best_error = np.full(extreme.shape, np.inf, np.float32)
    best = extreme
    for fraction in np.linspace(8 / 7, 0.58, 24, dtype=np.float32):
        scale = extreme * fraction / np.float32(-8)
        error = np.square(np.clip(np.rint(blocks / scale), -8, 7) * scale - blocks).sum(axis=-1, keepdims=True)
        best = np.where(error < best_error, scale, best)
        best_error = np.minimum(error, best_error)
    return np.clip(np.rint(blocks / best), -8, 7), best


def _positive(magnitude: Floats) -> Floats:
    """What is all zeros has no range of its own; any scale represents it."""
    return np.where(magnitude > 0, magnitude, np.float32(1)).astype(np.float32)
