"""The same answer alone, in any batch, on any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from edgec_runtime import load
from edgec_runtime.engine import OnnxRuntimeEngine
from edgec_runtime.errors import EngineFailed
from edgec_runtime.integrity import read_manifest
from edgec_runtime.manifest import Execution, Part, TensorInfo
from edgec_runtime.schedule import choose
from onnx import TensorProto
from tiny_bundles import GOLDEN, LINES, seal, tensors

TEXTS = [" ".join(LINES[: i % 4])[: 7 * i] for i in range(23)] + ["", "fox"]


def test_streams_are_bitwise_the_text_alone(bundles: dict[str, Path]) -> None:
    for task in ("feature-extraction", "text-classification", "token-classification"):
        alone = load(bundles[task], threads=1)
        with load(bundles[task], threads=3) as parallel:
            assert parallel.runner.schedule == "streams"
            for one, many in zip((alone.raw([t])[0] for t in TEXTS), parallel.raw(TEXTS), strict=True):
                assert one.keys() == many.keys()
                for name in one:
                    np.testing.assert_array_equal(one[name], many[name])


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_agree_with_streams(bundle: Path, batch_size: int) -> None:
    seal(bundle, execution=Execution(schedule="batches", batch_size=batch_size))
    model = load(bundle)
    assert model.runner.schedule == "batches"
    expected = load(bundle, schedule="streams").embed(TEXTS)
    np.testing.assert_allclose(model.embed(TEXTS), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore::edgec_runtime.TruncationWarning")
def test_batches_of_token_outputs(bundles: dict[str, Path]) -> None:
    for task, requests in GOLDEN.items():
        streams = load(bundles[task]).raw(requests)
        batches = load(bundles[task], schedule="batches").raw(requests)
        for a, b in zip(streams, batches, strict=True):
            for name in a:
                assert a[name].shape == b[name].shape
                np.testing.assert_allclose(a[name], b[name], atol=1e-5)


def test_many_threads_on_one_model(bundles: dict[str, Path]) -> None:
    with load(bundles["feature-extraction"], threads=2) as model:
        expected = model.embed(TEXTS)
        with ThreadPoolExecutor(8) as pool:
            for result in pool.map(lambda _: model.embed(TEXTS), range(40)):
                np.testing.assert_array_equal(result, expected)


def test_a_closed_model_starts_again(bundles: dict[str, Path]) -> None:
    model = load(bundles["feature-extraction"], threads=2)
    first = model.embed(TEXTS)
    model.close()
    model.close()
    np.testing.assert_array_equal(model.embed(TEXTS), first)


def test_when_batches_are_out_of_the_question() -> None:
    ids, mask = (TensorInfo(name, "int32", ("batch", "tokens")) for name in ("input_ids", "attention_mask"))
    part = Part("encoder", "model.onnx", "int8", (ids, mask), ())
    batches = Execution(schedule="batches")
    assert choose(part, batches, None) == "batches"
    assert choose(part, batches, "streams") == "streams"
    assert choose(part, Execution(), "batches") == "batches"
    assert choose(part, replace(batches, batch_invariant=False), "batches") == "streams"
    assert choose(replace(part, inputs=(ids,)), batches, "batches") == "streams"


def test_a_failing_run_names_the_part(bundles: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    model = load(bundles["feature-extraction"])
    ids = np.full((1, 2), 10**6, np.int32)
    with pytest.raises(EngineFailed, match=r"'encoder' on input_ids int32\[1, 2\]"):
        model.runner.engine.run({"input_ids": ids, "attention_mask": np.ones((1, 2), np.int32)})
    assert capfd.readouterr().err == ""


def test_an_engine_from_bytes(bundles: dict[str, Path]) -> None:
    path = bundles["feature-extraction"] / "model.onnx"
    feeds = {"input_ids": np.array([[5, 6]], np.int32), "attention_mask": np.ones((1, 2), np.int32)}
    one, other = OnnxRuntimeEngine(path).run(feeds), OnnxRuntimeEngine(path.read_bytes()).run(feeds)
    np.testing.assert_array_equal(one["sentence_embedding"], other["sentence_embedding"])


def test_a_graph_with_int64_inputs(bundle: Path) -> None:
    expected = load(bundle).embed(TEXTS)
    model = onnx.load(bundle / "model.onnx")
    for value in model.graph.input:
        value.type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, bundle / "model.onnx")
    manifest = read_manifest(bundle)
    part = replace(manifest.parts[0], inputs=tensors(model.graph.input))
    seal(bundle, parts=(part,))
    np.testing.assert_array_equal(load(bundle).embed(TEXTS), expected)
