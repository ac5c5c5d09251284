"""lora on tiny models: what learns, what stays, and what is kept of it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, SENTENCES, tiny
from torch import nn

from edgec.data.examples import Tagged
from edgec.errors import UserError
from edgec.exporter import Exporter
from edgec.models import load_build, load_model, save_build
from edgec.nn.fuse import fusable
from edgec.passes import Finetune, FuseAdapters, Lora, Quantize, run_pass
from edgec.state import ModelState, PassContext, TrainingData

FEW: dict[str, Any] = {"steps": 2, "batch_size": 3, "learning_rate": 1e-2}
"""Far enough from B = 0 that the adapters count."""


@pytest.fixture
def tagged(tmp_path: Path) -> PassContext:
    """Sentences with a tag a word."""
    words = [tuple(text.split()) for text in SENTENCES]
    rows = tuple(Tagged(each, tuple("B-LOC" if word.istitle() else "O" for word in each)) for each in words)
    return PassContext(tmp_path, SENTENCES, data=TrainingData(rows))


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask


def outputs(state: ModelState) -> torch.Tensor:
    with torch.inference_mode():
        return state.parts["encoder"](*inputs())[0]


def plain_name(name: str) -> str:
    return name.replace(".base_layer.", ".")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_is_kept_and_fuses(family: str, tmp_path: Path, classes: PassContext) -> None:
    before = load_model(tiny(family, "feature-extraction", tmp_path / "model"))
    after = run_pass(Lora(task="text-classification", **FEW), before, classes)
    report = after.history[-1].report
    # Queries, keys and values of both layers; ModernBERT has one matrix for the three.
    assert len(report["targets"]) == (2 if family == "modernbert" else 6)
    assert len({path.rpartition(".")[2] for path in report["targets"]}) == (1 if family == "modernbert" else 3)

    save_build(after, tmp_path / "build")
    again = load_build(tmp_path / "build")
    tensors, loaded = (state.parts["encoder"].state_dict() for state in (after, again))
    assert list(tensors) == list(loaded)
    assert all(torch.equal(tensors[name], loaded[name]) for name in tensors)
    assert again.lora == after.lora
    assert all(parameter.requires_grad for parameter in again.parts["encoder"].parameters())
    assert torch.equal(outputs(again), outputs(after))

    fused = run_pass(FuseAdapters(int8=family == "modernbert"), again, classes)
    assert fused.lora is None
    assert sorted(fused.history[-1].report["fused"]) == sorted(report["targets"])
    assert list(fused.parts["encoder"].state_dict()) == [plain_name(name) for name in tensors if ".lora_" not in name]
    torch.testing.assert_close(outputs(fused), outputs(after), atol=1e-4, rtol=0)
    assert not any(parameter.grad_fn for parameter in fused.parts["encoder"].parameters())


def test_only_adapters_and_head_have_learned(encoder: ModelState, adapted: ModelState) -> None:
    before, after = (state.parts["encoder"].model for state in (encoder, adapted))
    for name, tensor in before.state_dict().items():
        kept = {plain_name(key): value for key, value in after.bert.state_dict().items()}
        assert torch.equal(kept[name], tensor), name
    report = adapted.history[-1].report
    # Six matrices with 4 * (32 + 32) values each.
    assert report["adapter_parameters"] == 6 * 4 * 64
    head = sum(p.numel() for name, p in after.named_parameters() if name.startswith(("classifier", "bert.pooler")))
    assert report["trained_parameters"] == report["adapter_parameters"] + head
    assert report["new_head"] is True and report["labels"] == ["0", "1"]


def test_adapters_that_have_learned_nothing_change_nothing(encoder: ModelState, classes: PassContext) -> None:
    head = run_pass(Finetune(task="text-classification", train="head", steps=1), encoder, classes)
    step = Lora(steps=1, learning_rate=1e-30, train_head=False)
    after = run_pass(step, head, classes)
    assert torch.equal(outputs(after), outputs(head))
    report = after.history[-1].report
    assert report["trained_parameters"] == report["adapter_parameters"] and report["new_head"] is False


def test_same_seed_same_adapters(adapted: ModelState, encoder: ModelState, classes: PassContext) -> None:
    again = run_pass(Lora(task="text-classification", r=4, alpha=6.0, **FEW), encoder, classes)
    tensors = again.parts["encoder"].state_dict()
    assert all(torch.equal(tensors[name], value) for name, value in adapted.parts["encoder"].state_dict().items())


def test_targets(encoder: ModelState, tagged: PassContext) -> None:
    step = Lora(task="token-classification", targets=("*.1.intermediate.dense", "*.0.output.dense"), **FEW)
    after = run_pass(step, encoder, tagged)
    assert after.history[-1].report["targets"] == [
        "model.bert.encoder.layer.0.output.dense",
        "model.bert.encoder.layer.1.intermediate.dense",
    ]
    assert fusable(after.parts["encoder"]) == after.history[-1].report["targets"]
    with pytest.raises(UserError, match="no linear layer of the encoder matches targets"):
        run_pass(Lora(task="token-classification", targets=("*.classifier",)), encoder, tagged)


def test_adapters_of_layers_of_other_widths_are_kept(encoder: ModelState, tmp_path: Path, classes: PassContext) -> None:
    """Adapters fit their layer, whatever config.json says of its width."""
    part = Lora(task="text-classification", targets=("*.intermediate.dense", "*.output.dense"), **FEW)
    narrow = dataclasses.replace(encoder, parts={"encoder": _narrowed(encoder)})
    after = run_pass(part, narrow, classes)
    save_build(after, tmp_path / "build")
    assert torch.equal(outputs(load_build(tmp_path / "build")), outputs(after))
    fused = run_pass(FuseAdapters(int8=False), after, classes)
    assert fused.parts["encoder"].model.bert.encoder.layer[0].intermediate.dense.weight.shape == (40, 32)


def _narrowed(state: ModelState) -> Any:
    part = copy.deepcopy(state.parts["encoder"])
    layer = part.model.encoder.layer[0]
    up, down = layer.intermediate.dense, layer.output.dense
    up.weight, up.bias, up.out_features = nn.Parameter(up.weight[:40]), nn.Parameter(up.bias[:40]), 40
    down.weight, down.in_features = nn.Parameter(down.weight[:, :40]), 40
    return part


def test_nothing_works_beside_adapters(adapted: ModelState) -> None:
    for attempt in (
        lambda: Exporter(adapted, name="tiny"),
        lambda: Quantize(scheme="dynamic").requires(adapted),
        lambda: Finetune().requires(adapted),
    ):
        with pytest.raises(UserError, match="LoRA adapters beside its weights") as refused:
            attempt()
        assert "fuse-adapters" in refused.value.hint


def test_what_lora_refuses(encoder: ModelState, adapted: ModelState, classes: PassContext) -> None:
    for wrong in ({"r": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Lora(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="LoRA adapters already"):
        run_pass(Lora(), adapted, classes)
    with pytest.raises(UserError, match="new head for text-classification"):
        run_pass(Lora(task="text-classification", train_head=False), encoder, classes)
    quantized = run_pass(Quantize(scheme="dynamic"), encoder, classes)
    with pytest.raises(UserError, match="quantized already"):
        run_pass(Lora(), quantized, classes)
    pruned = dataclasses.replace(encoder, sparse=("encoder:model.encoder.layer.0.attention.self.query.weight",))
    with pytest.raises(UserError, match="would fill its zeros"):
        run_pass(Lora(task="text-classification"), pruned, classes)
