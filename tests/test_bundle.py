"""A bundle on disk: the same bytes every time, whole or not there, and the same answer alone and in company."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import edgec_runtime
import numpy as np
import onnx_ir as ir
import pytest
from edgec_runtime import integrity
from edgec_runtime.check import check
from edgec_runtime.errors import EngineFailed
from edgec_runtime.manifest import Quality
from second_process import SecondExport, serialized
from tiny_models import SENTENCES

from edgec import bundle
from edgec.errors import OutputExists, SystemFailure
from edgec.exporter import FP32, Exporter
from edgec.state import LayerQuantization, Quantization
from edgec.target import Target

FILES = ["LICENSES", "README.md", "encoder.onnx", "encoder.onnx.data", "golden.npz", "manifest.json", "tokenizer.json"]


@pytest.fixture(scope="module")
def static(exporter: Exporter, here: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("bundle") / "static"
    exporter.write(folder, here)
    return folder


def _dynamic(exporter: Exporter) -> Exporter:
    assert exporter.state.quantization is not None
    kinds = {
        key: LayerQuantization(layer.kind, "dynamic-tensor")
        for key, layer in exporter.state.quantization.layers.items()
    }
    return exporter.of(dataclasses.replace(exporter.state, quantization=Quantization("dynamic", kinds)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_another_process_writes_the_same_bytes(static: Path, second_export: SecondExport) -> None:
    here, there = contents(static), contents(second_export.bundle)
    assert list(here) == list(there) == FILES
    assert [name for name in here if here[name] != there[name]] == []


def test_another_process_traces_the_same_bytes(exporter: Exporter, second_export: SecondExport) -> None:
    assert second_export.traced == serialized(exporter.traced)


def test_an_export_says_nothing_by_itself(second_export: SecondExport) -> None:
    assert second_export.said == ""


def test_the_same_exporter_writes_the_same_bytes(
    static: Path, exporter: Exporter, here: Target, tmp_path: Path
) -> None:
    exporter.write(tmp_path / "deep" / "again", here)
    assert contents(tmp_path / "deep" / "again") == contents(static)


def test_no_file_tells_where_it_was_made(static: Path) -> None:
    source = json.loads((static / "manifest.json").read_text())["source"]["model"]
    for name, data in contents(static).items():
        assert b"site-packages" not in data, name
        # The source is what the user gave; nothing else names a folder of this machine.
        assert data.replace(source.encode(), b"").find(str(static.parents[1]).encode()) == -1, name


def test_every_file_is_listed_with_its_hash(static: Path) -> None:
    manifest = integrity.read_manifest(static)
    data = contents(static)
    del data["manifest.json"]
    listed = {f.path: (f.sha256, f.bytes) for f in manifest.files}
    assert listed == {name: (hashlib.sha256(content).hexdigest(), len(content)) for name, content in data.items()}
    assert manifest.total_bytes == sum(map(len, data.values()))


def test_versions_name_what_decides_the_bytes(static: Path) -> None:
    import onnx
    import torch

    versions = integrity.read_manifest(static).versions
    assert set(versions) == {
        *("edgec", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "tokenizers", "numpy"),
        "python",
    }
    assert versions["onnx"] == onnx.__version__
    assert versions["torch"] == torch.__version__.partition("+")[0]  # a CPU build is the same torch


@pytest.mark.filterwarnings("ignore::edgec_runtime.TruncationWarning")
def test_golden_vectors_are_the_answers_of_the_written_graph(static: Path, exporter: Exporter) -> None:
    with edgec_runtime.load(static, schedule="streams") as model:
        answers = np.stack([model.raw([text])[0]["sentence_embedding"] for text in exporter.requests])
    found = check(static)
    assert found.max_abs == 0 and found.ok
    golden = integrity.read_manifest(static).golden
    assert golden.max_abs == pytest.approx(0.03 * np.abs(answers).max(), rel=0.12)
    assert golden.max_abs >= 0.03 * np.abs(answers).max()


def test_the_readme_says_how_to_run_it(static: Path) -> None:
    text = (static / "README.md").read_text()
    code = text.split("## From Python")[1].split("\n`python -m")[0]
    lines = [line[4:] for line in code.splitlines() if line.startswith("    ") and "pip install" not in line]
    script = "\n".join(lines).replace("path/to/this/folder", str(static))
    names: dict[str, object] = {}
    exec(script, names)
    assert names["vectors"].shape == (2, 32)  # type: ignore[attr-defined]
    assert "float32 (batch, 32)" in text


def test_licences(static: Path) -> None:
    text = (static / "LICENSES").read_text()
    manifest = integrity.read_manifest(static)
    assert manifest.source.sha256 is not None and manifest.source.sha256 in text
    assert "not stated by the model's card" in text and "converted and quantized to int8" in text


def test_the_models_own_licence_files_are_in_the_bundle(exporter: Exporter, here: Target, tmp_path: Path) -> None:
    theirs = "LICENSE:\n\nAs you like it, Zürich.\n"
    licensed = copy.copy(exporter)
    licensed.state = dataclasses.replace(
        exporter.state, spec=dataclasses.replace(exporter.state.spec, license_text=theirs)
    )
    licensed.write(tmp_path / "bundle", here)
    text = (tmp_path / "bundle" / "LICENSES").read_text(encoding="utf-8")
    assert text.endswith(f"Apache License 2.0.\n\n{theirs}")


@pytest.mark.parametrize("step", ["write_graph", "license_notes", "versions", "_listing"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_half_a_bundle_is_no_bundle(
    step: str, error: BaseException, exporter: Exporter, here: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(bundle, step, fail)
    with pytest.raises(SystemFailure if isinstance(error, OSError) else KeyboardInterrupt):
        exporter.write(tmp_path / "bundle", here)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_the_runtime_refuses_makes_no_bundle(exporter: Exporter, here: Target, tmp_path: Path) -> None:
    broken = ir.from_proto(ir.to_proto(exporter.float_graph))  # a clone would share its types
    broken.graph.inputs[0].dtype = ir.DataType.STRING
    other = copy.copy(exporter)
    other.float_graphs = {"encoder": broken}
    with pytest.raises(EngineFailed):
        other.write(tmp_path / "bundle", here, precision=FP32)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_replaced_when_asked(
    static: Path, exporter: Exporter, here: Target, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(static, tmp_path / "bundle"))
    with pytest.raises(OutputExists):
        exporter.write(folder, here, precision=FP32)
    assert contents(folder) == contents(static)
    exporter.write(folder, here, precision=FP32, force=True)
    assert integrity.read_manifest(folder).parts[0].precision == "fp32"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_measurements_are_put_in_afterwards(static: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(static, tmp_path / "bundle"))
    before = integrity.read_manifest(folder)
    quality = Quality("cosine", 1.0, 0.99, 0.01, 7)
    returned = bundle.annotate(folder, quality=quality)
    after = integrity.read_manifest(folder)
    assert after == returned == dataclasses.replace(before, quality=quality).sealed()
    bundle.annotate(folder, measured=True, schedule="batches")
    last = integrity.read_manifest(folder)
    assert (last.measured, last.execution.schedule, last.quality) == (True, "batches", quality)
    assert last.files == before.files and last.build_id == before.build_id
    assert sorted(path.name for path in folder.iterdir()) == FILES
    with edgec_runtime.load(folder) as model:
        assert model.runner.schedule == "batches"
    assert check(folder).ok


def test_an_annotation_is_whole_or_absent(static: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(static, tmp_path / "bundle"))

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        bundle.annotate(folder, measured=True)
    monkeypatch.undo()
    assert (folder / "manifest.json").read_bytes() == (static / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 1e-6), (0.0312, 0.032), (0.03, 0.03), (1.01e-5, 1.1e-5), (99.1, 100.0), (7, 7)]
)
def test_limits_are_rounded_up_to_two_digits(value: float, expected: float) -> None:
    assert bundle._round_up(value) == expected


# The answer alone and in company.

TEXTS = [*SENTENCES, "a", "the new engine house of Bern", *(text.upper() for text in SENTENCES)]


def _alone_and_together(folder: Path, schedule: str, threads: int) -> tuple[np.ndarray, np.ndarray]:
    with edgec_runtime.load(folder, schedule=schedule, threads=threads) as model:
        return np.concatenate([model.embed([text]) for text in TEXTS]), model.embed(TEXTS)


@pytest.mark.parametrize("threads", [1, 2])
def test_streams_answer_bit_for_bit_as_alone(static: Path, threads: int) -> None:
    alone, together = _alone_and_together(static, "streams", threads)
    np.testing.assert_array_equal(alone, together)


def test_batches_answer_as_alone_within_a_tolerance(static: Path) -> None:
    alone, together = _alone_and_together(static, "batches", 1)
    # Padding changes the last bit of a float sum, which can tip a rounding: a step of a few activations, no more.
    assert np.abs(alone - together).max() <= integrity.read_manifest(static).golden.max_abs
    cosine = (alone * together).sum(axis=1) / np.linalg.norm(alone, axis=1) / np.linalg.norm(together, axis=1)
    assert cosine.min() > 0.9999


def test_float_batches_answer_as_alone(exporter: Exporter, here: Target, tmp_path: Path) -> None:
    exporter.write(tmp_path / "fp32", here, precision=FP32)
    alone, together = _alone_and_together(tmp_path / "fp32", "batches", 1)
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_a_dynamic_scale_always_runs_alone(exporter: Exporter, here: Target, tmp_path: Path) -> None:
    _dynamic(exporter).write(tmp_path / "dynamic", here)
    for schedule in ("batches", "streams"):
        alone, together = _alone_and_together(tmp_path / "dynamic", schedule, 2)
        np.testing.assert_array_equal(alone, together)
    with edgec_runtime.load(tmp_path / "dynamic", schedule="batches") as model:
        assert model.runner.schedule == "streams"


def test_the_order_of_texts_changes_nothing(static: Path) -> None:
    with edgec_runtime.load(static, threads=2) as model:
        there, back = model.embed(TEXTS), model.embed(TEXTS[::-1])
    np.testing.assert_array_equal(there, back[::-1])
