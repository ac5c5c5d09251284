"""Collectors of a layer's inputs: what they keep does not grow with the texts, and nothing undefined gets lost."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from tiny_models import SENTENCES

from edgec.numerics.ranges import least_squares_range, percentile_range
from edgec.passes.observe import Averaged, Divided, Extremes, FromHistogram, Observer, observe
from edgec.state import ModelState, PassContext

CHANNELS = 16
OBSERVERS: dict[str, Callable[[], Observer]] = {
    "extremes": Extremes,
    "moving average": partial(Averaged, 0.9),
    "moving average over steps": partial(Averaged, 0.9, 50),
    "percentile": lambda: FromHistogram(lambda histogram: percentile_range(histogram, 99.0)),
    "mse": lambda: FromHistogram(lambda histogram: least_squares_range(histogram, 8)),
    "smoothed": lambda: Divided(Averaged(0.9), np.full(CHANNELS, 2, np.float32), (3, 4)),
}


def texts(count: int) -> Iterator[torch.Tensor]:
    """Inputs of texts of unequal length, (tokens, CHANNELS)."""
    rng = np.random.default_rng(0)
    for i in range(count):
        rows = rng.standard_normal((rng.integers(1, 60), CHANNELS)) * (1 + min(i, 50))
        yield torch.from_numpy(rows.astype(np.float32))


@pytest.mark.parametrize("name", OBSERVERS)
def test_ten_thousand_texts_need_no_more_memory_than_a_hundred(name: str) -> None:
    def kept(count: int) -> int:
        """Bytes that the observer holds after `count` texts."""
        tracemalloc.start()
        observer = OBSERVERS[name]()
        for number, rows in enumerate(texts(count)):
            observer.add(rows, number)
        del rows
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert observer.range()[0] < 0
        return held

    kept(100)  # what is allocated once
    assert kept(10_000) <= kept(100) + 4096


@pytest.mark.parametrize("name", OBSERVERS)
def test_an_undefined_value_reaches_the_range(name: str) -> None:
    observer = OBSERVERS[name]()
    for number, rows in enumerate(texts(20)):
        observer.add(rows if number != 7 else torch.full_like(rows, float("nan")), number)
    assert np.isnan(observer.range()).all()


def test_two_calls_in_a_text_are_one_batch() -> None:
    observer = Averaged(0.5)
    for number, (low, high) in enumerate([(-1, 1), (-4, 2), (-2, 8), (-3, 3)]):
        observer.add(torch.tensor([[low, high]], dtype=torch.float32), number // 2)
    assert observer.range() == (0.5 * -4 + 0.5 * -3, 0.5 * 2 + 0.5 * 8)


def test_steps_go_round_the_texts() -> None:
    extremes = [(-1.0, 1.0), (-4.0, 2.0), (-2.0, 8.0)]
    observer = Averaged(0.5, 7)
    for number, values in enumerate(extremes):
        observer.add(torch.tensor([values]), number)
    low, high = extremes[0]
    for step in range(1, 7):
        low, high = 0.5 * low + 0.5 * extremes[step % 3][0], 0.5 * high + 0.5 * extremes[step % 3][1]
    assert observer.range() == pytest.approx((low, high))
    assert observer.range() == pytest.approx((low, high)), "asking changes nothing"


def test_extremes_by_channel() -> None:
    extremes = Extremes()
    assert not extremes.used
    extremes.add(torch.tensor([[1.0, -8.0, 3.0], [2.0, 0.0, -3.0]]), 1)
    extremes.add(torch.tensor([[-5.0, 1.0, 0.0]]), 2)
    assert extremes.used
    np.testing.assert_array_equal(extremes.magnitude(), [5, 8, 3])
    assert extremes.range() == (-8, 3)
    assert extremes.range(np.array([1, 4, 0.5], np.float32)) == (-6, 6)
    assert extremes.range(outliers=[1]) == (-5, 3)


def test_texts_are_numbered_and_hooks_go_away(bert: ModelState, ctx: PassContext) -> None:
    class Noted:
        def __init__(self) -> None:
            self.calls: list[tuple[int, tuple[int, ...]]] = []

        def add(self, rows: torch.Tensor, text: int) -> None:
            self.calls.append((text, tuple(rows.shape)))

    layer, table = Noted(), Noted()
    keys = ("encoder:model.encoder.layer.0.intermediate.dense", "encoder:model.embeddings.word_embeddings")
    observe(bert, SENTENCES, ctx, {keys[0]: [layer], keys[1]: [table]})
    lengths = [len(bert.tokenizer(text)["input_ids"]) for text in SENTENCES]
    assert layer.calls == [(i, (length, 32)) for i, length in enumerate(lengths, start=1)]
    assert table.calls == [(i, (length, 1)) for i, length in enumerate(lengths, start=1)]
    assert not any(module._forward_pre_hooks for module in bert.parts["encoder"].modules())
