"""Weights as small integers, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgec.numerics.weights import quantize_blocks, quantize_linear, quantize_row_blocks, quantize_rows
from edgec.state import LayerQuantization

LINEAR = LayerQuantization("linear")


def _loop_reference(weight: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each column, the clipping range among twenty whose quantized values are nearest in the squared sense."""
    quantized = np.zeros(weight.shape, np.int8)
    scales = np.zeros(weight.shape[1], np.float32)
    for column in range(weight.shape[1]):
        values = [float(v) for v in weight[:, column]]
        most = max(abs(v) for v in values) or 1.0
        best = math.inf
        for step in range(20):
            scale = most * (1.0 - 0.4 * step / 19) / largest
            rounded = [max(-largest, min(largest, round(v / scale))) for v in values]
            error = sum((q * scale - v) ** 2 for q, v in zip(rounded, values, strict=True))
            if error < best:
                best, scales[column], quantized[:, column] = error, scale, rounded
    return quantized, scales


def _weights(largest: int) -> np.ndarray:
    """(2000, 9): four columns that a clipped range fits exactly, but for one outlier, and five of a normal law."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2000, 9)).astype(np.float32) * rng.lognormal(0, 1, 9).astype(np.float32)
    for column, step in enumerate((0, 1, 2, 4)):
        grid = rng.integers(-largest, largest + 1, 2000) * (1 - 0.4 * step / 19) / largest
        weight[:, column] = np.where(np.arange(2000) == 5, 1.0, grid)
    return weight


@pytest.mark.parametrize(("reduce_range", "largest"), [(False, 127), (True, 64)])
def test_weights_are_those_of_a_plain_loop(reduce_range: bool, largest: int) -> None:
    weight = _weights(largest)
    got, scale = quantize_linear(weight, LINEAR, reduce_range=reduce_range)
    expected, expected_scale = _loop_reference(weight, largest)
    assert got.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (9,)
    np.testing.assert_allclose(scale, expected_scale, rtol=1e-6)
    # float32 and Python's double may round a value that lies half-way to different sides.
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert (got != expected).mean() < 0.01
    clipped = scale * largest / np.abs(weight).max(axis=0)
    np.testing.assert_allclose(clipped[:4], [1 - 0.4 * step / 19 for step in (0, 1, 2, 4)], rtol=1e-5)


def test_clipping_is_never_worse_than_none() -> None:
    weight = _weights(127)
    got, scale = quantize_linear(weight, LINEAR)
    plain = np.abs(weight).max(axis=0) / 127
    error = np.square(got * scale - weight).sum(axis=0)
    error_without = np.square(np.rint(weight / plain) * plain - weight).sum(axis=0)
    assert (error <= error_without * (1 + 1e-5)).all()
    assert (error < error_without * 0.9).any()


def test_a_reduced_range_keeps_pairs_of_products_within_16_bits() -> None:
    weight = np.random.default_rng(2).standard_normal((512, 64)).astype(np.float32)
    got, _ = quantize_linear(weight, LINEAR, reduce_range=True)
    assert got.min() >= -64 and got.max() <= 64
    assert max(abs(int(got.min())), int(got.max())) == 64  # and uses all of it
    assert 255 * 2 * int(np.abs(got.astype(int)).max()) <= np.iinfo(np.int16).max


@pytest.mark.parametrize("reduce_range", [False, True])
def test_channels_of_zeros(reduce_range: bool) -> None:
    weight = np.zeros((8, 3), np.float32)
    weight[:, 1] = np.arange(-4, 4)
    got, scale = quantize_linear(weight, LINEAR, reduce_range=reduce_range)
    assert np.isfinite(scale).all() and (scale > 0).all()
    assert not got[:, [0, 2]].any()
    np.testing.assert_allclose(got[:, 1] * scale[1], weight[:, 1], atol=scale[1] / 2 + 1e-6)


def test_rows_of_a_table_are_not_clipped() -> None:
    table = np.random.default_rng(3).standard_t(2, (50, 16)).astype(np.float32)
    table[7] = 0
    got, scale = quantize_rows(table)
    assert got.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (50, 1)
    for row in range(50):
        most = max(abs(float(v)) for v in table[row])
        assert scale[row, 0] == pytest.approx((most or 1.0) / 127, rel=1e-6)
        assert np.abs(got[row]).max() == (127 if most else 0)
    assert np.abs(got * scale - table).max(axis=1) == pytest.approx(0, abs=float(scale.max()) / 2 + 1e-6)
    assert (np.abs(got * scale - table) <= scale / 2 + 1e-6).all()


@pytest.mark.parametrize("bits", range(4, 8))
@pytest.mark.parametrize("reduce_range", [False, True])
def test_fewer_bits_than_eight(bits: int, reduce_range: bool) -> None:
    weight = _weights(127)
    weight[0, 4:] = np.abs(weight[:, 4:]).max(axis=0) * np.array([1, 1.5, 2, 2.5, 3])  # worth clipping, more or less
    got, scale = quantize_linear(weight, LayerQuantization("linear", bits=bits), reduce_range=reduce_range)
    largest = 2 ** (bits - 1) - 1
    assert np.abs(got).max() == largest
    error = np.square(got * scale - weight).sum(axis=0)
    # No clipping range of a finer and wider grid is better by more than the grid's step allows.
    magnitude = np.abs(weight).max(axis=0)
    tried = []
    for fraction in np.linspace(0.1, 1.0, 181):
        s = magnitude * fraction / largest
        tried.append(np.square(np.clip(np.rint(weight / s), -largest, largest) * s - weight).sum(axis=0))
    assert (error <= np.min(tried, axis=0) * 1.05)[4:].all()  # the first four are grids that only one range fits


@pytest.mark.parametrize("bits", [4, 8])
def test_one_scale_for_all_channels(bits: int) -> None:
    weight = _weights(127)
    got, scale = quantize_linear(weight, LayerQuantization("linear", bits=bits, per_tensor=True))
    assert scale.shape == (9,) and len(set(scale.tolist())) == 1
    largest = 2 ** (bits - 1) - 1
    np.testing.assert_array_equal(got, np.clip(np.rint(weight / scale[0]), -largest, largest))
    plain = np.abs(weight).max() / largest
    error = np.square(got * scale - weight).sum()
    assert error < np.square(np.clip(np.rint(weight / plain), -largest, largest) * plain - weight).sum()
    _, own = quantize_linear(weight, LayerQuantization("linear", bits=bits))
    assert len(set(own.tolist())) == 9
    # Where a single value is far from all others, the range of all is well below it.
    weight[0, 0] = 4 * np.abs(weight).max()
    _, scale = quantize_linear(weight, LayerQuantization("linear", bits=4, per_tensor=True))
    assert scale[0] * 7 < 0.6 * np.abs(weight).max()


@pytest.mark.parametrize("per_tensor", [False, True])
def test_without_clipping_weights_span_their_extremes(per_tensor: bool) -> None:
    weight = _weights(127)
    got, scale = quantize_linear(weight, LayerQuantization("linear", clip=False, per_tensor=per_tensor))
    most = np.abs(weight).max(axis=None if per_tensor else 0)
    np.testing.assert_allclose(scale, np.broadcast_to(most / 127, 9), rtol=1e-6)
    assert np.abs(got.astype(int)).max() == 127
    assert (np.abs(got * scale - weight) <= scale / 2 * 1.001).all()


@pytest.mark.parametrize("inputs", [64, 70])  # 70: the last block is short
def test_blocks_of_eight_bits(inputs: int) -> None:
    weight = np.random.default_rng(5).standard_t(3, (inputs, 7)).astype(np.float32)
    weight[:32, 2] = 0
    got, scale = quantize_blocks(weight, 8, 32)
    assert got.dtype == np.int8 and got.shape == weight.shape
    assert scale.dtype == np.float32 and scale.shape == (math.ceil(inputs / 32), 7)
    for block in range(len(scale)):
        rows = slice(32 * block, 32 * block + 32)
        for channel in range(7):
            most = max(abs(float(v)) for v in weight[rows, channel]) or 1.0
            assert scale[block, channel] == pytest.approx(most / 127, rel=1e-6)
            expected = [round(float(v) / float(scale[block, channel])) for v in weight[rows, channel]]
            assert np.abs(got[rows, channel] - np.array(expected)).max() <= 1
    restored = got * np.repeat(scale, 32, axis=0)[:inputs]
    assert (np.abs(restored - weight) <= np.repeat(scale, 32, axis=0)[:inputs] / 2 * 1.001).all()


def _four_bit_loop(values: list[float]) -> tuple[float, list[int]]:
    """The best of 24 scales that put the value of the largest magnitude at or below the level -8."""
    extreme = max(values, key=abs) or 1.0
    best = (math.inf, 0.0, [0])
    for step in range(24):
        scale = -extreme / 8 * (8 / 7 + (0.58 - 8 / 7) * step / 23)
        levels = [max(-8, min(7, round(v / scale))) for v in values]
        best = min(best, (sum((q * scale - v) ** 2 for q, v in zip(levels, values, strict=True)), scale, levels))
    return best[1], best[2]


@pytest.mark.parametrize("inputs", [48, 50])
def test_blocks_of_four_bits(inputs: int) -> None:
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((inputs, 40)).astype(np.float32)
    weight[:16, 3] = 0
    got, scale = quantize_blocks(weight, 4, 16)
    assert got.dtype == np.int8 and got.min() == -8 and got.max() == 7
    assert scale.shape == (math.ceil(inputs / 16), 40) and np.isfinite(scale).all() and (scale != 0).all()
    assert not got[:16, 3].any()
    error = expected_error = 0.0
    for block in range(len(scale)):
        for channel in range(40):
            values = [float(v) for v in weight[16 * block : 16 * block + 16, channel]]
            values += [0.0] * (16 - len(values))
            s, levels = _four_bit_loop(values)
            ours = got[16 * block : 16 * block + 16, channel] * float(scale[block, channel])
            error += float(np.square(ours - np.array(values)[: len(ours)]).sum())
            expected_error += sum((q * s - v) ** 2 for q, v in zip(levels, values, strict=True))
    assert error == pytest.approx(expected_error, rel=1e-4)


def test_four_bits_lose_less_than_the_plain_grids() -> None:
    weight = np.random.default_rng(7).standard_normal((256, 50)).astype(np.float32)
    got, scale = quantize_blocks(weight, 4, 32)
    error = np.square(got * np.repeat(scale, 32, axis=0) - weight).sum()
    most = np.repeat(np.abs(weight.reshape(8, 32, 50)).max(axis=1), 32, axis=0)
    for lowest, step in ((-8, most / 8), (-7, most / 7)):
        plain = np.square(np.clip(np.rint(weight / step), lowest, 7) * step - weight).sum()
        assert error < plain * 0.8


def test_a_sixteen_level_grid_is_found_exactly() -> None:
    rng = np.random.default_rng(8)
    grid = rng.integers(-7, 8, (32, 12))
    grid[5] = -8
    sign = np.where(np.arange(12) % 2, -1, 1)  # half of the columns reach further above zero
    weight = (grid * 0.01 * sign).astype(np.float32)
    got, scale = quantize_blocks(weight, 4, 32)
    np.testing.assert_allclose(got * scale, weight, atol=0.002)
    assert (np.sign(scale[0]) == sign).all()


def test_rows_of_a_table_in_blocks() -> None:
    table = np.random.default_rng(9).standard_normal((5000, 40)).astype(np.float32)  # more rows than go at a time
    got, scale = quantize_row_blocks(table, 16)
    assert got.dtype == np.int8 and got.shape == (5000, 40) and scale.shape == (5000, 3)
    by_columns, column_scale = quantize_blocks(table[4090:4100].T, 4, 16)
    np.testing.assert_array_equal(got[4090:4100], by_columns.T)
    np.testing.assert_array_equal(scale[4090:4100], column_scale.T)
    assert np.square(got * np.repeat(scale, 16, axis=1)[:, :40] - table).mean() < 0.07**2


def test_blocks_have_four_or_eight_bits() -> None:
    with pytest.raises(ValueError, match="not 5"):
        quantize_blocks(np.zeros((4, 4), np.float32), 5, 16)


def test_scales_do_not_depend_on_the_order_in_memory() -> None:
    """Of this column two clipping ranges err alike but for the last bits of a sum, which another order changes."""
    weight = np.random.default_rng(112).standard_normal((4096, 1024)).astype(np.float32)[:, 944:960]
    by_rows, by_columns = np.ascontiguousarray(weight), np.asfortranarray(weight)
    for one, other in zip(quantize_linear(by_rows, LINEAR), quantize_linear(by_columns, LINEAR), strict=True):
        np.testing.assert_array_equal(one, other)
