"""States of a passage in few bits: float16, or int8 with one float16 scale a token."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

LIMIT: Final = 127

Float16s = NDArray[np.float16]
Float32s = NDArray[np.float32]
Int8s = NDArray[np.int8]


def quantize(states: Float32s) -> tuple[Float16s, Int8s]:
    """Scales (tokens,) and integers (tokens, width) of finite states (tokens, width).

    A token's scale is its largest absolute value / 127, rounded to float16; its integers are states / scale, rounded
    half to even, and at most 127. A token whose scale rounds to zero becomes zeros. A scale above float16 is infinite:
    the caller refuses it.
    """
    with np.errstate(over="ignore"):
        scales = (np.abs(states).max(axis=1, initial=0) / np.float32(LIMIT)).astype(np.float16)
    divisors = np.where(scales > 0, scales, np.float16(np.inf)).astype(np.float32)
    integers = np.rint(states / divisors[:, None]).clip(-LIMIT, LIMIT).astype(np.int8)
    return scales, integers


def dequantize(scales: Float16s, integers: Int8s) -> Float32s:
    """States (tokens, width) of scales (tokens,) and integers (tokens, width)."""
    return integers.astype(np.float32) * scales.astype(np.float32)[:, None]
