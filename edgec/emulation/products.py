"""The int32 sums of onnxruntime's 8-bit matrix products, bit for bit as each kind of CPU computes them, in numpy.

What is multiplied are the stored bytes. Zero points come in afterwards, in 32 bits, through the sums of rows and
columns, so no choice of zero point keeps a product from saturating. docs/emulation.md tells what this was checked on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from .kinds import Kind

Bytes = npt.NDArray[np.uint8 | np.int8]
Sums = npt.NDArray[np.int32]

LOWEST: Final = -(2**15)
HIGHEST: Final = 2**15 - 1
"""What 16 bits hold."""

SPAN: Final[dict[Kind, int]] = {"avx2": 1, "arm64": 8}
"""How far apart the two inputs are whose products are added in 16 bits; no entry where none are."""

_CELLS: Final = 1 << 21
"""How many pairs are looked at at a time, each some 16 bytes: what bounds the memory."""


def product(
    a: Bytes,
    b: Bytes,
    kind: Kind,
    *,
    a_zero: int = 0,
    b_zero: int | npt.NDArray[np.integer] = 0,
) -> Sums:
    """(a - a_zero) @ (b - b_zero) as the operator MatMulInteger answers on a CPU of this kind.

    a: (rows, inputs), uint8 or int8. b: (inputs, channels), uint8 or int8. b_zero: one value, or one a channel. With
    an unsigned b every CPU is exact.
    """
    if b.dtype == np.uint8 or kind == "vnni" or (kind == "avx2" and a.dtype == np.int8):
        sums = exact(a, b)
    else:
        sums = saturating(a, b) if kind == "avx2" else wrapping(a, b)
    zeros = np.asarray(b_zero, np.int32)
    columns = b.sum(axis=0, dtype=np.int32) * np.int32(a_zero)
    rows = a.sum(axis=1, dtype=np.int32)[:, None] * zeros
    corrected: Sums = sums - columns - rows + np.int32(a.shape[1] * a_zero) * zeros
    return corrected


def exact(a: Bytes, b: Bytes) -> Sums:
    """a @ b without any loss: (rows, inputs) by (inputs, channels).

    VPDPBUSD of Intel's AVX512_VNNI and AVX-VNNI (Software Developer's Manual, volume 2), UDOT, SDOT and SMMLA of Arm's
    dot-product and i8mm extensions (Architecture Reference Manual) add products in 32 bits. So does x86 without VNNI
    for u8 x u8 and s8 x s8: it widens the bytes to 16 bits first, and VPMADDWD adds two products in 32.
    """
    # Whole numbers below 2**53 are exact in a double, whatever the order of summation.
    return np.asarray(a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32)


def saturating(a: Bytes, b: Bytes) -> Sums:
    """a @ b of u8 x s8 on x86 without VNNI: (rows, inputs) by (inputs, channels).

    VPMADDUBSW (Intel's manual, volume 2, PMADDUBSW) multiplies u8 by s8 and adds the products of two neighbouring
    inputs, 2 i and 2 i + 1, in 16 bits with saturation. The pairs are then added in 32 bits. An odd last input is
    alone in its pair.
    """
    sums = exact(a, b)
    for channels, lost in _saturation(a, b):
        sums[:, channels] += lost.sum(axis=1)
    return sums


def saturated_pairs(a: Bytes, b: Bytes) -> int:
    """How many of the pairs of `saturating` do not fit in 16 bits, over all rows and channels."""
    return sum(int(np.count_nonzero(lost)) for _, lost in _saturation(a, b))


def wrapping(a: Bytes, b: Bytes) -> Sums:
    """a @ b on Arm without dot product: (rows, inputs) by (inputs, channels).

    SMULL and SMLAL2 (Arm Architecture Reference Manual) multiply s8 by s8 and add the products of two inputs, i and
    i + 8 of each 16, in 16 bits that wrap around. One sum alone does not fit: (-128) (-128) + (-128) (-128) = 2**15,
    which becomes -2**15. A uint8 `a` is shifted to int8 first, so there it takes two zeros.
    """
    first = first_of_pairs(a.shape[1], SPAN["arm64"])
    second = first + SPAN["arm64"]
    a_lowest, b_lowest = a == np.iinfo(a.dtype).min, b == np.iinfo(b.dtype).min
    wrapped = exact(
        (a_lowest[:, first] & a_lowest[:, second]).astype(np.uint8),
        (b_lowest[first] & b_lowest[second]).astype(np.uint8),
    )
    return exact(a, b) - wrapped * 2**16


def first_of_pairs(inputs: int, span: int) -> npt.NDArray[np.intp]:
    """The first input of each pair; the second is `span` further. What has no partner is left out: it always fits."""
    first = np.arange(max(0, inputs - span))
    return first[first % (2 * span) < span]


def _saturation(a: Bytes, b: Bytes) -> Iterator[tuple[slice, npt.NDArray[np.int32]]]:
    """By block of channels and of pairs: what saturation adds to each pair, (rows, pairs, channels), 0 for most."""
    pairs = a.shape[1] // 2  # an odd last input cannot saturate alone: 255 * -128 fits
    wide = max(1, min(b.shape[1], _CELLS // max(1, len(a))))
    deep = max(1, _CELLS // max(1, len(a) * wide))
    for channel in range(0, b.shape[1], wide):
        for pair in range(0, pairs, deep):
            inputs = slice(2 * pair, 2 * min(pair + deep, pairs))
            channels = slice(channel, channel + wide)
            left, right = a[:, inputs].astype(np.int32), b[inputs, channels].astype(np.int32)
            summed = left[:, 0::2, None] * right[None, 0::2] + left[:, 1::2, None] * right[None, 1::2]
            yield channels, np.clip(summed, LOWEST, HIGHEST) - summed
