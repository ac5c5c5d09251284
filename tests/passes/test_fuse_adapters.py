"""fuse-adapters on tiny models: against equation 3 by hand, against peft's own merge, and down to an int8 bundle."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import edgec_runtime
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import SENTENCES, tiny
from torch import nn
from transformers import AutoModelForMaskedLM, AutoModelForTokenClassification

from edgec.errors import ModelError, ParityError, UserError
from edgec.exporter import Exporter
from edgec.models import load_model
from edgec.nn.fuse import fusable, fuse
from edgec.passes import FuseAdapters, Quantize, run_pass
from edgec.passes.answers import answers, apart, sample_requests
from edgec.state import ModelState, PassContext
from edgec.target import Target


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask


def outputs(state: ModelState) -> torch.Tensor:
    with torch.inference_mode():
        return state.parts["encoder"](*inputs())[0]


def test_fused_weights_are_equation_3(adapted: ModelState, classes: PassContext) -> None:
    fused = run_pass(FuseAdapters(int8=False), adapted, classes)
    path = "model.bert.encoder.layer.1.attention.self.value"
    tensors = adapted.parts["encoder"].state_dict()
    a, b = tensors[f"{path}.lora_A.default.weight"], tensors[f"{path}.lora_B.default.weight"]
    assert a.shape == (4, 32) and b.abs().max() > 1e-3
    by_hand = tensors[f"{path}.base_layer.weight"] + 6.0 / 4 * (b @ a)
    layer = fused.parts["encoder"].get_submodule(path)
    assert type(layer) is nn.Linear
    torch.testing.assert_close(layer.weight, by_hand, atol=1e-6, rtol=0)
    assert torch.equal(layer.bias, tensors[f"{path}.base_layer.bias"])


def test_down_to_an_int8_bundle(adapted: ModelState, tmp_path: Path, here: Target, classes: PassContext) -> None:
    fused = run_pass(FuseAdapters(), adapted, classes)
    quantized = run_pass(Quantize(scheme="dynamic"), fused, classes)
    requests = sample_requests(adapted, SENTENCES)
    found = apart(answers(adapted, requests), answers(quantized, requests))
    # What the report of fuse-adapters foretold is what the quantized model gives.
    assert fused.history[-1].report["int8_against_adapter"] == found.to_dict()
    assert 0.95 < found.mean_cosine < 1
    Exporter(quantized, name="tiny").write(tmp_path / "bundle", here)
    with edgec_runtime.load(tmp_path / "bundle", schedule="streams") as model:
        raw = model.raw(requests[-3:])
    for mine, expected in zip(raw, answers(quantized, requests)[-3:], strict=True):
        assert abs(mine["logits"] - expected["logits"]).max() < 0.02


class Scaled(nn.Module):
    """A layer of the tests' own that can be fused. off: what it is wrong by when it is."""

    def __init__(self, layer: nn.Linear, factor: float, off: float = 0.0) -> None:
        super().__init__()
        self.layer, self.factor, self.off = layer, factor, off
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.factor

    def fuse(self) -> nn.Module:
        plain = nn.Linear(self.in_features, self.out_features)
        with torch.no_grad():
            plain.weight.copy_(self.layer.weight * (self.factor + self.off))
            plain.bias.copy_(self.layer.bias * (self.factor + self.off))
        return plain


def _scaled(state: ModelState, off: float) -> ModelState:
    part = copy.deepcopy(state.parts["encoder"])
    place = part.model.encoder.layer[0].intermediate
    place.dense = Scaled(place.dense, 0.5, off)
    return dataclasses.replace(state, parts={"encoder": part})


def test_any_module_that_owns_fuse(encoder: ModelState, classes: PassContext) -> None:
    before = _scaled(encoder, off=0.0)
    after = run_pass(FuseAdapters(int8=False), before, classes)
    assert after.history[-1].report["fused"] == ["model.encoder.layer.0.intermediate.dense"]
    assert list(after.parts["encoder"].state_dict()) == list(encoder.parts["encoder"].state_dict())
    torch.testing.assert_close(outputs(after), outputs(before), atol=1e-5, rtol=0)


def test_a_fusion_that_changes_the_answer_fails(encoder: ModelState, classes: PassContext) -> None:
    with pytest.raises(ParityError, match=r"moved the output 'sentence_embedding' by .* \(tolerance"):
        run_pass(FuseAdapters(), _scaled(encoder, off=0.01), classes)
    after = run_pass(FuseAdapters(tolerance=1.0, int8=False), _scaled(encoder, off=0.01), classes)
    assert 1e-4 < after.history[-1].report["fused_against_adapter"]["max_abs"] < 1.0


def test_nothing_to_fuse(encoder: ModelState, tmp_path: Path, classes: PassContext) -> None:
    with pytest.raises(UserError, match="no adapters to fuse"):
        run_pass(FuseAdapters(), encoder, classes)
    with pytest.raises(UserError, match="there is no folder"):
        FuseAdapters(adapter=str(tmp_path / "none")).requires_data(classes)
    with pytest.raises(ValueError, match="task and labels"):
        FuseAdapters(task="text-classification")


def _by_peft(folder: Path, model: Any, **settings: Any) -> Any:
    """An adapter with random matrices, saved by peft; the model that peft merges it into."""
    adapter = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1.1)
            elif parameter.requires_grad:  # biases and heads, too, where they are saved
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapter.save_pretrained(folder)
    return adapter.merge_and_unload().eval()


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_dora": True}, {"use_rslora": True, "bias": "lora_only", "rank_pattern": {"dense": 2}}],
    ids=str,
)
def test_an_adapter_of_pefts_own(settings: dict[str, Any], tmp_path: Path) -> None:
    source = tiny("deberta-v2", "token-classification", tmp_path / "model")
    merged = _by_peft(
        tmp_path / "adapter",
        AutoModelForTokenClassification.from_pretrained(source),
        task_type="TOKEN_CLS",
        target_modules=["query_proj", "value_proj", "dense"],
        **settings,
    )
    state = load_model(source)
    after = run_pass(FuseAdapters(adapter=str(tmp_path / "adapter")), state, PassContext(tmp_path, SENTENCES))
    tensors = after.parts["encoder"].model.state_dict()
    assert list(tensors) == list(merged.state_dict())
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, atol=1e-6, rtol=0)
    assert after.lora is None and len(after.history[-1].report["adapter_sha256"]) == 64


def test_an_adapter_that_brings_the_head(tmp_path: Path) -> None:
    source = tiny("roberta", "fill-mask", tmp_path / "model")
    labels = ("O", "B-LOC", "I-LOC")
    base = AutoModelForTokenClassification.from_pretrained(source, num_labels=3)
    merged = _by_peft(tmp_path / "adapter", base, task_type="TOKEN_CLS", target_modules=["query", "value"])
    step = FuseAdapters(adapter=str(tmp_path / "adapter"), task="token-classification", labels=labels)
    after = run_pass(step, load_model(source), PassContext(tmp_path, SENTENCES))
    assert (after.spec.task, after.spec.labels) == ("token-classification", labels)
    ids, mask = inputs()
    with torch.inference_mode():
        expected = merged(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(outputs(after)[mask == 1], expected[mask == 1], atol=1e-5, rtol=0)


def test_adapters_that_are_refused(
    encoder: ModelState, adapted: ModelState, tmp_path: Path, classes: PassContext
) -> None:
    folder = tmp_path / "adapter"
    other = tiny("bert", "fill-mask", tmp_path / "wide", hidden_size=64)
    _by_peft(folder, AutoModelForMaskedLM.from_pretrained(other), target_modules=["query"])
    step = FuseAdapters(adapter=str(folder))
    with pytest.raises(ModelError, match=r"does not fit the model: .*bert") as wrong:
        run_pass(step, encoder, classes)
    assert str(other) in wrong.value.hint
    same = load_model(tiny("bert", "fill-mask", tmp_path / "narrow"))
    with pytest.raises(ModelError, match="does not fit the model: size mismatch"):
        run_pass(step, same, classes)
    with pytest.raises(UserError, match="another is named"):
        run_pass(step, adapted, classes)

    config = json.loads((folder / "adapter_config.json").read_text())
    for change, message in (
        ({"peft_type": "IA3"}, "of the kind IA3"),
        ({"init_lora_weights": "pissa"}, "changed the model's own weights"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is not supported"),
        ({"target_modules": ["nowhere"]}, "does not fit the model"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=message):
            run_pass(step, same, classes)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"holds no adapter_model\.safetensors"):
        run_pass(step, same, classes)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no adapter_config\.json"):
        run_pass(step, same, classes)


def test_fuse_goes_on_below_what_it_has_fused() -> None:
    """A fusable layer around another."""
    inner = nn.Linear(4, 4)
    root = nn.Sequential(Scaled(Scaled(inner, 2.0), 3.0))  # type: ignore[arg-type]
    assert fusable(root) == ["0"]

    class Around(Scaled):
        def fuse(self) -> nn.Module:
            return Scaled(self.layer, 1.0)

    root = nn.Sequential(Around(inner, 1.0))
    x = torch.ones(1, 4)
    expected = root(x)
    assert fuse(root) == ["0"]
    assert type(root[0]) is nn.Linear
    torch.testing.assert_close(root(x), expected)
