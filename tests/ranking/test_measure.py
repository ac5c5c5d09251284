"""The ranking of layers, against models that are quantized by hand one layer at a time."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scaled_channel import TEXTS, WORST, plain_model, scale_channel

from edgec.errors import DataError, UserError
from edgec.models.requests import requests_for
from edgec.models.torch_model import torch_model
from edgec.nn.fake_quantize import fake_quantized
from edgec.passes import Quantize, run_pass
from edgec.ranking import Ranking, measure
from edgec.ranking.measure import rank
from edgec.ranking.sizes import layer_bytes
from edgec.state import LayerQuantization, ModelState, PassContext, PointQuantization, Quantization

SOME = TEXTS[:7]


@pytest.fixture(scope="module")
def floating(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    return scale_channel(plain_model(tmp_path_factory.mktemp("ranking") / "model"))


@pytest.fixture(scope="module")
def state(floating: ModelState, tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    return run_pass(Quantize(), floating, PassContext(tmp_path_factory.mktemp("pass"), TEXTS))


@pytest.fixture(scope="module")
def ranking(state: ModelState) -> Ranking:
    return rank(state, SOME)


def embeddings(state: ModelState) -> np.ndarray:
    """One text at a time, without padding."""
    rows = torch_model(state, schedule="streams").raw(requests_for(state.spec.task, SOME))
    return np.stack([row["sentence_embedding"] for row in rows]).squeeze().astype(np.float64)


def drop_of(state: ModelState, quantization: Quantization) -> tuple[float, float]:
    """1 - mean cosine and the least cosine of a copy of the whole model, quantized as said."""
    part = fake_quantized(state.parts["encoder"], quantization.of_part("encoder"))
    a, b = embeddings(state), embeddings(dataclasses.replace(state, parts={"encoder": part}))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return 1 - float(cosine.mean()), float(cosine.min())


def test_the_scaled_channel_changes_no_answer(floating: ModelState) -> None:
    expected = embeddings(floating)
    copied = dataclasses.replace(floating, parts=copy.deepcopy(floating.parts))
    assert np.array_equal(embeddings(scale_channel(copied, 1 / 64)), expected)
    assert not np.array_equal(embeddings(scale_channel(copied, 3.0)), expected), "the channel takes part"


def test_every_layer_alone_the_worst_first(state: ModelState, ranking: Ranking) -> None:
    assert state.quantization is not None
    assert {layer.layer for layer in ranking.layers} == set(state.quantization.layers)
    for layer in ranking.layers:
        one = dataclasses.replace(
            state.quantization, layers={layer.layer: state.quantization.layers[layer.layer]}, points={}
        )
        assert (layer.drop, layer.min_cosine) == pytest.approx(drop_of(state, one), abs=2e-6)
    drops = [layer.drop for layer in ranking.layers]
    assert drops == sorted(drops, reverse=True)
    assert (ranking.metric, ranking.texts) == ("cosine", len(SOME))


def test_the_layer_of_the_scaled_channel_stands_out(ranking: Ranking) -> None:
    assert ranking.layers[0].layer == WORST
    assert ranking.layers[0].drop > 20 * ranking.layers[1].drop


def test_the_model_is_left_in_float(state: ModelState) -> None:
    before = embeddings(state)
    rank(state, SOME[:2])
    assert np.array_equal(embeddings(state), before)


def test_points_are_ranked_too(state: ModelState) -> None:
    assert state.quantization is not None
    span = (-3.0, 3.0)
    points = {
        "encoder:model.encoder.layer.0.attention.self": PointQuantization(
            "attention", 4, dict.fromkeys(("query", "key", "value"), span) | {"probabilities": (0.0, 1.0)}
        ),
        "encoder:model.encoder.layer.1.output.LayerNorm": PointQuantization("layer-norm", 4, {"output": span}),
    }
    alone = Quantization("fully-quantized", {}, points=points)
    before = embeddings(state)
    found = rank(dataclasses.replace(state, quantization=alone), SOME)
    assert {layer.layer: layer.scheme for layer in found.layers} == {key: p.kind for key, p in points.items()}
    for layer in found.layers:
        one = dataclasses.replace(alone, points={layer.layer: points[layer.layer]})
        assert layer.drop == pytest.approx(drop_of(state, one)[0], rel=1e-3)
        assert layer.drop > 1e-4
    assert np.array_equal(embeddings(state), before), "the hooks and replaced functions are gone"


def test_weights_that_a_pass_chose_are_used(state: ModelState) -> None:
    """GPTQ's integers stand beside the decision; zeros in their place silence the layer."""
    key = "encoder:model.encoder.layer.1.attention.self.value"
    layers = {key: LayerQuantization("linear", "weight-only", bits=4)}
    chosen = {f"{key}/weight": np.zeros((64, 64), np.int8), f"{key}/scale": np.ones((2, 64), np.float32)}
    rounded, silent = (
        rank(dataclasses.replace(state, quantization=Quantization("weight-only", layers, tensors=tensors)), SOME)
        for tensors in ({}, chosen)
    )
    assert silent.layers[0].drop > 10 * rounded.layers[0].drop > 0


def test_a_smaller_weight_range_is_ranked_as_such(state: ModelState, ranking: Ranking) -> None:
    key = "encoder:model.encoder.layer.1.intermediate.dense"
    assert state.quantization is not None
    one = dataclasses.replace(state.quantization, layers={key: state.quantization.layers[key]})
    full, reduced = (
        rank(dataclasses.replace(state, quantization=one), SOME, reduce_range=reduce).layers[0].drop
        for reduce in (False, True)
    )
    assert reduced > 1.1 * full


def test_a_tensor_scale_is_never_taken_over_a_batch(state: ModelState) -> None:
    key = "encoder:model.encoder.layer.0.output.dense"
    decision = Quantization("dynamic", {key: LayerQuantization("linear", "dynamic-tensor")})
    dynamic = dataclasses.replace(state, quantization=decision)
    assert rank(dynamic, SOME).layers[0].drop == pytest.approx(drop_of(state, decision)[0], rel=1e-4)


class Killed(Exception):
    pass


def killed_after(count: int) -> Callable[[str, int], Callable[[int], None]]:
    """A progress that ends the run when so many layers are done."""

    def progress(label: str, total: int) -> Callable[[int], None]:
        def step(done: int) -> None:
            if label == "rank layers" and done == count * len(SOME):
                raise Killed

        return step

    return progress


def test_a_killed_run_goes_on(
    state: ModelState, ranking: Ranking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cache" / "ranking.jsonl"
    with pytest.raises(Killed):
        rank(state, SOME, resume_file=file, progress=killed_after(4))
    done = [json.loads(line)["layer"] for line in file.read_text().splitlines()[1:]]
    assert len(done) in (3, 4)
    with file.open("a") as half:
        half.write('{"layer": "encoder:model.emb')
    measured = []
    agreements = measure._agreements
    monkeypatch.setattr(measure, "_agreements", lambda *args: measured.append(1) or agreements(*args))
    again = rank(state, SOME, resume_file=file)
    assert len(measured) == len(ranking.layers) - len(done)
    assert again.layers == ranking.layers
    measured.clear()
    assert rank(state, SOME, resume_file=file).layers == ranking.layers
    assert measured == [], "a finished ranking is kept"


@pytest.mark.parametrize("what", ["texts", "range", "weights", "decision"])
def test_another_measurement_starts_anew(
    floating: ModelState, state: ModelState, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state.quantization is not None
    key = "encoder:model.encoder.layer.0.attention.self.key"
    few = dataclasses.replace(
        state, quantization=dataclasses.replace(state.quantization, layers={key: state.quantization.layers[key]})
    )
    file = tmp_path / "ranking.jsonl"
    before = rank(few, SOME, resume_file=file)
    texts, reduce, changed = SOME, False, few
    if what == "texts":
        texts = SOME[:-1]
    elif what == "range":
        reduce = True
    elif what == "decision":
        layer = dataclasses.replace(state.quantization.layers[key], per_tensor=True)
        changed = dataclasses.replace(few, quantization=Quantization("static", {key: layer}))
    else:
        bias = state.parts["encoder"].model.encoder.layer[1].output.dense.bias
        monkeypatch.setattr(bias, "data", bias.data + 0.5)
    assert rank(changed, texts, reduce_range=reduce, resume_file=file) != before
    assert rank(changed, texts, reduce_range=reduce, resume_file=file).layers == (
        rank(changed, texts, reduce_range=reduce).layers
    )


def test_nothing_to_rank(floating: ModelState, state: ModelState) -> None:
    with pytest.raises(UserError, match="no layer of the model is quantized"):
        rank(floating, SOME)
    with pytest.raises(DataError, match="no text"):
        rank(state, [])


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (None, 4 * 96 * 40),
        (LayerQuantization("linear", "static"), 96 * 40 + 4 * 40),
        (LayerQuantization("linear", "static", per_tensor=True), 96 * 40 + 4),
        (LayerQuantization("linear", "static", smoothing=(1.0,) * 96), 96 * 40 + 4 * 40 + 4 * 96),
        (LayerQuantization("linear", "llm-int8", outliers=(1, 2)), 96 * 40 + 4 * 40 + 2 * 4 * 40),
        # 96 inputs are three blocks of 32, or two of 64, of which the last is padded.
        (LayerQuantization("linear", "weight-only", bits=4), 40 * 3 * (16 + 4)),
        (LayerQuantization("linear", "weight-only", bits=8, block_size=64), 40 * 2 * (64 + 4)),
    ],
)
def test_bytes_of_a_matrix(layer: LayerQuantization | None, expected: int) -> None:
    assert layer_bytes(torch.nn.Linear(96, 40), layer) == expected


def test_bytes_of_a_table() -> None:
    table = torch.nn.Embedding(1000, 48)
    assert layer_bytes(table, None) == 1000 * 48 * 4
    assert layer_bytes(table, LayerQuantization("embedding", "weight-only")) == 1000 * (48 + 4)
    assert layer_bytes(table, LayerQuantization("embedding", "weight-only", bits=4)) == 1000 * 2 * (16 + 4)
