"""The gates between two forms of a model: they let nothing wrong pass, and name what is worst."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tiny_models import tiny

from edgec.errors import ParityError
from edgec.exporter import Exporter
from edgec.graph.follow import Agreement
from edgec.graph.parity import (
    Feeds,
    Outputs,
    Parity,
    compare,
    float_parity,
    int8_parity,
    reference_parity,
    sample_feeds,
)
from edgec.graph.store import open_graph
from edgec.models import load_model
from edgec.nn.parts import Part


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Part:
    """A question-answering model: two outputs with a token axis."""
    state = load_model(tiny("bert", "question-answering", tmp_path_factory.mktemp("reader")))
    (part,) = state.parts.values()
    assert isinstance(part, Part)
    return part


@pytest.fixture(scope="module")
def feeds(reader: Part) -> list[Feeds]:
    return sample_feeds(reader, vocabulary=100, pad_id=3, max_length=64, seed=1)


def _torch_run(part: Part, feed: Feeds) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        values = part(*(torch.from_numpy(feed[name]) for name in part.input_names))
    return {name: value.numpy().copy() for name, value in zip(part.output_names, values, strict=True)}


def test_sample_feeds(reader: Part, feeds: list[Feeds]) -> None:
    assert [feed["input_ids"].shape for feed in feeds] == [(3, 24), (1, 9), (1, 1), (1, 64)]
    lengths = feeds[0]["attention_mask"].sum(axis=1).tolist()
    assert lengths == [24, 12, 8]
    for feed in feeds:
        assert set(feed) == {"input_ids", "attention_mask", "token_type_ids"}
        assert all(value.dtype == np.int32 for value in feed.values())
        np.testing.assert_array_equal(feed["input_ids"] == 3, feed["attention_mask"] == 0)
    again = sample_feeds(reader, vocabulary=100, pad_id=3, max_length=64, seed=1)
    for one, two in zip(feeds, again, strict=True):
        np.testing.assert_array_equal(one["input_ids"], two["input_ids"])
    other = sample_feeds(reader, vocabulary=100, pad_id=3, max_length=64, seed=2)
    assert not np.array_equal(other[0]["input_ids"], feeds[0]["input_ids"])


def test_sample_feeds_have_pairs(reader: Part, feeds: list[Feeds]) -> None:
    types = feeds[0]["token_type_ids"]
    # Rows of 24, 12 and 8 tokens.
    assert types[0].tolist() == [0] * 12 + [1] * 12
    assert types[1].tolist() == [0] * 6 + [1] * 6 + [0] * 12
    assert types[2].tolist() == [0] * 4 + [1] * 4 + [0] * 16
    assert not any(feed["token_type_ids"].any() for feed in feeds[1:])

    def run(feed: Feeds) -> Outputs:
        return _torch_run(reader, {**feed, "token_type_ids": np.zeros_like(feed["token_type_ids"])})

    with pytest.raises(ParityError):
        float_parity(reader, run, feeds)


def test_a_model_of_one_token_type_gets_no_second(tmp_path: Path) -> None:
    state = load_model(tiny("bert", "question-answering", tmp_path, type_vocab_size=1))
    (part,) = state.parts.values()
    assert isinstance(part, Part)
    feeds = sample_feeds(part, vocabulary=100, pad_id=3, max_length=64)
    assert all(set(feed) == {"input_ids", "attention_mask"} for feed in feeds)


def test_the_longest_row_is_no_longer_than_memory_allows(reader: Part) -> None:
    feeds = sample_feeds(reader, vocabulary=100, pad_id=3, max_length=8192)
    assert [feed["input_ids"].shape for feed in feeds] == [(3, 24), (1, 9), (1, 1), (1, 1024)]


def test_a_right_graph_passes(reader: Part, feeds: list[Feeds]) -> None:
    parity = float_parity(reader, lambda feed: _torch_run(reader, feed), feeds)
    assert parity.max_abs == 0
    assert parity.mean_cosine == pytest.approx(1) and parity.min_cosine == pytest.approx(1)


@pytest.mark.parametrize("name", ["start_logits", "end_logits"])
@pytest.mark.parametrize("wrong", [2e-4, float("nan"), float("inf")])
def test_the_worst_output_is_named(reader: Part, feeds: list[Feeds], name: str, wrong: float) -> None:
    def run(feed: Feeds) -> Outputs:
        outputs = _torch_run(reader, feed)
        outputs["start_logits"][0, 0] += 5e-5  # within the limit
        outputs[name][-1, 0] += wrong
        return outputs

    with pytest.raises(ParityError, match=f"output '{name}' of the float graph differs from torch by") as caught:
        float_parity(reader, run, feeds)
    assert "export.opset" in caught.value.hint


def test_what_stands_in_the_padding_does_not_count(reader: Part, feeds: list[Feeds]) -> None:
    def run(feed: Feeds) -> Outputs:
        outputs = _torch_run(reader, feed)
        for value in outputs.values():
            value[feed["attention_mask"] == 0] = np.nan
        return outputs

    assert float_parity(reader, run, feeds).max_abs == 0


def test_another_shape(reader: Part, feeds: list[Feeds]) -> None:
    def run(feed: Feeds) -> Outputs:
        return {name: value[:, :1] for name, value in _torch_run(reader, feed).items()}

    with pytest.raises(ParityError, match=r"'start_logits' has shape \(3, 1\) in the graph, \(3, 24\) in torch"):
        float_parity(reader, run, feeds)


def test_a_graph_with_one_wrong_weight(exporter: Exporter) -> None:
    part = exporter.state.parts["encoder"]
    assert isinstance(part, Part)
    feeds = sample_feeds(part, vocabulary=100, pad_id=0, max_length=64)
    wrong = exporter.float_graph.clone()
    shift = wrong.graph.initializers["model.encoder.layer.1.output.LayerNorm.bias"]
    assert shift.const_value is not None
    shift.const_value = ir.tensor(shift.const_value.numpy() + np.float32(0.01), name=shift.name)
    assert float_parity(part, open_graph(exporter.float_graph).run, feeds).max_abs < 1e-5
    with pytest.raises(ParityError, match="'sentence_embedding'"):
        float_parity(part, open_graph(wrong).run, feeds)


def _outputs(*rows: list[float]) -> list[dict[str, np.ndarray]]:
    return [{"a": np.array([row], np.float32), "b": np.array([row], np.float32)} for row in rows]


def test_int8_graphs_may_be_coarse_but_not_wrong() -> None:
    reference = _outputs([1, 2, 3], [3, -1, 0])
    near = _outputs([1.1, 1.9, 3], [3, -1.2, 0.1])
    parity = int8_parity(reference, near)
    assert 0.99 < parity.min_cosine <= parity.mean_cosine < 1
    assert parity.max_abs == pytest.approx(0.2, rel=1e-5) and parity.compared == 4
    far = [{"a": one["a"], "b": -one["b"]} for one in reference]
    with pytest.raises(ParityError, match=r"mean cosine 0\.000 \(at least 0\.9\), worst output 'b'") as caught:
        int8_parity(reference, far)
    assert "skip" in caught.value.hint


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_one_value_that_is_no_number_among_many(wrong: float) -> None:
    reference = _outputs(*([float(i), 2.0, 3.0] for i in range(100)))
    broken = [{name: value.copy() for name, value in one.items()} for one in reference]
    broken[50]["b"][0, 1] = wrong
    with pytest.raises(ParityError, match=r"worst output 'b' \(off by inf\)"):
        int8_parity(reference, broken)


def _texts(rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Two outputs of four texts."""
    return [{name: rng.standard_normal((2, 50)).astype(np.float32) for name in "ab"} for _ in range(4)]


def _moved(
    texts: list[dict[str, np.ndarray]], rng: np.random.Generator, distance: float
) -> list[dict[str, np.ndarray]]:
    return [
        {name: (value + distance * rng.standard_normal(value.shape)).astype(np.float32) for name, value in one.items()}
        for one in texts
    ]


AGREED = {"layer": Agreement(4, 0.5, 0.01), "other": Agreement(4, 0.9, 0.2), "a": Agreement(4, 1.0, 1e-6)}


def test_every_layer_has_to_agree() -> None:
    rng = np.random.default_rng(0)
    exact = _texts(rng)
    reference = _moved(exact, rng, 0.1)
    found = reference_parity(reference, _moved(reference, rng, 0.01), exact, AGREED)
    assert (found.layers, found.worst_layer, found.worst_share, found.compared) == (3, "layer", 0.5, 16)
    assert 0.9998 < found.mean_cosine < 0.99999
    assert found.to_dict().keys() >= {"max_abs", "mean_cosine", "layers", "worst_layer", "worst_share"}
    wrong = {"first": Agreement(4, 1.0, 0.0), "second": Agreement(4, 0.4, 0.25), "third": Agreement(4, 0.0, np.inf)}
    with pytest.raises(
        ParityError, match=r"at second 60% of its rows differ .* by up to 0\.25 of .* \(2 of 6 layers"
    ) as caught:
        reference_parity(reference, reference, exact, wrong | AGREED)
    assert "skip: ['second']" in caught.value.hint
    with pytest.raises(ParityError, match="at undefined"):
        reference_parity(reference, reference, exact, {"undefined": Agreement(4, float("nan"), np.inf)})


def test_whole_texts_may_be_as_far_as_roundings_are_from_float() -> None:
    rng = np.random.default_rng(1)
    exact = _texts(rng)
    reference = _moved(exact, rng, 0.2)
    # Rounded apart everywhere: both as far from float, and independent.
    found = reference_parity(reference, _moved(exact, rng, 0.2), exact, AGREED)
    pairs = [(name, a[name], b[name]) for a, b in zip(exact, reference, strict=True) for name in a]
    assert 1 - found.mean_cosine == pytest.approx(2 * (1 - compare(pairs).mean_cosine), rel=0.3)
    with pytest.raises(
        ParityError, match=r"mean cosine 0\.\d+ with the same roundings in torch .* worst output '[ab]'"
    ):
        reference_parity(reference, _moved(exact, rng, 0.5), exact, AGREED)
    broken = _moved(reference, rng, 0)
    broken[2]["a"][0, 0] = np.nan
    with pytest.raises(ParityError, match=r"worst output 'a' \(off by inf\)"):
        reference_parity(reference, broken, exact, AGREED)


def test_a_tipped_rounding_is_no_fault_where_rounding_costs_nothing() -> None:
    rng = np.random.default_rng(2)
    exact = _texts(rng)
    reference_parity(exact, _moved(exact, rng, 0.04), exact, AGREED)
    with pytest.raises(ParityError, match=r"at least 0\.9990"):
        reference_parity(exact, _moved(exact, rng, 0.06), exact, AGREED)


def test_compare_counts_by_hand() -> None:
    expected = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    got = np.array([[4.0, 3.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    found = compare([("x", expected, got)])
    assert found == Parity(max_abs=1.0, mean_cosine=(24 / 25 + 1 + 0) / 3, min_cosine=0.0, worst="x", compared=3)
