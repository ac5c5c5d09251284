"""Cosines, and the numpy that runs on the peers' side."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks.int8 import contenders, quality


@pytest.fixture(scope="module")
def serve() -> ModuleType:
    found = importlib.util.spec_from_file_location("serve", contenders.PEERS / "serve.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_cosines_do_not_depend_on_lengths() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 2.0]])
    found = np.array([[3.0, 0.0], [1.0, 1.0]])
    assert quality.cosines(reference, found) == pytest.approx({"mean": (1 + math.sqrt(0.5)) / 2, "min": math.sqrt(0.5)})


def test_unequal_rows_hold_the_shortest_and_the_longest() -> None:
    rows = [[1] * length for length in range(3, 40)]
    chosen = quality.unequal_rows(rows)
    assert len(chosen) == quality.PADDED_BATCH
    assert min(map(len, chosen)) == 3 and max(map(len, chosen)) == 39
    assert len(set(map(len, chosen))) == quality.PADDED_BATCH


def test_padding_is_masked(serve: ModuleType) -> None:
    ids, mask = serve.padded([[7, 8, 9], [5]])
    assert ids.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == np.int64


def test_pooling_reads_only_what_the_mask_keeps(serve: ModuleType) -> None:
    hidden = np.array([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 2.0], [99.0, 99.0]]], np.float32)
    found = serve.mean_of_tokens(hidden, np.array([[1, 1], [1, 0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)


def test_rows_are_embedded_in_batches_of_the_size_asked_for(serve: ModuleType) -> None:
    seen = []

    class Model:
        def embed(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
            seen.append(ids.shape)
            return mask.sum(axis=1, keepdims=True)

    found = serve.embed_rows(Model(), [[1], [1, 2, 3], [1, 2]], batch=2)
    assert seen == [(2, 3), (1, 2)]
    assert found == {"embeddings": [[1], [3], [2]]}


def test_calls_are_timed_one_by_one(serve: ModuleType) -> None:
    shapes = []

    class Model:
        def embed(self, ids: np.ndarray, mask: np.ndarray) -> None:
            shapes.append((ids.shape, int(mask.sum())))

    found = serve.time_calls(Model(), batch=2, tokens=5, calls=3)
    assert shapes == [((2, 5), 10)] * 3
    assert len(found["ms"]) == 3


def test_held_out_sentences_are_drawn_once_and_for_all(tmp_path: Path) -> None:
    rows = ["sentence1,sentence2,score", *(f"one {n},two {n},1.0" for n in range(400)), "one 3,again,2.0"]
    (tmp_path / "stsb").mkdir()
    (tmp_path / "stsb" / "stsb-en-dev.csv").write_text("\n".join(rows))
    chosen = quality.held_out_sentences(tmp_path)
    assert len(set(chosen)) == quality.HELD_OUT
    assert chosen == quality.held_out_sentences(tmp_path)
    assert all(text.startswith("one ") for text in chosen)
