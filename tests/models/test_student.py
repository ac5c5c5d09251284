"""Students before they learn: which layers they have, what they take over, how large they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny

from edgec.errors import UserError
from edgec.models import load_model
from edgec.models.student import encoder_parameters, evenly, from_config, from_layers
from edgec.state import ModelState


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    folder = tmp_path_factory.mktemp("teacher") / "model"
    return load_model(tiny("bert", "text-classification", folder, num_hidden_layers=3))


def tensors(state: ModelState) -> dict[str, torch.Tensor]:
    return dict(state.parts["encoder"].state_dict())


def test_layers_are_those_of_the_model(teacher: ModelState) -> None:
    student = from_layers(teacher, (2, 0))
    mine, yours = tensors(student), tensors(teacher)
    for name, tensor in mine.items():
        source = name.replace("layer.0.", "layer.X.").replace("layer.1.", "layer.0.").replace("layer.X.", "layer.2.")
        assert torch.equal(tensor, yours[source])
    assert student.parts["encoder"].model.config.num_hidden_layers == 2
    assert len(mine) < len(yours)


@pytest.mark.parametrize(
    ("count", "kept", "layers"),
    [(12, 6, (0, 2, 4, 7, 9, 11)), (6, 2, (0, 5)), (6, 3, (0, 2, 5)), (6, 1, (0,)), (3, 3, (0, 1, 2))],
)
def test_layers_are_kept_evenly(count: int, kept: int, layers: tuple[int, ...]) -> None:
    assert evenly(count, kept) == layers


def test_a_configuration_takes_over_what_fits(teacher: ModelState) -> None:
    shallow = {"num_hidden_layers": 1, "intermediate_size": 48}
    student, taken = from_config(teacher, shallow, seed=1)
    mine, yours = tensors(student), tensors(teacher)
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
    below = {f"model.bert.embeddings.{name}.weight" for name in tables} | {"model.bert.embeddings.LayerNorm.bias"}
    assert set(taken["below_the_layers"]) == below and taken["head"] is True
    for name in [*below, "model.classifier.weight", "model.bert.pooler.dense.bias"]:
        assert torch.equal(mine[name], yours[name]), name
    inner = "model.bert.encoder.layer.0.intermediate.dense.weight"
    assert mine[inner].shape == (48, 32)
    again, others = (tensors(from_config(teacher, shallow, seed)[0])[inner] for seed in (1, 2))
    assert torch.equal(again, mine[inner]) and not torch.equal(others, mine[inner])


def test_a_narrower_configuration_takes_over_nothing(teacher: ModelState) -> None:
    student, taken = from_config(teacher, {"hidden_size": 16}, seed=1)
    assert taken == {"below_the_layers": [], "head": False}
    assert tensors(student)["model.bert.encoder.layer.2.output.dense.weight"].shape == (16, 64)


def test_settings_go_by_the_names_that_all_families_share(tmp_path: Path) -> None:
    state = load_model(tiny("distilbert", "text-classification", tmp_path))
    student, _ = from_config(state, {"hidden_size": 16, "num_hidden_layers": 1}, seed=0)
    assert tensors(student)["model.distilbert.transformer.layer.0.ffn.lin2.weight"].shape == (16, 64)
    assert not any(".layer.1." in name for name in tensors(student))


def test_a_tied_output_layer_is_of_the_vocabulary(tmp_path: Path) -> None:
    part: Any = load_model(tiny("bert", "fill-mask", tmp_path)).parts["encoder"]
    whole, encoder = encoder_parameters(part)
    assert whole == sum(p.numel() for p in part.parameters())
    inside = sum(p.numel() for p in part.model.bert.parameters()) - part.model.get_input_embeddings().weight.numel()
    assert encoder == inside


def test_the_lowest_layer_of_modernbert_stays_the_lowest(tmp_path: Path) -> None:
    state = load_model(tiny("modernbert", "text-classification", tmp_path))
    with pytest.raises(UserError, match="lowest layer of modernbert") as caught:
        from_layers(state, (1,))
    assert "[0, 1]" in caught.value.hint
