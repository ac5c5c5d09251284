"""Zeros: which, how many, and that training leaves them; what prune refuses."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, LABELS, SENTENCES, tiny
from torch import nn

from edgec.data.examples import Example
from edgec.errors import DataError, RecipeError, UserError
from edgec.models import load_build, load_model, save_build
from edgec.passes import PASSES, Finetune, Prune, run_pass
from edgec.passes.prune_magnitude import zero_smallest
from edgec.recipe import check_passes, load_recipe
from edgec.state import ModelState, PassContext, Quantization, TrainingData

TRAIN = tuple(Example(text, label=LABELS["text-classification"][i % 3]) for i, text in enumerate(SENTENCES * 2))


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelState]:
    root = tmp_path_factory.mktemp("prune")
    return {family: load_model(tiny(family, "text-classification", root / family)) for family in FAMILIES}


@pytest.fixture
def ctx(tmp_path: Path) -> PassContext:
    return PassContext(tmp_path, SENTENCES, data=TrainingData(train=TRAIN))


def _matrices(state: ModelState) -> dict[str, torch.Tensor]:
    """The matrices of the encoder's layers, by the names that transformers gives them."""
    stacks = ("encoder.layer.", "transformer.layer.", "model.layers.")
    return {
        name: tensor
        for name, tensor in state.parts["encoder"].named_parameters()
        if tensor.ndim == 2 and any(stack in name for stack in stacks)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smallest_weights_become_zero(family: str, states: dict[str, ModelState], ctx: PassContext) -> None:
    after = run_pass(Prune(sparsity=0.3), states[family], ctx)
    before, found = _matrices(states[family]), _matrices(after)
    everything = np.concatenate([tensor.detach().numpy().ravel() for tensor in before.values()])
    limit = np.sort(np.abs(everything))[round(0.3 * everything.size)]
    for name, tensor in before.items():
        assert torch.equal(found[name], torch.where(tensor.abs() < float(limit), 0.0, tensor)), name
    others = set(dict(after.parts["encoder"].named_parameters())) - set(found)
    for name in others:
        assert torch.equal(
            after.parts["encoder"].get_parameter(name), states[family].parts["encoder"].get_parameter(name)
        )
    assert set(after.sparse) == {f"encoder:{name}" for name in found}
    report = after.history[-1].report
    assert report["weights"] == everything.size and report["zeros"] == round(0.3 * everything.size)
    assert report["sparsity_by_layer"] == {
        name: pytest.approx(float((tensor == 0).float().mean()), abs=1e-6) for name, tensor in found.items()
    }
    assert any("embeddings" in key for key in report["left_alone"]) and any(
        "classifier" in key for key in report["left_alone"]
    )
    assert "zeros alone do not make a CPU faster" in report["note"]


@pytest.mark.parametrize("sparsity", [0.1, 0.33, 0.5, 0.7, 0.9])
def test_each_matrix_apart(states: dict[str, ModelState], ctx: PassContext, sparsity: float) -> None:
    after = run_pass(Prune(sparsity=sparsity, scope="layer"), states["bert"], ctx)
    for tensor in _matrices(after).values():
        assert int((tensor == 0).sum()) == round(sparsity * tensor.numel())


def test_of_equal_weights_only_as_many_as_asked() -> None:
    ones = {"a": nn.Parameter(torch.ones(4, 5)), "b": nn.Parameter(-torch.ones(10))}
    assert zero_smallest(ones, 0.5, "global") == {"a": 0.75, "b": 0.0}
    mixed = {"a": nn.Parameter(torch.tensor([0.0, 0.0, 3.0, -1.0, 2.0, -1.0]))}
    zero_smallest(mixed, 0.5, "layer")
    assert mixed["a"].tolist() == [0, 0, 3, 0, 2, -1]


def test_size_after_compression(states: dict[str, ModelState], ctx: PassContext, tmp_path: Path) -> None:
    state = states["roberta"]
    after = run_pass(Prune(sparsity=0.9), state, ctx)
    found = after.history[-1].report["weight_file"]
    for one, key in ((state, "compressed_bytes_before"), (after, "compressed_bytes")):
        save_build(one, tmp_path / key)
        content = (tmp_path / key / "model.safetensors").read_bytes()
        assert found[key] == pytest.approx(len(zlib.compress(content, 6)), abs=64)
        assert found["bytes"] == len(content)
    assert found["compressed_bytes"] < 0.8 * found["compressed_bytes_before"]
    assert load_build(tmp_path / "compressed_bytes").sparse == after.sparse
    assert not (tmp_path / "weights").exists()


def test_more_zeros_in_a_second_pass(states: dict[str, ModelState], ctx: PassContext) -> None:
    once = run_pass(Prune(sparsity=0.3), states["bert"], ctx)
    twice = run_pass(Prune(sparsity=0.6), once, ctx)
    assert twice.sparse == once.sparse
    for name, tensor in _matrices(once).items():
        assert not _matrices(twice)[name][tensor == 0].any()
    assert twice.history[-1].report["sparsity"] == pytest.approx(0.6, abs=1e-4)


def test_zeros_outlive_training(states: dict[str, ModelState], ctx: PassContext) -> None:
    pruned = run_pass(Prune(sparsity=0.5), states["bert"], ctx)
    trained = run_pass(Finetune(steps=3, batch_size=4, learning_rate=1e-2, warmup=0.0), pruned, ctx)
    for name, tensor in _matrices(pruned).items():
        now = _matrices(trained)[name]
        assert not now[tensor == 0].any(), name
        assert not torch.equal(now, tensor), name
    # Without the pass nothing is held.
    free = run_pass(Finetune(steps=1, batch_size=4, learning_rate=1e-2, warmup=0.0), replace(pruned, sparse=()), ctx)
    name, tensor = next(iter(_matrices(pruned).items()))
    assert _matrices(free)[name][tensor == 0].any()


def test_zeros_outlive_a_new_head(ctx: PassContext, tmp_path: Path) -> None:
    """Pruned before fine-tuning: the encoder's parameters have other names in the model with the head."""
    source = load_model(tiny("bert", "feature-extraction", tmp_path / "model"))
    pruned = run_pass(Prune(sparsity=0.5), source, ctx)
    trained = run_pass(Finetune(task="text-classification", steps=2, batch_size=4, learning_rate=1e-2), pruned, ctx)
    before, after = _matrices(pruned), _matrices(trained)
    assert sorted(after) == sorted(name.replace("model.", "model.bert.", 1) for name in before)
    assert not any(after[name.replace("model.", "model.bert.", 1)][before[name] == 0].any() for name in before)


def test_a_quantized_model_or_one_with_adapters_is_refused(states: dict[str, ModelState]) -> None:
    step = Prune(sparsity=0.5)
    with pytest.raises(UserError, match="quantized already"):
        step.requires(replace(states["bert"], quantization=Quantization("static", {})))
    with pytest.raises(UserError, match="LoRA adapters"):
        step.requires(replace(states["bert"], lora={"r": 4}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give sparsity, the share of the weights to zero, between 0.1 and 0.95"),
        ({"sparsity": 0.96}, "sparsity should be between 0.1 and 0.95, not 0.96"),
        ({"sparsity": 0.05}, "not 0.05"),
        ({"sparsity": 0.5, "scope": "shared"}, "single weights have no namesakes"),
        ({"sparsity": 0.5, "ratio": 0.5}, "ratio is an option of structure heads, ffn, layers, hidden, not of none"),
        ({"structure": "heads", "sparsity": 0.5, "ratio": 0.5}, "sparsity is an option of structure none"),
        ({"structure": "heads"}, "give either ratio"),
        ({"structure": "heads", "ratio": 0.5, "keep": 2}, "give either ratio"),
        ({"structure": "ffn", "ratio": 1.0}, "ratio should be above 0 and below 1"),
        ({"structure": "ffn", "keep": 0}, "keep should be at least 1"),
        ({"structure": "hidden", "ratio": 0.5, "scope": "layer"}, "scope is an option of structure none, heads, ffn"),
        ({"structure": "heads", "ratio": 0.5, "multiple": 8}, "multiple is an option of structure ffn, hidden"),
        ({"structure": "heads", "ratio": 0.5, "loss": "outputs"}, "loss is for importance: taylor"),
        ({"structure": "layers", "select": (2, 1)}, "in ascending order"),
        ({"structure": "layers", "select": (0, 1), "keep": 2}, "leave ratio and keep out"),
        ({"structure": "layers", "keep": 1, "importance": "taylor"}, "importance is an option of structure heads"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prune(**options)


def test_from_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    text = (
        "edgec: 1\nmodel: {source: some/model}\ntargets: [arm64]\npasses:\n  - prune: {structure: layers, select: %s}\n"
    )
    recipe.write_text(text % "[0, 2]")
    assert check_passes(load_recipe(recipe), PASSES) == (Prune(structure="layers", select=(0, 2)),)
    recipe.write_text(text % "often")
    with pytest.raises(
        RecipeError, match=r"passes\.0\.prune\.select: should be similarity or first or evenly or a list"
    ):
        check_passes(load_recipe(recipe), PASSES)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Prune(structure="heads", ratio=0.5, importance="taylor"), "needs labelled rows"),
        (Prune(structure="heads", ratio=0.5, importance="taylor", loss="outputs"), "needs texts"),
        (Prune(structure="layers", keep=1), "select: similarity needs texts"),
    ],
)
def test_data_that_is_missing(step: Prune, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        step.requires_data(PassContext(tmp_path))
    step.requires_data(PassContext(tmp_path, data=TrainingData(train=TRAIN)))
    Prune(structure="layers", keep=1, select="first").requires_data(PassContext(tmp_path))
