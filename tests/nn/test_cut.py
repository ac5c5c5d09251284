"""Cut models answer as a reference does: the full model where what was cut did nothing, else a masked one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, SENTENCES, TASKS, tiny
from torch import nn

from edgec.models import load_build, load_model, save_build
from edgec.models.heads import HEADS, with_head
from edgec.nn.cut import cut_heads, cut_inner, cut_stream, heads, inner_width, shares_position_bias, stream_width
from edgec.nn.layout import layers
from edgec.state import ModelState

WIDTH, HEADS_A_LAYER, INNER = 32, 4, 64
CASES = [(family, task) for family in FAMILIES for task in TASKS]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root, known = tmp_path_factory.mktemp("cut"), {}

    def state(family: str, task: str = "token-classification", **config: Any) -> ModelState:
        key = f"{family}-{task}-{config}"
        if key not in known:
            known[key] = load_model(tiny(family, task, root / key, **config))
        return copy.copy(known[key])

    return state


def _copy(state: ModelState) -> Any:
    return copy.deepcopy(state.parts["encoder"])


def _inputs(state: ModelState) -> tuple[torch.Tensor, ...]:
    encoded = state.tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"].int(), encoded["attention_mask"].int()
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return tuple(given[name] for name in state.parts["encoder"].input_names)


@torch.no_grad()
def _outputs(part: Any, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    mask = inputs[1].bool()
    return [out[mask] if out.shape[:2] == mask.shape else out for out in part(*inputs)]


def _same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def _survives_a_build(state: ModelState, part: Any, folder: Path, inputs: tuple[torch.Tensor, ...]) -> None:
    save_build(ModelState({"encoder": part}, state.spec, state.tokenizer), folder)
    again = load_build(folder).parts["encoder"]
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in part.state_dict().items()}
    assert all(torch.equal(a, b) for a, b in zip(_outputs(again, inputs), _outputs(part, inputs), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_that_nobody_reads_are_not_missed(family: str, load: Any, tmp_path: Path) -> None:
    state = load(family)
    full, inputs = _copy(state), _inputs(state)
    size = WIDTH // HEADS_A_LAYER
    gone = [[1, 3], [1, 3]] if shares_position_bias(full) else [[1, 3], [0]]
    with torch.no_grad():
        for layer, dead in zip(layers(full), gone, strict=True):
            for head in dead:
                full.get_parameter(f"{layer.context}.weight")[:, head * size : (head + 1) * size] = 0
    part = copy.deepcopy(full)
    cut_heads(part, [[head for head in range(HEADS_A_LAYER) if head not in dead] for dead in gone])
    _same(_outputs(part, inputs), _outputs(full, inputs))
    assert [heads(part, layer) for layer in layers(part)] == [HEADS_A_LAYER - len(dead) for dead in gone]
    for layer, dead in zip(layers(part), gone, strict=True):
        context = part.get_submodule(layer.context)
        assert context.weight.shape == (WIDTH, (HEADS_A_LAYER - len(dead)) * size)
    _survives_a_build(state, part, tmp_path / "build", inputs)


def test_projections_of_positions_follow_the_heads(load: Any, tmp_path: Path) -> None:
    """DeBERTa without shared keys has two more matrices whose channels are heads."""
    state = load("deberta-v2", share_att_key=False)
    full, inputs = _copy(state), _inputs(state)
    with torch.no_grad():
        for layer in layers(full):
            full.get_parameter(f"{layer.context}.weight")[:, 8:16] = 0
    part = copy.deepcopy(full)
    cut_heads(part, [[0, 2, 3], [0, 2, 3]])
    _same(_outputs(part, inputs), _outputs(full, inputs))
    assert part.get_submodule(layers(part)[0].attention).pos_key_proj.weight.shape == (24, 32)
    _survives_a_build(state, part, tmp_path / "build", inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_channels_that_nobody_reads_are_not_missed(family: str, load: Any, tmp_path: Path) -> None:
    state = load(family)
    full, inputs = _copy(state), _inputs(state)
    kept = [list(range(0, INNER, 2)), list(range(40))]
    with torch.no_grad():
        for layer, alive in zip(layers(full), kept, strict=True):
            dead = [channel for channel in range(INNER) if channel not in alive]
            full.get_parameter(f"{layer.down}.weight")[:, dead] = 0
    part = copy.deepcopy(full)
    cut_inner(part, kept)
    _same(_outputs(part, inputs), _outputs(full, inputs))
    assert [inner_width(part, layer) for layer in layers(part)] == [32, 40]
    _survives_a_build(state, part, tmp_path / "build", inputs)


@contextmanager
def _masked(part: Any, kept: list[int]) -> Iterator[None]:
    """The full model with a narrower stream: layer norms are over these channels alone, and give 0 in the others.

    Every tensor of the stream goes through a layer norm before anything reads it, except ELECTRA's, which come from a
    projection of the embeddings.
    """

    def norm(module: nn.LayerNorm, args: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        bias = None if module.bias is None else module.bias[kept]
        result = torch.zeros_like(out)
        result[..., kept] = nn.functional.layer_norm(
            args[0][..., kept], (len(kept),), module.weight[kept], bias, module.eps
        )
        return result

    def projection(module: nn.Linear, args: object, out: torch.Tensor) -> torch.Tensor:
        return out * torch.tensor([float(channel in kept) for channel in range(WIDTH)])

    base = part.model.base_model
    scope = part if part.task == "fill-mask" else base
    with ExitStack() as stack:
        for name, module in scope.named_modules():
            hook = norm if isinstance(module, nn.LayerNorm) and module.normalized_shape == (WIDTH,) else None
            hook = projection if name.endswith("embeddings_project") else hook
            if hook is not None:
                stack.callback(module.register_forward_hook(hook).remove)
        yield


@pytest.mark.parametrize(("family", "task"), CASES)
def test_a_narrower_stream_is_the_masked_model(family: str, task: str, load: Any, tmp_path: Path) -> None:
    state = load(family, task)
    full, part, inputs = _copy(state), _copy(state), _inputs(state)
    kept = [channel for channel in range(WIDTH) if channel % 4 != 1]
    cut_stream(part, kept)
    with _masked(full, kept):
        expected = _outputs(full, inputs)
    if task == "feature-extraction":
        expected = [out[:, kept] for out in expected]
    _same(_outputs(part, inputs), expected)
    assert stream_width(part) == part.hidden_size == 24 and part.model.config.hidden_size == WIDTH
    if task == "fill-mask" and family != "deberta-v2":
        assert part.model.get_output_embeddings().weight is part.model.get_input_embeddings().weight
    _survives_a_build(state, part, tmp_path / "build", inputs)


def test_a_stream_with_unused_channels_is_normalised_otherwise(load: Any) -> None:
    """Channels that are zero everywhere count in the mean and the variance of layer norms, until they are cut."""
    state = load("bert", "feature-extraction")
    full, inputs, dead = _copy(state), _inputs(state), list(range(24, 32))
    with torch.no_grad():
        for parameter in full.model.embeddings.parameters():
            parameter[..., dead] = 0
        for layer in layers(full):
            for name, module in full.get_submodule(layer.path).named_modules():
                written = f"{layer.path}.{name}" in (layer.context, layer.down)
                for parameter in module.parameters(recurse=False):
                    if written or isinstance(module, nn.LayerNorm):
                        parameter[dead] = 0
    part = copy.deepcopy(full)
    cut_stream(part, list(range(24)))
    found, expected = _outputs(part, inputs)[0], _outputs(full, inputs)[0][:, :24]
    assert not torch.allclose(found, expected, atol=1e-2)
    with _masked(full, list(range(24))):
        _same([found], [_outputs(full, inputs)[0][:, :24]])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_head_fits_a_narrower_stream(family: str, load: Any) -> None:
    state = load(family, "feature-extraction")
    part = _copy(state)
    cut_stream(part, list(range(24)))
    narrow = ModelState({"encoder": part}, state.spec, state.tokenizer)
    for task in HEADS:
        labels = ("a", "b", "c") if "classification" in task else None
        made = with_head(narrow, task, labels=labels)
        assert torch.isfinite(_outputs(made.parts["encoder"], _inputs(made))[0]).all()


@pytest.mark.parametrize("family", ["electra", "deberta-v2"])
def test_embeddings_below_a_projection_keep_their_width(family: str, load: Any) -> None:
    state = load(family, "feature-extraction", embedding_size=16)
    part = _copy(state)
    cut_stream(part, list(range(24)))
    assert part.model.embeddings.word_embeddings.embedding_dim == 16
    projection = part.model.embeddings_project if family == "electra" else part.model.embeddings.embed_proj
    assert projection.weight.shape == (24, 16)
    assert torch.isfinite(_outputs(part, _inputs(state))[0]).all()
