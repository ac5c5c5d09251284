"""Activations to u8: the scale and zero point of a range."""

from __future__ import annotations

import numpy as np


def activation_scale(low: float, high: float, bits: int = 8) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of activations of `bits` bits (8 at most) that span [low, high]; zero has a level.

    ONNX QuantizeLinear: q = saturate(round(x / scale) + zero_point), here to [0, 2**bits - 1].
    """
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 2**bits - 1
    scale = np.float32((high - low) / levels) if high > low else np.float32(1)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, levels))
