"""A head that is applied by itself answers as the whole transformers model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, SENTENCES, TASKS, tiny

from edgec.errors import ModelError
from edgec.models import load_model
from edgec.nn.alignment import AlignmentAdapter
from edgec.nn.heads import defer_pooler, head_outputs


def _batch(state: object, part: object) -> list[torch.Tensor]:
    encoded = state.tokenizer(list(SENTENCES), padding=True, return_tensors="pt")  # type: ignore[attr-defined]
    return [encoded[name].int() for name in part.input_names]  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", [task for task in TASKS if task != "fill-mask"])
@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_and_head_apart_answer_as_the_whole(family: str, task: str, tmp_path: Path) -> None:
    state = load_model(tiny(family, task, tmp_path / "model"))
    part = state.parts["encoder"]
    inputs = _batch(state, part)
    with torch.inference_mode():
        # transformers' own forward, not the part's.
        whole = part.model(**part.model_inputs(*inputs, *[None] * (3 - len(inputs))))
        names = ("last_hidden_state",) if task == "feature-extraction" else part.output_names
        expected = [whole[name] for name in names]
        states = part.encoded(*inputs)
        assert all(map(torch.equal, head_outputs(part.model, task, states, inputs[1]), expected))
        defer_pooler(part.model)
        states = part.encoded(*inputs)
        assert all(map(torch.equal, head_outputs(part.model, task, states, inputs[1]), expected))


def test_mean_pooling_of_modernbert_counts_tokens_alone(tmp_path: Path) -> None:
    folder = tiny("modernbert", "text-classification", tmp_path / "model", classifier_pooling="mean")
    part = load_model(folder).parts["encoder"]
    states, mask = torch.randn(2, 5, 32), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.int32)
    with torch.inference_mode():
        (together,) = head_outputs(part.model, "text-classification", states, mask)
        (alone,) = head_outputs(part.model, "text-classification", states[1:, :2], mask[1:, :2])
    torch.testing.assert_close(together[1:], alone)


def test_names_of_tensors_outlive_a_deferred_pooler(tmp_path: Path) -> None:
    part = load_model(tiny("bert", "text-classification", tmp_path / "model")).parts["encoder"]
    before = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    part.attach(AlignmentAdapter(32, 32, window=3, units=8))
    after = part.state_dict()
    assert {name for name in after if not name.startswith("adapter.")} == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_fill_mask_takes_no_adapter(tmp_path: Path) -> None:
    part = load_model(tiny("bert", "fill-mask", tmp_path / "model")).parts["encoder"]
    with pytest.raises(ModelError, match="fill-mask takes no alignment adapter"):
        part.attach(AlignmentAdapter(32, 32))
    with pytest.raises(ModelError, match="the head of fill-mask cannot be taken apart"):
        head_outputs(part.model, "fill-mask", torch.zeros(1, 2, 32), torch.ones(1, 2))
