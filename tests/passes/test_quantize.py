"""The quantize pass: which layers, which ranges, which factors; observed again by hooks of the test's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import SENTENCES, tiny
from torch import nn

from edgec.errors import PassError, UserError
from edgec.models import load_model
from edgec.passes import Quantize, run_pass
from edgec.passes.smoothing import smoothing_factors
from edgec.state import ModelState, PassContext, PassResult

LAYER = "encoder:model.encoder.layer.0"
SMOOTH = ("*.query", "*.key", "*.value", "*.intermediate.dense")


def run(step: Quantize, state: ModelState, ctx: PassContext) -> ModelState:
    return run_pass(step, state, ctx)


def test_ranges_are_what_the_layers_were_given(
    bert: ModelState, ctx: PassContext, inputs: dict[str, list[np.ndarray]]
) -> None:
    quantization = run(Quantize(), bert, ctx).quantization
    assert quantization is not None and quantization.scheme == "static"
    linear = {key: layer for key, layer in quantization.layers.items() if layer.kind == "linear"}
    assert set(linear) == set(inputs)
    for key, layer in linear.items():
        x = np.concatenate(inputs[key])
        assert layer.input_range == pytest.approx((x.min(), x.max()), rel=1e-5)
        assert layer.smoothing is None


def test_what_is_quantized_and_what_is_left_alone(bert: ModelState, ctx: PassContext) -> None:
    after = run(Quantize(), bert, ctx)
    assert after.quantization is not None
    tables = [key for key, layer in after.quantization.layers.items() if layer.kind == "embedding"]
    assert tables == ["encoder:model.embeddings.word_embeddings"]
    assert len(after.quantization.layers) == 1 + 2 * 6
    (record,) = after.history
    assert record.report["left_alone"] == {
        "encoder:model.embeddings.position_embeddings": "a small table (positions or types): nothing to gain",
        "encoder:model.embeddings.token_type_embeddings": "a small table (positions or types): nothing to gain",
    }
    assert (record.report["scheme"], record.report["quantized"]) == ("static", 13)
    assert (record.report["smoothed"], record.report["calibration_texts"]) == (0, len(SENTENCES))


def test_the_float_weights_stay_as_they_are(bert: ModelState, ctx: PassContext) -> None:
    before = {name: tensor.clone() for name, tensor in bert.parts["encoder"].state_dict().items()}
    after = run(Quantize(smooth=SMOOTH), bert, ctx).parts["encoder"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_pre_hooks for module in bert.parts["encoder"].modules())


def test_more_texts_never_narrow_a_range(bert: ModelState, tmp_path: Path) -> None:
    few, many = (
        run(Quantize(), bert, PassContext(tmp_path, texts)).quantization for texts in (SENTENCES[:2], SENTENCES)
    )
    assert few is not None and many is not None
    for key, layer in few.layers.items():
        wider = many.layers[key].input_range
        if layer.input_range is not None and wider is not None:
            assert wider[0] <= layer.input_range[0] and wider[1] >= layer.input_range[1]


def test_factors_are_those_of_the_paper(
    bert: ModelState, ctx: PassContext, inputs: dict[str, list[np.ndarray]]
) -> None:
    alpha = 0.7
    after = run(Quantize(smooth=SMOOTH, smooth_alpha=alpha), bert, ctx)
    assert after.quantization is not None
    part = bert.parts["encoder"]
    attention = ["attention.self.query", "attention.self.key", "attention.self.value"]
    for group in (attention, ["intermediate.dense"]):
        keys = [f"{LAYER}.{name}" for name in group]
        x = np.concatenate(inputs[keys[0]])
        weights = [part.get_submodule(key.partition(":")[2]).weight.detach().numpy() for key in keys]
        for channel in range(32):
            most_x = max(abs(float(v)) for v in x[:, channel])
            most_w = max(abs(float(v)) for weight in weights for v in weight[:, channel])
            expected = most_x**alpha / most_w ** (1 - alpha)
            for key in keys:
                smoothing = after.quantization.layers[key].smoothing
                assert smoothing is not None and smoothing[channel] == pytest.approx(expected, rel=1e-4)
        factors = np.array(after.quantization.layers[keys[0]].smoothing)
        divided = x / factors
        for key in keys:
            found = after.quantization.layers[key].input_range
            assert found == pytest.approx((divided.min(), divided.max()), rel=1e-4)
    assert after.quantization.layers[f"{LAYER}.attention.output.dense"].smoothing is None
    assert after.history[0].report["smoothed"] == 2 * 4
    assert after.history[0].options["smooth"] == list(SMOOTH)


def test_dead_channels_are_not_divided() -> None:
    x = np.array([4.0, 0.0, 2.0, 0.0], np.float32)
    w = np.array([1.0, 3.0, 0.0, 0.0], np.float32)
    np.testing.assert_allclose(smoothing_factors(x, w, 0.5), [2.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(smoothing_factors(x, w + 4, 1.0), [4.0, 1.0, 2.0, 1.0])
    np.testing.assert_allclose(smoothing_factors(x + 1, w + 4, 0.0), 1 / (w + 4), rtol=1e-6)


def test_a_pattern_that_smooths_nothing(bert: ModelState, ctx: PassContext) -> None:
    with pytest.raises(UserError, match=r"no quantized layer matches smooth: \*\.q_proj") as caught:
        run(Quantize(smooth=("*.query", "*.q_proj")), bert, ctx)
    assert "module paths look like model." in caught.value.hint


def test_patterns_of_what_to_skip(bert: ModelState, ctx: PassContext) -> None:
    after = run(Quantize(skip=("*.layer.1.*", "*.word_embeddings")), bert, ctx)
    assert after.quantization is not None
    assert {key.rpartition("layer.")[2][0] for key in after.quantization.layers} == {"0"}
    named = {key for key, why in after.history[0].report["left_alone"].items() if why == "named by the option skip"}
    assert len(named) == 7 and "encoder:model.encoder.layer.1.output.dense" in named


def test_embeddings_can_stay_in_float(bert: ModelState, ctx: PassContext) -> None:
    after = run(Quantize(embeddings=False), bert, ctx)
    assert after.quantization is not None
    assert {layer.kind for layer in after.quantization.layers.values()} == {"linear"}
    reason = after.history[0].report["left_alone"]["encoder:model.embeddings.word_embeddings"]
    assert reason == "the option embeddings is off"


def test_everything_skipped_is_no_quantization(bert: ModelState, ctx: PassContext) -> None:
    with pytest.raises(PassError, match="quantize left every layer in float"):
        run(Quantize(skip=("*",)), bert, ctx)


def test_heads_are_left_alone(tmp_path: Path, ctx: PassContext) -> None:
    state = load_model(tiny("bert", "text-classification", tmp_path / "m", intermediate_size=32))
    after = run(Quantize(), state, ctx)
    assert after.quantization is not None and "encoder:model.classifier" not in after.quantization.layers
    assert (
        after.history[0]
        .report["left_alone"]["encoder:model.classifier"]
        .startswith("3 outputs, fewer than 64, as a task head")
    )
    assert "encoder:model.bert.pooler.dense" in after.quantization.layers


def test_layers_that_take_no_part_are_left_alone(tmp_path: Path, ctx: PassContext) -> None:
    state = load_model(tiny("bert", "feature-extraction", tmp_path / "m", intermediate_size=32))
    model = state.parts["encoder"].model
    model.unused = nn.Linear(32, 96)
    model.table = nn.Embedding(len(state.tokenizer), 32)
    after = run(Quantize(), state, ctx)
    left = after.history[0].report["left_alone"]
    assert left["encoder:model.unused"] == left["encoder:model.table"] == "not used by this task"


def test_a_pattern_that_skips_nothing_is_refused(bert: ModelState, ctx: PassContext) -> None:
    with pytest.raises(UserError, match=r"no layer matches skip: \*\.querry$") as caught:
        run(Quantize(skip=("*.dense", "*.querry")), bert, ctx)
    example = caught.value.hint.rpartition(" ")[2]
    assert isinstance(bert.parts["encoder"].get_submodule(example), nn.Linear | nn.Embedding)


def test_a_model_is_quantized_once(bert: ModelState, ctx: PassContext) -> None:
    once = run(Quantize(), bert, ctx)
    with pytest.raises(UserError, match="the model is quantized already"):
        run(Quantize(scheme="dynamic"), once, ctx)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"observer": "mse"},
        {"observer": "moving-average"},
        {"scheme": "llm-int8"},
        {"scheme": "dynamic", "smooth": ("*",)},
        {"scheme": "weight-only", "rounding": "gptq"},
    ],
    ids=str,
)
def test_undefined_weights_are_no_calibration(tmp_path: Path, ctx: PassContext, options: dict[str, Any]) -> None:
    state = load_model(tiny("bert", "feature-extraction", tmp_path / "m", intermediate_size=32))
    with torch.no_grad():
        state.parts["encoder"].model.encoder.layer[0].attention.output.dense.weight[0, 0] = float("nan")
    with pytest.raises(
        PassError, match=r"the inputs of encoder:model\.encoder\.layer\.0.* span \[nan, nan\]"
    ) as caught:
        run(Quantize(**options), state, ctx)
    assert "check its weights" in caught.value.hint


def test_a_lost_range_breaks_the_promise(bert: ModelState, ctx: PassContext) -> None:
    class Forgetful(Quantize):
        def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
            result = super().apply(state, ctx)
            quantization = result.state.quantization
            assert quantization is not None
            layers = {key: dataclasses.replace(layer, input_range=None) for key, layer in quantization.layers.items()}
            quantization = dataclasses.replace(quantization, layers=layers)
            return PassResult(dataclasses.replace(result.state, quantization=quantization), result.report)

    with pytest.raises(PassError, match="which is no range"):
        run(Forgetful(), bert, ctx)


def test_long_texts_are_cut_without_a_word(bert: ModelState, tmp_path: Path) -> None:
    after = run(Quantize(), bert, PassContext(tmp_path, ("the old house " * 200,)))
    assert after.quantization is not None


def test_progress_counts_the_texts(bert: ModelState, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    context = PassContext(
        tmp_path, SENTENCES, progress=lambda label, total: lambda done: told.append((label, total, done))
    )
    run(Quantize(), bert, context)
    assert told == [("calibrate", len(SENTENCES), done) for done in range(1, len(SENTENCES) + 1)]
