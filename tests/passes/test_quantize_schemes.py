"""What each scheme decides: kinds of layers, bits, outliers, and what full quantization adds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_models import SENTENCES

from edgec.errors import PassError, UserError
from edgec.passes import Quantize, points, run_pass
from edgec.state import LayerQuantization, ModelState, PassContext, PointQuantization

LAYER = "encoder:model.encoder.layer.0"
QUERY = f"{LAYER}.attention.self.query"
TABLE = "encoder:model.embeddings.word_embeddings"
SMOOTH = ("*.query", "*.key", "*.value")


def run(state: ModelState, ctx: PassContext, **options: Any) -> ModelState:
    return run_pass(Quantize(**options), state, ctx)


def layers_of(state: ModelState) -> dict[str, LayerQuantization]:
    assert state.quantization is not None
    return dict(state.quantization.layers)


@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_dynamic_scales(bert: ModelState, ctx: PassContext, granularity: str) -> None:
    after = run(bert, ctx, scheme="dynamic", granularity=granularity, smooth=SMOOTH, weights="per-tensor", clip=False)
    layer = layers_of(after)[QUERY]
    assert (layer.scheme, layer.input_range) == (f"dynamic-{granularity}", None)
    assert (layer.per_tensor, layer.clip) == (True, False)
    assert after.quantization is not None and after.quantization.batch_invariant == (granularity == "token")
    static = layers_of(run(bert, ctx, smooth=SMOOTH))[QUERY]
    assert layer.smoothing == static.smoothing is not None
    assert after.history[0].report["smoothed"] == 6
    assert after.history[0].report["calibration_texts"] == len(SENTENCES)


def test_the_default_of_dynamic_is_a_scale_a_row(bert: ModelState, ctx: PassContext) -> None:
    assert layers_of(run(bert, ctx, scheme="dynamic"))[QUERY].scheme == "dynamic-token"


def test_llm_int8_finds_the_outlier_channel(
    bert: ModelState, ctx: PassContext, inputs: dict[str, list[np.ndarray]]
) -> None:
    after = run(bert, ctx, scheme="llm-int8")
    layers = layers_of(after)
    assert layers[QUERY].outliers == (5,)
    for key, texts in inputs.items():
        above = [i for i in range(texts[0].shape[1]) if max(float(np.abs(x[:, i]).max()) for x in texts) > 6.0]
        assert (layers[key].scheme, layers[key].outliers) == ("llm-int8", tuple(above))
        assert after.history[0].report["outliers"][key] == len(above)
    assert layers[TABLE].outliers == ()


def test_llm_int8_leaves_a_layer_of_outliers_in_float(bert: ModelState, ctx: PassContext) -> None:
    with pytest.raises(PassError, match="quantize left every layer in float"):
        run(bert, ctx, scheme="llm-int8", outlier_threshold=1e-6, embeddings=False)
    after = run(bert, ctx, scheme="llm-int8", outlier_threshold=1e-6)
    assert set(layers_of(after)) == {TABLE}
    assert after.history[0].report["left_alone"][QUERY] == "all its input channels are outliers"
    assert after.history[0].report["outliers"] == {}


@pytest.mark.parametrize(("bits", "block_size"), [(8, 32), (4, 16)])
def test_weight_only(bert: ModelState, ctx: PassContext, bits: int, block_size: int) -> None:
    after = run(bert, ctx, scheme="weight-only", bits=bits, block_size=block_size)
    layer = layers_of(after)[QUERY]
    assert (layer.scheme, layer.bits, layer.block_size) == ("weight-only", bits, block_size)
    assert layer.input_range is None and after.quantization is not None and not after.quantization.tensors


@pytest.mark.parametrize("scheme", ["static", "dynamic", "llm-int8", "weight-only", "fully-quantized"])
def test_tables_of_four_bits(bert: ModelState, ctx: PassContext, scheme: str) -> None:
    options: dict[str, Any] = {"steps": 6} if scheme == "fully-quantized" else {}
    table = layers_of(run(bert, ctx, scheme=scheme, embedding_bits=4, block_size=16, **options))[TABLE]
    assert (table.kind, table.scheme, table.bits, table.block_size) == ("embedding", "weight-only", 4, 16)
    assert layers_of(run(bert, ctx, scheme=scheme, **options))[TABLE].bits == 8


def test_full_quantization_of_linear_layers(
    bert: ModelState, ctx: PassContext, inputs: dict[str, list[np.ndarray]]
) -> None:
    """Ranges are averages over `steps` batches of one text, the texts over and over."""
    steps, momentum = len(SENTENCES) + 2, 0.8
    after = run(bert, ctx, scheme="fully-quantized", bits=6, steps=steps, momentum=momentum, skip=("*.layer.1.*",))
    layer = layers_of(after)[QUERY]
    assert (layer.scheme, layer.bits, layer.clip, layer.per_tensor) == ("static", 6, False, False)
    order = [*inputs[QUERY], *inputs[QUERY][:2]]
    low, high = order[0].min(), order[0].max()
    for x in order[1:]:
        low, high = momentum * low + (1 - momentum) * x.min(), momentum * high + (1 - momentum) * x.max()
    assert layer.input_range == pytest.approx((low, high), rel=1e-4)
    clipped = run(bert, ctx, scheme="fully-quantized", steps=1, clip=True, weights="per-tensor")
    layer = layers_of(clipped)[QUERY]
    assert (layer.clip, layer.per_tensor) == (True, True)
    first = inputs[QUERY][0]
    assert layer.input_range == pytest.approx((first.min(), first.max()), rel=1e-5)
    assert clipped.history[0].report["calibration_texts"] == 1


def test_full_quantization_asks_for_points(bert: ModelState, ctx: PassContext, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    first, second = "encoder:model.encoder.layer.0.attention.self", "encoder:model.encoder.layer.1.attention.self"
    found = {key: PointQuantization("attention", 7, {"query": (-1.0, 1.0)}) for key in (first, second)}

    def observe_points(state: ModelState, texts: Any, ctx: PassContext, **options: Any) -> Any:
        asked.update(options, texts=texts)
        return dict(found), {"encoder:model.pooler": "no attention"}

    monkeypatch.setattr(points, "observe_points", observe_points)
    after = run(
        bert,
        ctx,
        scheme="fully-quantized",
        bits=7,
        steps=3,
        momentum=0.5,
        softmax=False,
        layer_norms="all",
        layer_norm_smoothing=False,
        skip=("*.layer.1.*",),
    )
    assert asked == {
        "texts": SENTENCES[:3],
        "bits": 7,
        "softmax": False,
        "layer_norms": "all",
        "layer_norm_smoothing": False,
        "momentum": 0.5,
        "steps": 3,
    }
    assert after.quantization is not None and after.quantization.points == {first: found[first]}
    report = after.history[0].report
    assert report["points"] == 1
    assert report["left_alone"]["encoder:model.pooler"] == "no attention"
    assert report["left_alone"][second] == "named by the option skip"

    found[first] = PointQuantization("attention", 7, {"query": (float("nan"), 1.0)})
    with pytest.raises(PassError, match=r"attention\.self span \[nan, 1\.0\], which is no range"):
        run(bert, ctx, scheme="fully-quantized", steps=3)


def test_points_can_be_skipped_by_their_own_path(bert: ModelState, ctx: PassContext) -> None:
    names = ("*.layer.0.attention.self",)
    after = run(bert, ctx, scheme="fully-quantized", steps=2, skip=names)
    assert after.quantization is not None
    assert "encoder:model.encoder.layer.0.attention.self" not in after.quantization.points
    assert "encoder:model.encoder.layer.1.attention.self" in after.quantization.points
    with pytest.raises(UserError, match="no layer matches skip"):
        run(bert, ctx, skip=names)
