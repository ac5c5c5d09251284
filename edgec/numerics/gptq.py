"""GPTQ: weights rounded one input after the other, each error made good by the inputs that are still to come."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgec.numerics.weights import FULL_RANGE, quantize_blocks

DAMPING = 0.01


def gptq(
    weight: npt.NDArray[np.float32], hessian: npt.NDArray[np.float64], bits: int, block_size: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantize the matrix (inputs, channels) of a layer, a scale each block_size inputs (Frantar et al. 2022,
    algorithm 1).

    hessian: (inputs, inputs), the sum of x x^T over the layer's inputs x; a factor changes nothing. DAMPING times
    the mean of its diagonal is added to the diagonal, which also keeps inputs that were always zero at their nearest
    level. bits: 4 or 8. Scales are those of `quantize_blocks` for a block's weights when the turn comes to it.
    Returns (int8 weights (inputs, channels), float32 scales (blocks, channels)).
    """
    inputs, channels = weight.shape
    remaining = weight.astype(np.float64)
    lowest, highest = (-8, 7) if bits == 4 else (-FULL_RANGE, FULL_RANGE)
    # Row i of the inverse's Cholesky factor tells how an error at input i spreads over those after it.
    spread = np.linalg.cholesky(np.linalg.inv(_damped(hessian))).T
    quantized = np.empty(weight.shape, np.int8)
    scales = np.empty((-(-inputs // block_size), channels), np.float32)
    for block, start in enumerate(range(0, inputs, block_size)):
        stop = min(start + block_size, inputs)
        _, scales[block : block + 1] = quantize_blocks(remaining[start:stop].astype(np.float32), bits, block_size)
        errors = np.empty((stop - start, channels))
        for i in range(start, stop):
            quantized[i] = np.clip(np.rint(remaining[i] / scales[block]), lowest, highest)
            errors[i - start] = (remaining[i] - quantized[i] * scales[block]) / spread[i, i]
            remaining[i + 1 : stop] -= np.outer(spread[i, i + 1 : stop], errors[i - start])
        remaining[stop:] -= spread[start:stop, stop:].T @ errors
    return quantized, scales


def output_error(
    weight: npt.NDArray[np.float32],
    quantized: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float32],
    block_size: int,
    hessian: npt.NDArray[np.float64],
) -> float:
    """The squared error of the layer's outputs on the inputs behind `hessian`, in parts of the squared outputs."""
    matrix = weight.astype(np.float64)
    error = matrix - quantized * np.repeat(scales, block_size, axis=0)[: len(matrix)]
    size = float(np.sum(matrix * (hessian @ matrix)))
    return float(np.sum(error * (hessian @ error))) / size if size > 0 else 0.0


def _damped(hessian: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    damping = DAMPING * float(np.mean(np.diag(hessian)))
    return hessian + np.eye(len(hessian)) * (damping if damping > 0 else 1.0)
