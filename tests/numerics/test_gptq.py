"""GPTQ against the update that it stands for, made with a fresh inverse at every step, and against rounding alone."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.numerics.gptq import DAMPING, gptq, output_error
from edgec.numerics.weights import quantize_blocks


def correlated(inputs: int, rows: int = 400, seed: int = 0) -> np.ndarray:
    """Rows whose inputs follow a few common causes, (rows, inputs)."""
    rng = np.random.default_rng(seed)
    causes = rng.standard_normal((rows, max(2, inputs // 6)))
    return causes @ rng.standard_normal((causes.shape[1], inputs)) + 0.3 * rng.standard_normal((rows, inputs))


def weights(inputs: int, channels: int = 12, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((inputs, channels)).astype(np.float32)


def dequantized(quantized: np.ndarray, scales: np.ndarray, block_size: int) -> np.ndarray:
    blocks = [quantized[i * block_size : (i + 1) * block_size] * scale for i, scale in enumerate(scales)]
    return np.concatenate(blocks)


def one_at_a_time(weight: np.ndarray, hessian: np.ndarray, bits: int, block_size: int) -> np.ndarray:
    """The dequantized weights of optimal brain quantization in the order of the inputs: after each, those that remain
    move by -error / [H^-1]_00 * H^-1[:, 0] with H of the remaining inputs alone (Frantar et al. 2022, equations 2, 3).
    """
    damped = hessian + DAMPING * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    remaining, result = weight.astype(np.float64), np.zeros(weight.shape)
    lowest, highest = {4: (-8, 7), 8: (-127, 127)}[bits]
    for i in range(len(weight)):
        if i % block_size == 0:
            _, scale = quantize_blocks(remaining[i : i + block_size].astype(np.float32), bits, block_size)
        result[i] = np.clip(np.rint(remaining[i] / scale[0]), lowest, highest) * scale[0]
        inverse = np.linalg.inv(damped[i:, i:])
        remaining[i:] -= np.outer(inverse[:, 0], (remaining[i] - result[i]) / inverse[0, 0])
    return result


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("inputs", "block_size"), [(48, 16), (40, 32)])
def test_it_is_optimal_brain_quantization_in_order(inputs: int, block_size: int, bits: int) -> None:
    x, weight = correlated(inputs), weights(inputs)
    quantized, scales = gptq(weight, x.T @ x, bits, block_size)
    assert quantized.dtype == np.int8 and quantized.shape == weight.shape
    assert scales.dtype == np.float32 and scales.shape == (-(-inputs // block_size), 12)
    expected = one_at_a_time(weight, x.T @ x, bits, block_size)
    # Rounding on the edge between two levels may tip.
    assert (np.abs(dequantized(quantized, scales, block_size) - expected) < 1e-6).mean() > 0.99


@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_of_correlated_inputs_err_less_than_with_nearest_levels(bits: int) -> None:
    x, weight = correlated(64), weights(64)
    results = {}
    for name, (quantized, scales) in {
        "nearest": quantize_blocks(weight, bits, 32),
        "gptq": gptq(weight, x.T @ x, bits, 32),
    }.items():
        outputs = x @ dequantized(quantized, scales, 32)
        results[name] = np.square(outputs - x @ weight).sum() / np.square(x @ weight).sum()
        assert output_error(weight, quantized, scales, 32, x.T @ x) == pytest.approx(results[name], rel=1e-4)
    assert results["gptq"] < 0.6 * results["nearest"]


def test_inputs_that_know_nothing_of_each_other_are_rounded_to_the_nearest() -> None:
    weight = weights(40)
    for hessian in (np.diag(np.arange(1.0, 41.0)), np.zeros((40, 40))):
        for found, nearest in zip(gptq(weight, hessian, 4, 16), quantize_blocks(weight, 4, 16), strict=True):
            np.testing.assert_array_equal(found, nearest)


def test_the_size_of_the_inputs_changes_nothing() -> None:
    x, weight = correlated(32), weights(32)
    small, large = (gptq(weight, (factor * x).T @ (factor * x), 4, 16) for factor in (0.01, 100))
    assert (small[0] != large[0]).mean() < 0.01


def test_layers_without_outputs_have_no_error() -> None:
    weight = np.zeros((32, 4), np.float32)
    assert output_error(weight, *quantize_blocks(weight, 4, 32), 32, np.eye(32)) == 0.0
