"""A model pruned in every way at once, exported in fp32 and int8; the runtime answers as torch does."""

from __future__ import annotations

from pathlib import Path

import edgec_runtime
import numpy as np
import pytest
from tiny_models import LABELS, SENTENCES, tiny

from edgec.data.examples import Example
from edgec.exporter import Exporter
from edgec.models import load_model
from edgec.models.torch_model import torch_model
from edgec.passes import Prune, Quantize, run_pass
from edgec.state import PassContext, TrainingData
from edgec.target import Forms, Target

TRAIN = tuple(Example(text, label=LABELS["text-classification"][i % 3]) for i, text in enumerate(SENTENCES))


@pytest.mark.parametrize(
    ("family", "forms"), [("bert", ("packed", "qattention")), ("modernbert", ("packed",))], ids=["bert", "modernbert"]
)
@pytest.mark.filterwarnings("ignore::edgec_runtime.BundleWarning")
def test_bundles_of_a_pruned_model(family: str, forms: tuple[str, ...], here: Target, tmp_path: Path) -> None:
    state = load_model(tiny(family, "text-classification", tmp_path / "model"))
    ctx = PassContext(tmp_path, SENTENCES, data=TrainingData(train=TRAIN))
    for step in (
        Prune(structure="heads", ratio=0.4),
        Prune(structure="ffn", ratio=0.4, multiple=8, importance="taylor"),
        Prune(structure="hidden", ratio=0.25, multiple=8, importance="taylor", loss="outputs"),
        Prune(sparsity=0.3),
    ):
        state = run_pass(step, state, ctx)
    shape = state.history[2].report["shape"]["after"]
    assert shape["hidden"] == 24 and sorted(shape["heads"]) == [2, 3]
    exporter = Exporter(run_pass(Quantize(), state, ctx), name="pruned")
    with torch_model(state) as model:
        expected = model.probabilities(SENTENCES)
    exporter.write(tmp_path / "fp32", here, precision="fp32")
    with edgec_runtime.load(tmp_path / "fp32") as bundle:
        np.testing.assert_allclose(bundle.probabilities(SENTENCES), expected, atol=1e-5)
    for form in forms:
        manifest = exporter.write(tmp_path / form, here, forms=Forms(attention=form))
        assert manifest.parts[0].forms.get("attention", "packed") == form
        with edgec_runtime.load(tmp_path / form) as bundle:
            np.testing.assert_allclose(bundle.probabilities(SENTENCES), expected, atol=0.05)
