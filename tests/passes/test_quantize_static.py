"""Static ranges by every observer, with smoothing and with outliers, against the inputs that hooks of the test saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgec.errors import UserError
from edgec.numerics.activations import activation_scale
from edgec.passes import Quantize, run_pass
from edgec.state import LayerQuantization, ModelState, PassContext

LAYER = "encoder:model.encoder.layer.0"
QUERY = f"{LAYER}.attention.self.query"
FFN = f"{LAYER}.output.dense"

Inputs = dict[str, list[np.ndarray]]


def decided(state: ModelState, ctx: PassContext, **options: Any) -> tuple[dict[str, LayerQuantization], dict[str, Any]]:
    after = run_pass(Quantize(**options), state, ctx)
    assert after.quantization is not None
    return dict(after.quantization.layers), after.history[0].report


def averaged(texts: list[np.ndarray], momentum: float) -> tuple[float, float]:
    low, high = texts[0].min(), texts[0].max()
    for x in texts[1:]:
        low = momentum * low + (1 - momentum) * x.min()
        high = momentum * high + (1 - momentum) * x.max()
    return low, high


@pytest.mark.parametrize("smooth", [(), ("*.query", "*.key", "*.value")], ids=["plain", "smoothed"])
def test_a_moving_average_of_the_texts_extremes(
    bert: ModelState, ctx: PassContext, inputs: Inputs, smooth: tuple[str, ...]
) -> None:
    layers, report = decided(bert, ctx, observer="moving-average", momentum=0.7, smooth=smooth)
    assert report["observer"] == "moving-average"
    for key in (QUERY, FFN):
        factors = np.array(layers[key].smoothing or 1, np.float32)
        assert layers[key].input_range == pytest.approx(averaged([x / factors for x in inputs[key]], 0.7), rel=1e-4)
    assert (layers[QUERY].smoothing is not None) == bool(smooth)


@pytest.mark.parametrize("smooth", [(), ("*.query", "*.key", "*.value")], ids=["plain", "smoothed"])
def test_percentiles_of_all_values(bert: ModelState, ctx: PassContext, inputs: Inputs, smooth: tuple[str, ...]) -> None:
    layers, _ = decided(bert, ctx, observer="percentile", percentile=90.0, smooth=smooth)
    for key in (QUERY, FFN):
        values = np.concatenate(inputs[key]) / np.array(layers[key].smoothing or 1, np.float32)
        found = layers[key].input_range
        assert found is not None
        # The histogram knows a value to a bin, whose width is less than a thousandth of all values' range.
        assert (values < found[0]).mean() == pytest.approx(0.05, abs=0.01)
        assert (values > found[1]).mean() == pytest.approx(0.05, abs=0.01)


def test_the_range_of_least_error_errs_less_than_the_extremes(
    bert: ModelState, ctx: PassContext, inputs: Inputs
) -> None:
    def error(x: np.ndarray, found: tuple[float, float] | None) -> float:
        assert found is not None
        scale, zero = activation_scale(*found)
        return float(np.square((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale - x).mean())

    by_error, _ = decided(bert, ctx, observer="mse")
    by_extremes, _ = decided(bert, ctx)
    gains = []
    for key, texts in inputs.items():
        x = np.concatenate(texts)
        gains.append(error(x, by_extremes[key].input_range) / error(x, by_error[key].input_range))
    assert min(gains) > 0.97 and max(gains) > 1.01


def test_outlier_channels_leave_the_range_to_the_others(bert: ModelState, ctx: PassContext, inputs: Inputs) -> None:
    names = ("*.layer.0.attention.self.query", "*.output.dense")
    layers, report = decided(bert, ctx, outliers=names, smooth=("*.query", "*.key", "*.value"))
    x = np.concatenate(inputs[QUERY])
    assert layers[QUERY].outliers == (5,) == tuple(np.flatnonzero(np.abs(x).max(axis=0) > 6.0))
    factors = np.array(layers[QUERY].smoothing)
    others = np.delete(x / factors, 5, axis=1)
    assert layers[QUERY].input_range == pytest.approx((others.min(), others.max()), rel=1e-4)
    key = f"{LAYER}.attention.self.key"
    assert layers[key].outliers == ()
    assert layers[key].input_range == pytest.approx(((x / factors).min(), (x / factors).max()), rel=1e-4)
    assert report["outliers"][QUERY] == 1 and key not in report["outliers"]
    assert report["outliers"][FFN] == len(layers[FFN].outliers)


def test_other_observers_never_see_an_outlier_channel(bert: ModelState, ctx: PassContext, inputs: Inputs) -> None:
    layers, _ = decided(bert, ctx, outliers=("*.query",), observer="percentile", percentile=100.0)
    others = np.delete(np.concatenate(inputs[QUERY]), 5, axis=1)
    assert layers[QUERY].input_range == pytest.approx((others.min(), others.max()), rel=1e-5)


def test_the_threshold_of_outliers(bert: ModelState, ctx: PassContext, inputs: Inputs) -> None:
    layers, _ = decided(bert, ctx, outliers=("*.query",), outlier_threshold=2.5)
    expected = np.flatnonzero(np.abs(np.concatenate(inputs[QUERY])).max(axis=0) > 2.5)
    assert 1 < len(expected) < 32
    assert layers[QUERY].outliers == tuple(expected)


def test_a_pattern_that_names_no_layer(bert: ModelState, ctx: PassContext) -> None:
    with pytest.raises(UserError, match=r"no quantized layer matches outliers: \*\.dence$"):
        decided(bert, ctx, outliers=("*.dense", "*.dence"))


def test_a_layer_of_outliers_stays_in_float(bert: ModelState, ctx: PassContext) -> None:
    layers, report = decided(bert, ctx, outliers=("*.layer.0.intermediate.dense",), outlier_threshold=1e-6)
    key = f"{LAYER}.intermediate.dense"
    assert key not in layers
    assert report["left_alone"][key] == "all its input channels are outliers"


@pytest.mark.parametrize(
    "options",
    [
        {"observer": "mse", "smooth": ("*.query",), "bias_correction": True},
        {"observer": "percentile", "outliers": ("*",), "bias_correction": True},
    ],
    ids=str,
)
def test_the_same_texts_give_the_same_decision(bert: ModelState, ctx: PassContext, options: dict[str, Any]) -> None:
    assert decided(bert, ctx, **options) == decided(bert, ctx, **options)
