"""Hidden states and attention maps taken from a forward, against what transformers itself can be made to give."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, SENTENCES, tiny

from edgec.models import load_model
from edgec.nn.watch import watch
from edgec.training.features import Featurizer, collate


@pytest.mark.parametrize("task", ["feature-extraction", "text-classification"])
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_and_states_are_those_of_transformers(family: str, task: str, tmp_path: Path) -> None:
    # Local attention of ModernBERT shorter than the longest text, so that its layers hide keys.
    narrow = {"local_attention": 8} if family == "modernbert" else {}
    state = load_model(tiny(family, task, tmp_path, **narrow))
    part: Any = state.parts["encoder"]
    batch = collate(Featurizer(state).texts(SENTENCES), state.tokenizer.pad_token_id)
    inputs = [batch[name] for name in part.input_names]
    eager = copy.deepcopy(part.model)
    eager.set_attn_implementation("eager")
    types = {"token_type_ids": batch["token_type_ids"]} if "token_type_ids" in part.input_names else {}
    with torch.no_grad():
        plain = part(*inputs)
        with watch(part, states=True, attention=True) as seen:
            part(*(tensor[:2] for tensor in inputs))
            watched = part(*inputs)
        expected = eager(batch["input_ids"], attention_mask=batch["attention_mask"], output_attentions=True, **types)
        states = part.states(*inputs)
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    assert len(seen.states) == len(states) == 3
    assert all(torch.equal(one, other) for one, other in zip(seen.states, states, strict=True))
    real = batch["attention_mask"].bool()[:, None, :, None]
    assert len(expected.attentions) == 2
    for layer, wanted in enumerate(expected.attentions):
        found = seen.map(layer).probabilities
        assert found.shape == wanted.shape
        torch.testing.assert_close(found * real, wanted * real, atol=2e-6, rtol=0)
    if family == "modernbert":
        hidden = seen.map(1).seen
        assert hidden is not None and not hidden[3, 0, 0, 10] and hidden[3, 0, 0, 2]


def test_gradients_reach_the_weights_through_maps_and_states(tmp_path: Path) -> None:
    part: Any = load_model(tiny("bert", "feature-extraction", tmp_path)).parts["encoder"]
    ids = torch.tensor([[1, 30, 31, 2]], dtype=torch.int32)
    with watch(part, states=True, attention=True) as seen:
        part(ids, torch.ones_like(ids))
        (seen.map(1).scores.square().sum() + seen.states[1].square().sum()).backward()
    layers = part.model.encoder.layer
    assert layers[1].attention.self.query.weight.grad.abs().max() > 0
    assert layers[0].output.dense.weight.grad.abs().max() > 0
    assert layers[1].output.dense.weight.grad is None


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    part: Any = load_model(tiny("mpnet", "feature-extraction", tmp_path)).parts["encoder"]
    ids = torch.tensor([[0, 30, 31, 2]], dtype=torch.int32)
    with watch(part, states=True, attention=True) as seen:
        part(ids, torch.ones_like(ids))
    before = seen.states
    part(ids + 1, torch.ones_like(ids))
    assert seen.states is before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in part.modules())
