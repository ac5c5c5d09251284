"""Golden vectors come back as they were written, and a machine that answers differently is told where."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgec_runtime import golden
from edgec_runtime.check import check, compare
from edgec_runtime.errors import CheckFailed, FileDamaged
from edgec_runtime.integrity import read_manifest
from onnx import numpy_helper
from tiny_bundles import GOLDEN, seal, wordpiece

REQUESTS = ["a ünï text\n", ["a", "b"], {"question": "?", "context": ""}]
IDS = [np.arange(3), np.array([], int), np.array([7])]
OUTPUTS = [
    {"logits": np.ones((3, 2)), "pooled": np.array([1.5, 2])},
    {"logits": np.zeros((0, 2)), "pooled": np.array([0.0, 1])},
    {"logits": np.full((1, 2), 4.0), "pooled": np.array([-1.0, 3])},
]


def test_there_and_back(tmp_path: Path) -> None:
    golden.write(tmp_path / "g.npz", REQUESTS, IDS, OUTPUTS, answers=[None, {"x": 0.5}, []])
    back = golden.read(tmp_path / "g.npz")
    assert back.requests == REQUESTS and back.answers == [None, {"x": 0.5}, []]
    for ids, expected in zip(back.ids, IDS, strict=True):
        assert ids.dtype == np.int32 and ids.tolist() == expected.tolist()
    for outputs, wanted in zip(back.outputs, OUTPUTS, strict=True):
        assert outputs.keys() == wanted.keys()
        for name in wanted:
            assert outputs[name].dtype == np.float32
            np.testing.assert_array_equal(outputs[name], wanted[name])


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        golden.write(tmp_path / name, REQUESTS, IDS, OUTPUTS)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {m.date_time for m in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {m.compress_type for m in archive.infolist()} == {zipfile.ZIP_STORED}


def test_what_holds_no_golden_vectors(tmp_path: Path) -> None:
    path = tmp_path / "g.npz"
    for data in (b"", b"PK", b"\x93NUMPY"):
        path.write_bytes(data)
        with pytest.raises(FileDamaged):
            golden.read(path)
    np.savez(path, requests=np.array([{"pickled": 1}], object))
    with pytest.raises(FileDamaged, match="allow_pickle"):
        golden.read(path)
    golden.write(path, REQUESTS, IDS, OUTPUTS)
    arrays = dict(np.load(path))
    arrays["id_lengths"] = np.array([100], np.int32)
    np.savez(path, **arrays)
    with pytest.raises(FileDamaged):
        golden.read(path)
    with pytest.raises(ValueError, match="at least one"):
        golden.write(path, [], [], [])


def test_every_bundle_reproduces_itself(bundles: dict[str, Path]) -> None:
    for task, path in bundles.items():
        result = check(path)
        assert result.ok and result.failure is None and result.max_abs == 0, task
        assert len(result.requests) == len(GOLDEN[task])
        result.require_ok()


def alter(bundle: Path, **changes: Any) -> None:
    """Rewrite the golden vectors with some of their lists replaced."""
    vectors = replace(golden.read(bundle / "golden.npz"), **changes)
    golden.write(bundle / "golden.npz", vectors.requests, vectors.ids, vectors.outputs, vectors.answers)
    seal(bundle)


def test_an_output_that_is_off(bundle: Path) -> None:
    outputs = golden.read(bundle / "golden.npz").outputs
    outputs[2]["sentence_embedding"][3] += 2e-3
    alter(bundle, outputs=outputs)
    result = check(bundle)
    assert not result.ok and result.worst_output == "sentence_embedding" and result.worst_request == 2
    assert result.max_abs == pytest.approx(2e-3, rel=1e-3)
    with pytest.raises(CheckFailed, match=r"output 'sentence_embedding' of request 2 is off by 0\.002"):
        result.require_ok()
    manifest = read_manifest(bundle)
    seal(bundle, golden=replace(manifest.golden, max_abs=0.01, min_cosine=0.99))
    assert check(bundle).ok
    seal(bundle, golden=replace(manifest.golden, max_abs=0.01, min_cosine=1.0))
    assert not check(bundle).ok


def test_another_tokenizer(bundle: Path) -> None:
    wordpiece(["the", "fox"]).save(str(bundle / "tokenizer.json"))
    seal(bundle)
    with pytest.raises(CheckFailed, match="tokenizer gives other ids"):
        check(bundle).require_ok()


def test_other_weights(bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx")
    head = next(t for t in model.graph.initializer if t.name == "head")
    values = numpy_helper.to_array(head).copy()
    values[0, 0] = np.nan
    head.CopyFrom(numpy_helper.from_array(values, "head"))
    onnx.save(model, bundle / "model.onnx")
    seal(bundle)
    result = check(bundle)
    with pytest.raises(CheckFailed, match="not comparable"):
        result.require_ok()
    json.dumps([result.max_abs, result.min_cosine], allow_nan=False)


def test_other_post_processing(bundles: dict[str, Path], tmp_path: Path) -> None:
    for task in ("text-classification", "token-classification", "question-answering", "fill-mask"):
        folder = Path(shutil.copytree(bundles[task], tmp_path / task))
        answers = golden.read(folder / "golden.npz").answers
        text = json.dumps(answers[0])
        key = "token" if task == "fill-mask" else "text" if task == "question-answering" else "label"
        changed = text.replace(f'"{key}": "', f'"{key}": "not ', 1)
        assert changed != text
        alter(folder, answers=[json.loads(changed), *answers[1:]])
        with pytest.raises(CheckFailed, match="request 0: post-processing"):
            check(folder).require_ok()


def test_compare() -> None:
    def values(*numbers: float) -> np.ndarray:
        return np.array(numbers, np.float32)

    assert compare({"a": values(1, 0)}, {"a": values(1, 0)}) == (0, 1, "a")
    max_abs, cosine, worst = compare({"a": values(1, 0), "b": values(3, 4)}, {"a": values(1, 0), "b": values(4, 3)})
    assert (max_abs, worst) == (1, "b") and cosine == pytest.approx(24 / 25)
    assert compare({"a": values(0, 0)}, {"a": values(0, 0)})[1] == 1
    assert compare({"a": values(0, 0)}, {"a": values(0, 1)})[1] == 0
    assert compare({"a": values(1)}, {"a": values(1, 1)})[1] == -1
    assert compare({"a": values(1)}, {"b": values(1)})[1] == -1
    assert compare({"a": values(1)}, {"a": values(np.inf)})[0] > 1e38
