"""Rounding at the points of attention and layer norms, against the equations in numpy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edgec.models import load_model
from edgec.nn.fake_points import apply_points
from edgec.state import PointQuantization

ATTENTION = "model.encoder.layer.0.attention.self"
NORM = "model.encoder.layer.0.attention.output.LayerNorm"
HEADS = 4
RANGES = {
    "query": (-3.0, 2.0),
    "key": (-1.5, 2.5),
    "value": (-2.0, 2.0),
    "scores": (-1.0, 1.5),
    "probabilities": (0.0, 0.6),
}
IDS = torch.from_numpy(np.random.default_rng(0).integers(5, 90, (2, 9), dtype=np.int32))
MASK = torch.ones_like(IDS)
MASK[1, 5:] = 0


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    state = load_model(tiny("bert", "feature-extraction", tmp_path_factory.mktemp("points") / "model"))
    (found,) = state.parts.values()
    return found


def rounded(part: nn.Module, points: dict[str, PointQuantization], **options: Any) -> nn.Module:
    result = copy.deepcopy(part)
    apply_points(result, points, **options)
    return result


def run(part: nn.Module, ids: torch.Tensor = IDS, mask: torch.Tensor = MASK) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(part(ids, mask)[0].numpy())


@contextmanager
def tapped(part: nn.Module, **paths: str) -> Iterator[dict[str, np.ndarray]]:
    """The first inputs ("NAME_in") and the outputs ("NAME") of modules, while the part runs."""
    seen: dict[str, np.ndarray] = {}

    def hook(name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[f"{name}_in"], seen[name] = inputs[0].numpy(), output.numpy()

        return note

    handles = [part.get_submodule(path).register_forward_hook(hook(name)) for name, path in paths.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def affine(x: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """Bie et al. 2020, equations 5 to 7, with a level at zero."""
    scale = np.float32((high - low) / (2**bits - 1))
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(x / scale) + zero, 0, 2**bits - 1) - zero) * scale


def even(x: np.ndarray, low: float, high: float, bits: int, most: int | None = None) -> np.ndarray:
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if most is None else (-most, most)
    scale = np.float32(max(-low, high) / most)
    return np.clip(np.rint(x / scale), least, most) * scale


def attention(seen: dict[str, np.ndarray], bits: int, ranges: dict[str, Any], most: int | None = None) -> np.ndarray:
    """What attention answers (batch, tokens, hidden), head by head and row by row."""
    q, k, v = (seen[name].reshape(2, 9, HEADS, 8) for name in ("query", "key", "value"))
    q, k, v = (
        affine(q, *ranges["query"], bits),
        even(k, *ranges["key"], bits, most),
        even(v, *ranges["value"], bits, most),
    )
    context = np.zeros((2, 9, HEADS, 8), np.float32)
    for batch, head, row in np.ndindex(2, HEADS, 9):
        length = int(MASK[batch].sum())
        scores = k[batch, :length, head] @ q[batch, row, head] / np.sqrt(8)
        if "scores" in ranges:
            scores = affine(scores, *ranges["scores"], bits)
        weights = np.exp(scores - scores.max())
        weights = affine(weights / weights.sum(), *ranges["probabilities"], bits)
        context[batch, row, head] = weights @ v[batch, :length, head]
    return context.reshape(2, 9, HEADS * 8)


@pytest.mark.parametrize(
    ("bits", "scores", "reduce_range", "most"),
    [
        (8, True, False, None),
        (8, False, False, None),
        (4, True, False, None),
        (8, True, True, 64),
        (7, True, True, None),
    ],
)
def test_attention_is_that_of_numpy(
    part: nn.Module, bits: int, scores: bool, reduce_range: bool, most: int | None
) -> None:
    ranges = {name: bounds for name, bounds in RANGES.items() if scores or name != "scores"}
    fake = rounded(part, {ATTENTION: PointQuantization("attention", bits, ranges)}, reduce_range=reduce_range)
    projections = {name: f"{ATTENTION}.{name}" for name in ("query", "key", "value")}
    with tapped(fake, **projections, out="model.encoder.layer.0.attention.output.dense") as seen:
        run(fake)
    assert (seen["query"].min() < -3) and (seen["key"].max() > 2.5)  # some values are clipped
    expected = attention(seen, bits, ranges, most)
    # A last bit of a float may tip a rounding: a step of a probability, times a value.
    close = np.isclose(seen["out_in"], expected, atol=1e-5)
    assert close.mean() > 0.98 and np.abs(seen["out_in"] - expected).max() < 2.5 * 0.6 / (2**bits - 1) + 0.02


@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize("smoothed", [False, True])
def test_layer_norms_are_those_of_numpy(bits: int, smoothed: bool) -> None:
    factors = np.linspace(0.5, 4, 32).astype(np.float32) if smoothed else np.ones(32, np.float32)
    ranges = {"input": (-1.5, 1.0), "output": (-2.0, 2.5)}
    point = PointQuantization("layer-norm", bits, ranges, tuple(map(float, factors)) if smoothed else None)
    one = nn.ModuleDict({"norm": nn.LayerNorm(32)})
    apply_points(one, {"norm": point})
    x = np.random.default_rng(0).normal(0.2, 1, (2, 9, 32)).astype(np.float32)
    with torch.inference_mode():
        got = one["norm"](torch.from_numpy(x)).numpy()
    x = affine(x / factors, *ranges["input"], bits) * factors
    y = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    expected, step = affine(y, *ranges["output"], bits), 4.5 / (2**bits - 1)
    # A last bit of a float may tip a rounding, which moves that element by a step.
    assert np.isclose(got, expected, atol=1e-5).mean() > 0.99 and np.abs(got - expected).max() < 1.001 * step


def test_only_what_is_named_is_rounded(part: nn.Module) -> None:
    before = run(part)
    fake = rounded(part, {ATTENTION: PointQuantization("attention", 4, RANGES)})
    other = "model.encoder.layer.1.attention.self"
    outside = rounded(part, {other: PointQuantization("attention", 4, RANGES)})
    assert np.abs(run(fake) - before).max() > 1e-3
    assert np.abs(run(outside) - run(fake)).max() > 1e-3
    np.testing.assert_array_equal(run(part), before)
    np.testing.assert_array_equal(run(rounded(part, {})), before)
    only_output = rounded(part, {NORM: PointQuantization("layer-norm", 8, {"output": (-3.0, 3.0)})})
    with tapped(only_output, norm=NORM) as rounded_norm, tapped(part, norm=NORM) as plain:
        run(only_output), run(part)
    np.testing.assert_array_equal(rounded_norm["norm_in"], plain["norm_in"])
    assert np.abs(rounded_norm["norm"] - plain["norm"]).max() > 1e-4


def test_fewer_bits_err_more(part: nn.Module) -> None:
    exact = run(part)
    wide = {name: (0.0, 1.0) if name == "probabilities" else (-8.0, 8.0) for name in RANGES}
    fakes = [rounded(part, {ATTENTION: PointQuantization("attention", bits, wide)}) for bits in (8, 6, 4)]
    errors = [np.abs(run(fake) - exact).mean() for fake in fakes]
    assert errors[0] < errors[1] / 2 < errors[2] / 4


def test_a_copy_rounds_as_the_original_does(part: nn.Module) -> None:
    fake = rounded(part, {ATTENTION: PointQuantization("attention", 4, RANGES)})
    again = copy.deepcopy(fake)
    np.testing.assert_array_equal(run(again), run(fake))
    with torch.no_grad():
        for parameter in fake.parameters():
            parameter.zero_()
    assert np.abs(run(again)).max() > 0.1  # its attention is its own


def test_attention_of_all_other_models_is_restored(part: nn.Module) -> None:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    fake = rounded(part, {ATTENTION: PointQuantization("attention", 8, RANGES)})
    run(fake)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    with pytest.raises(RuntimeError):
        fake.get_submodule(ATTENTION)(torch.zeros(2, 9, 7))
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_gradients_pass_through(part: nn.Module) -> None:
    points = {
        ATTENTION: PointQuantization("attention", 8, RANGES),
        NORM: PointQuantization("layer-norm", 8, {"input": (-4.0, 4.0), "output": (-4.0, 4.0)}),
    }
    fake = rounded(part, points)
    fake(IDS, MASK)[0].square().sum().backward()
    for name in ("query", "key", "value"):
        gradient = fake.get_submodule(f"{ATTENTION}.{name}").weight.grad
        assert gradient is not None and gradient.abs().max() > 0


def test_a_padded_row_answers_as_it_does_alone(part: nn.Module) -> None:
    ranges = dict(RANGES, scores=(0.5, 1.5), probabilities=(0.1, 0.6))  # no level of its own for what is hidden
    fake = rounded(part, {ATTENTION: PointQuantization("attention", 6, ranges)})
    np.testing.assert_allclose(run(fake)[1], run(fake, IDS[1:, :5], MASK[1:, :5])[0], atol=1e-6)


def test_a_path_that_is_no_module(part: nn.Module) -> None:
    with pytest.raises(AttributeError):
        rounded(part, {"model.nothing": PointQuantization("attention", 8, RANGES)})


def test_a_family_with_sliding_windows(tmp_path: Path) -> None:
    state = load_model(tiny("modernbert", "feature-extraction", tmp_path / "m"))
    (part,) = state.parts.values()
    fake = rounded(part, {"model.layers.1.attn": PointQuantization("attention", 4, RANGES)})
    assert np.abs(run(fake) - run(part)).max() > 1e-3
