"""An aligned model as bundles: one graph with its adapter, in float and in int8, that answers as torch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from edgec_runtime import load
from edgec_runtime.check import check
from test_align import FEW, TAGS, context, wide
from tiny_models import SENTENCES, tiny

from edgec.exporter import FP32, Exporter
from edgec.models import load_build, load_model, save_build
from edgec.models.torch_model import torch_model
from edgec.passes import Align, Quantize, run_pass
from edgec.state import ModelState
from edgec.target import Target

STEP: dict[str, Any] = {**FEW, "units": 64, "phases": (2, 3)}


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    """A tagger with a window of five, float, as a build gives it back."""
    folder = tmp_path_factory.mktemp("aligned")
    before = load_model(tiny("bert", "feature-extraction", folder / "small", num_hidden_layers=1))
    large = tiny("bert", "feature-extraction", folder / "large", 1, num_hidden_layers=1, **wide("bert"))
    save_build(run_pass(Align(large=str(large), task=TAGS, **STEP), before, context(folder)), folder / "build")
    return load_build(folder / "build")


def int8_layers(bundle: Path) -> set[str]:
    """The modules whose products are integer."""
    (file,) = bundle.glob("*.onnx")
    nodes = onnx.load(str(file), load_external_data=False).graph.node
    return {node.name.rpartition("/")[0] for node in nodes if node.op_type == "MatMulIntegerToFloat"}


def test_in_float_and_then_quantized(aligned: ModelState, here: Target, tmp_path: Path) -> None:
    state = run_pass(Quantize(), aligned, context(tmp_path))
    exporter = Exporter(state, name="aligned")
    exporter.write(tmp_path / "fp32", here, precision=FP32)
    exporter.write(tmp_path / "int8", here)
    assert check(tmp_path / "fp32").ok and check(tmp_path / "int8").ok
    assert {"adapter.hidden", "adapter.output"} <= int8_layers(tmp_path / "int8")
    expected = torch_model(aligned).raw(SENTENCES)
    with load(tmp_path / "fp32") as model:
        for found, wanted in zip(model.raw(SENTENCES), expected, strict=True):
            np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-4)
    # A text's answer is the same alone and in any batch: the longest text pads all others.
    for name in ("fp32", "int8"):
        with load(tmp_path / name, schedule="batches") as together, load(tmp_path / name, schedule="streams") as alone:
            for one, other in zip(together.raw(SENTENCES), alone.raw(SENTENCES), strict=True):
                np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-4)


def test_on_an_int8_model_of_a_family_with_another_opset(here: Target, tmp_path: Path) -> None:
    """ModernBERT's graph has no Gelu operator, and every layer of it stays in int8, the adapter's with them."""
    before = load_model(tiny("modernbert", "feature-extraction", tmp_path / "small", num_hidden_layers=1))
    large = tiny("modernbert", "feature-extraction", tmp_path / "large", 1, num_hidden_layers=1, **wide("modernbert"))
    int8 = run_pass(Quantize(), before, context(tmp_path))
    after = run_pass(Align(large=str(large), task=TAGS, window=3, **STEP), int8, context(tmp_path))
    Exporter(after, name="aligned").write(tmp_path / "bundle", here)
    assert check(tmp_path / "bundle").ok
    assert {"adapter.hidden", "adapter.output", "model.head.dense"} <= int8_layers(tmp_path / "bundle")


def test_two_texts_of_one_batch(aligned: ModelState) -> None:
    """In torch, too: zeros stand behind a text, whatever the encoder makes of padding."""
    part: Any = aligned.parts["encoder"]
    ids = torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with torch.inference_mode():
        together, alone = part(ids, mask)[0], part(ids[1:, :4], mask[1:, :4])[0]
    torch.testing.assert_close(together[1, :4], alone[0], atol=1e-5, rtol=0)
