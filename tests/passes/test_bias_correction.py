"""Bias correction takes the mean of a layer's error away, in every scheme."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgec.numerics.activations import activation_scale
from edgec.numerics.weights import quantize_blocks, quantize_linear
from edgec.passes import Quantize, run_pass
from edgec.state import LayerQuantization, ModelState, PassContext

Floats = np.ndarray


def quantized_output(x: Floats, weight: Floats, layer: LayerQuantization, tensors: dict[str, Floats]) -> Floats:
    """x (rows, inputs) @ weight (inputs, channels) by the definition of the schemes, without bias."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    if layer.scheme == "weight-only":
        rounded = (tensors["weight"], tensors["scale"]) if tensors else None
        ints, scales = rounded or quantize_blocks(weight.astype(np.float32), layer.bits, layer.block_size)
        return x @ (ints * np.repeat(scales, layer.block_size, axis=0)[: len(weight)])
    factors = np.array(layer.smoothing or np.ones(len(weight)))
    kept = np.delete(np.arange(len(weight)), layer.outliers)
    beside = x[:, layer.outliers] @ weight[list(layer.outliers)]
    x, weight = (x / factors)[:, kept], (weight * factors[:, None])[kept]
    ints, scales = quantize_linear(weight.astype(np.float32), layer)
    if layer.scheme == "static":
        assert layer.input_range is not None
        scale, zero = activation_scale(*layer.input_range, layer.bits)
        x = np.clip(x, *layer.input_range) if layer.bits < 8 else x
        rounded_x = (np.clip(np.rint(x / scale) + int(zero), 0, 255) - int(zero)) * scale
    else:
        step = np.abs(x).max(axis=1, keepdims=True) / 127
        rounded_x = np.rint(x / step) * step
    return beside + rounded_x @ (ints * scales)


@pytest.mark.parametrize(
    "options",
    [
        {"smooth": ("*.query",), "outliers": ("*.output.dense", "*.query")},
        {"observer": "percentile", "percentile": 99.0},
        {"scheme": "dynamic"},
        {"scheme": "llm-int8"},
        {"scheme": "weight-only", "bits": 4},
        {"scheme": "weight-only", "bits": 4, "rounding": "gptq"},
        {"scheme": "fully-quantized", "bits": 5, "steps": 6},
    ],
    ids=str,
)
def test_the_mean_error_of_every_channel_goes_away(
    bert: ModelState, ctx: PassContext, inputs: dict[str, list[Floats]], options: dict[str, Any]
) -> None:
    after = run_pass(Quantize(bias_correction=True, **options), bert, ctx)
    assert after.quantization is not None
    assert after.history[0].report["bias_corrected"] == 12
    before, left = [], []
    for key, texts in inputs.items():
        layer = after.quantization.layers[key]
        weight = bert.parts["encoder"].get_submodule(key.partition(":")[2]).weight.detach().numpy().T
        tensors = {n: after.quantization.tensors.get(f"{key}/{n}") for n in ("weight", "scale")}
        given = tensors if options.get("rounding") == "gptq" else {}
        x = np.concatenate(texts)
        if layer.input_range is not None:  # what lies beyond the range is cut, and no matter of the bias
            factors = np.array(layer.smoothing or np.ones(x.shape[1]))
            low, high = layer.input_range
            reached = np.clip(x / factors, min(low, 0), max(high, 0)) * factors
            reached[:, layer.outliers] = x[:, layer.outliers]
            x = reached
        error = x @ weight - quantized_output(x, weight, layer, given)
        assert layer.bias_correction is not None and len(layer.bias_correction) == weight.shape[1]
        before.append(np.abs(error.mean(axis=0)).mean())
        left.append(np.abs((error - np.array(layer.bias_correction)).mean(axis=0)).mean())
    # What is left comes of float32, where now and then a value tips to the next level.
    assert np.mean(left) < 0.02 * np.mean(before)


def test_what_is_cut_off_moves_no_bias(bert: ModelState, ctx: PassContext, inputs: dict[str, list[Floats]]) -> None:
    """A few large values cut off would shift the mean of all rows by far more than rounding does."""
    after = run_pass(Quantize(bias_correction=True, observer="percentile", percentile=90.0), bert, ctx)
    assert after.quantization is not None
    key = "encoder:model.encoder.layer.0.attention.self.query"
    layer = after.quantization.layers[key]
    weight = bert.parts["encoder"].get_submodule(key.partition(":")[2]).weight.detach().numpy().T
    x = np.concatenate(inputs[key])
    whole = (x @ weight - quantized_output(x, weight, layer, {})).mean(axis=0)
    assert np.abs(layer.bias_correction).max() < 0.1 * np.abs(whole).max()


def test_without_the_option_no_bias_changes(bert: ModelState, ctx: PassContext) -> None:
    after = run_pass(Quantize(), bert, ctx)
    assert after.quantization is not None
    assert all(layer.bias_correction is None for layer in after.quantization.layers.values())
    assert "bias_corrected" not in after.history[0].report


def test_tables_have_no_bias(bert: ModelState, ctx: PassContext) -> None:
    after = run_pass(Quantize(bias_correction=True), bert, ctx)
    assert after.quantization is not None
    assert after.quantization.layers["encoder:model.embeddings.word_embeddings"].bias_correction is None
