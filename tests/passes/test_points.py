"""What is observed in attention and layer norms, against hooks and the recursion of the moving average by hand."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import SENTENCES, tiny
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edgec.models import load_model
from edgec.nn.fake_points import apply_points
from edgec.passes.points import observe_points
from edgec.state import ModelState, PassContext, PointQuantization

ATTENTION = "encoder:model.encoder.layer.0.attention.self"
NORM = "encoder:model.encoder.layer.0.output.LayerNorm"
PRODUCTS = {"query", "key", "value", "probabilities"}
TEXTS = SENTENCES[:3]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    return load_model(tiny("bert", "feature-extraction", tmp_path_factory.mktemp("bert") / "model"))


def points_of(state: ModelState, texts: Any = TEXTS, **options: Any) -> tuple[dict[str, PointQuantization], Any]:
    given = {"bits": 8, "softmax": True, "layer_norms": "all", "layer_norm_smoothing": False, **options}
    return observe_points(state, texts, PassContext(Path(), tuple(texts)), **given)


def extremes(state: ModelState, path: str, pick: str) -> list[np.ndarray]:
    """Of each text the values of a module's first input or output, (tokens, channels)."""
    (part,) = state.parts.values()
    found: list[np.ndarray] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append((inputs[0] if pick == "input" else output)[0].numpy())

    handle = part.get_submodule(path.partition(":")[2]).register_forward_hook(note)
    for text in TEXTS:
        encoded = state.tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            part(encoded["input_ids"].int(), encoded["attention_mask"].int())
    handle.remove()
    return found


def moving(values: list[float], momentum: float, steps: int) -> float:
    average = values[0]
    for step in range(1, steps):
        average = momentum * average + (1 - momentum) * values[step % len(values)]
    return average


@pytest.mark.parametrize(("momentum", "steps"), [(0.9, 5), (0.5, 7), (0.9, 3), (0.9, 2)])
def test_ranges_are_moving_averages_of_the_texts(bert: ModelState, momentum: float, steps: int) -> None:
    points, _ = points_of(bert, momentum=momentum, steps=steps)
    for key, name, path, pick in (
        (NORM, "input", NORM, "input"),
        (NORM, "output", NORM, "output"),
        (ATTENTION, "query", f"{ATTENTION}.query", "output"),
        (ATTENTION, "key", f"{ATTENTION}.key", "output"),
        (ATTENTION, "value", f"{ATTENTION}.value", "output"),
    ):
        seen = extremes(bert, path, pick)[:steps]
        low, high = points[key].ranges[name]
        assert low == pytest.approx(moving([float(x.min()) for x in seen], momentum, steps), rel=1e-5)
        assert high == pytest.approx(moving([float(x.max()) for x in seen], momentum, steps), rel=1e-5)
        assert low != pytest.approx(min(float(x.min()) for x in seen), rel=1e-3)  # it is no minimum


def test_scores_and_probabilities_are_those_of_the_equation(bert: ModelState) -> None:
    points, _ = points_of(bert, steps=3)
    q, k = (extremes(bert, f"{ATTENTION}.{name}", "output") for name in ("query", "key"))
    lows, highs, largest = [], [], []
    for one, other in zip(q, k, strict=True):
        heads = [np.split(x, 4, axis=-1) for x in (one, other)]
        scores = np.stack([a @ b.T / np.sqrt(8) for a, b in zip(*heads, strict=True)])
        weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
        lows.append(float(scores.min()))
        highs.append(float(scores.max()))
        largest.append(float(weights.max()))
    low, high = points[ATTENTION].ranges["scores"]
    assert (low, high) == pytest.approx((moving(lows, 0.9, 3), moving(highs, 0.9, 3)), rel=1e-4)
    # The probability of a padded token, zero, is none of a text that runs alone.
    assert points[ATTENTION].ranges["probabilities"] == pytest.approx((0.0, moving(largest, 0.9, 3)), rel=1e-4)


def test_the_options_say_which_tensors(bert: ModelState) -> None:
    def names(**options: Any) -> tuple[set[str], set[str] | None]:
        points, _ = points_of(bert, TEXTS[:1], **options)
        assert {point.bits for point in points.values()} == {options.get("bits", 8)}
        return set(points[ATTENTION].ranges), set(points[NORM].ranges) if NORM in points else None

    assert names() == (PRODUCTS | {"scores"}, {"input", "output"})
    assert names(softmax=False) == (PRODUCTS, {"input", "output"})
    assert names(layer_norms="outputs", bits=4) == (PRODUCTS | {"scores"}, {"output"})
    assert names(layer_norms="float") == (PRODUCTS | {"scores"}, None)


def test_every_attention_and_layer_norm_has_a_point(bert: ModelState) -> None:
    points, left_alone = points_of(bert)
    (part,) = bert.parts.values()
    norms = {f"encoder:{path}" for path, module in part.named_modules() if isinstance(module, nn.LayerNorm)}
    assert {key for key, point in points.items() if point.kind == "layer-norm"} == norms and len(norms) == 5
    attention = {ATTENTION, ATTENTION.replace("layer.0", "layer.1")}
    assert {key for key, point in points.items() if point.kind == "attention"} == attention
    assert left_alone == {}
    assert all(point.smoothing is None for point in points.values())


def test_factors_are_the_magnitudes_of_the_channels(bert: ModelState) -> None:
    smoothed, _ = points_of(bert, layer_norm_smoothing=True, steps=4)
    seen = extremes(bert, NORM, "input")
    factors = np.array(smoothed[NORM].smoothing)
    np.testing.assert_allclose(factors, np.abs(np.concatenate(seen)).max(axis=0), rtol=1e-5)
    divided = [x / factors for x in seen]
    low, high = smoothed[NORM].ranges["input"]
    assert low == pytest.approx(moving([float(x.min()) for x in divided], 0.9, 4), rel=1e-5)
    assert high == pytest.approx(moving([float(x.max()) for x in divided], 0.9, 4), rel=1e-5)
    plain, _ = points_of(bert, steps=4)
    assert smoothed[NORM].ranges["output"] == plain[NORM].ranges["output"]
    assert smoothed[ATTENTION] == plain[ATTENTION]
    outputs, _ = points_of(bert, layer_norms="outputs", layer_norm_smoothing=True)
    assert outputs[NORM].smoothing is None


def test_an_outlier_channel_costs_less_with_smoothing(bert: ModelState) -> None:
    """A channel of the residual stream that is far from all others, as trained models have them."""
    (part,) = bert.parts.values()
    changed = copy.deepcopy(part)
    with torch.no_grad():
        changed.get_submodule("model.encoder.layer.0.output.dense").bias[3] = 60.0
    state = dataclasses.replace(bert, parts={"encoder": changed})
    encoded = bert.tokenizer(TEXTS[0], return_tensors="pt")
    ids, mask = encoded["input_ids"].int(), encoded["attention_mask"].int()
    errors = []
    for smoothing in (False, True):
        points, _ = points_of(state, layer_norm_smoothing=smoothing)
        only_input = dataclasses.replace(points[NORM], ranges={"input": points[NORM].ranges["input"]})
        rounded = copy.deepcopy(changed)
        apply_points(rounded, {NORM.partition(":")[2]: only_input})
        with torch.inference_mode():
            errors.append(float((rounded(ids, mask)[0] - changed(ids, mask)[0]).abs().mean()))
    assert errors[1] < errors[0] / 4


def test_a_channel_of_zeros_divides_nothing(bert: ModelState) -> None:
    (part,) = bert.parts.values()
    changed = copy.deepcopy(part)
    with torch.no_grad():
        for table in ("word", "position", "token_type"):
            changed.get_submodule(f"model.embeddings.{table}_embeddings").weight[:, 5] = 0
    points, _ = points_of(dataclasses.replace(bert, parts={"encoder": changed}), layer_norm_smoothing=True)
    point = points["encoder:model.embeddings.LayerNorm"]
    assert point.smoothing is not None and point.smoothing[5] == 1.0
    assert np.isfinite(point.ranges["input"]).all()


@pytest.mark.parametrize(("family", "attention"), [("deberta-v2", "attention.self"), ("mpnet", "attention.attn")])
def test_attention_that_is_no_plain_product_is_left_alone(family: str, attention: str, tmp_path: Path) -> None:
    state = load_model(tiny(family, "feature-extraction", tmp_path / "model"))
    points, left_alone = points_of(state, layer_norm_smoothing=True)
    assert set(left_alone) == {f"encoder:model.encoder.layer.{layer}.{attention}" for layer in (0, 1)}
    assert set(left_alone.values()) == {"not a plain scaled dot product: its products stay in float"}
    assert {point.kind for point in points.values()} == {"layer-norm"}


def test_what_a_window_hides_is_not_observed(tmp_path: Path) -> None:
    state = load_model(tiny("modernbert", "feature-extraction", tmp_path / "model"))
    seen: list[tuple[float, float]] = []
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: Any, mask: Any, **given: Any) -> Any:
        if module.layer_idx == 1:
            scores = query @ key.transpose(-1, -2) * given["scaling"]
            assert mask is not None and not mask.all()
            hidden = scores.masked_fill(mask, 0)
            scores = scores.masked_fill(~mask, 0)
            seen.append((float(scores.min()), float(scores.max())))
            assert hidden.min() < scores.min() or hidden.max() > scores.max()  # or else the mask plays no role
        return plain(module, query, key, value, mask, **given)

    (part,) = state.parts.values()
    text = " ".join(SENTENCES)
    encoded = state.tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
    ALL_ATTENTION_FUNCTIONS["sdpa"] = spy
    try:
        with torch.inference_mode():
            part(encoded["input_ids"].int(), encoded["attention_mask"].int())
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = plain
    points, left_alone = points_of(state, [text])
    assert points["encoder:model.layers.1.attn"].ranges["scores"] == pytest.approx(seen[0], rel=1e-5)
    assert left_alone == {}


def test_the_model_is_left_as_it_was(bert: ModelState) -> None:
    (part,) = bert.parts.values()
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    points_of(bert, layer_norm_smoothing=True)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in part.modules())


def test_each_text_runs_once_and_twice_to_smooth(bert: ModelState) -> None:
    def totals(**options: Any) -> list[int]:
        found: list[int] = []

        def progress(label: str, total: int) -> Any:
            found.append(total)
            return lambda done: None

        observe_points(
            bert,
            TEXTS,
            PassContext(Path(), TEXTS, progress=progress),
            bits=8,
            softmax=True,
            layer_norms="all",
            **options,
        )
        return found

    assert totals(layer_norm_smoothing=False) == [3]
    assert totals(layer_norm_smoothing=True) == [3, 3]
    assert totals(layer_norm_smoothing=True, steps=2) == [2, 2]
