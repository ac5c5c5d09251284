"""The head of a task on an encoder that was made for another."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from edgec.errors import ModelError, UserError
from edgec.models.part import make_part
from edgec.models.skeleton import empty_model
from edgec.nn.layout import base_path
from edgec.nn.parts import Part
from edgec.nn.resize import heads_follow, take_shapes
from edgec.state import ModelState

HEADS = ("text-classification", "token-classification", "question-answering", "feature-extraction")
"""Tasks that a head can be trained for."""


def with_head(
    state: ModelState,
    task: str,
    *,
    labels: Sequence[str] | None = None,
    multi_label: bool = False,
    pairs: bool = True,
    seed: int = 0,
) -> ModelState:
    """A copy of `state` for `task`: the same encoder, and a head with new weights where the old one is another's.

    labels: of the classification tasks, in the order of their outputs. multi_label: a text may have several. seed: of
    the new weights. A head that fits (same task, same labels) is kept. Raises UserError for a task without a head and
    for a quantized model.
    """
    if task not in HEADS:
        raise UserError(f"there is no head to train for {task}", f"tasks are {', '.join(HEADS)}")
    if state.quantization is not None:
        raise UserError("the model is quantized, and a head is trained in float", "quantize after training")
    part = state.parts["encoder"]
    assert isinstance(part, Part)
    named = tuple(labels) if labels is not None else None
    spec = dataclasses.replace(
        state.spec,
        task=task,
        labels=named,
        multi_label=multi_label and task == "text-classification",
        pairs=task == "question-answering" or (task == "text-classification" and pairs),
        pooling=(state.spec.pooling or "mean") if task == "feature-extraction" else None,
        normalize=state.spec.normalize and task == "feature-extraction",
        prompts=state.spec.prompts if task == "feature-extraction" else {},
        default_prompt=state.spec.default_prompt if task == "feature-extraction" else None,
    )
    if (task, named, spec.multi_label) == (state.spec.task, state.spec.labels, state.spec.multi_label):
        return dataclasses.replace(state, spec=spec, parts={"encoder": copy.deepcopy(part)})
    made = _new(part, spec, seed)
    sparse = tuple(moved(state.sparse, part, made).values())
    return dataclasses.replace(state, spec=spec, parts={"encoder": made}, sparse=sparse)


def moved(keys: Iterable[str], before: Part, after: Part) -> dict[str, str]:
    """What `keys`, "PART:PATH", of the encoder of `before` are called in `after`, which has another head. Those of the
    head are left out."""
    old, new = (f"encoder:{base_path(part)}." for part in (before, after))
    inside = (key for key in keys if key.startswith(old) and ".pooler." not in f"{key}.")
    return {key: new + key.removeprefix(old) for key in inside}


def _new(part: Part, spec: Any, seed: int) -> Part:
    if part.adapter is not None:
        raise UserError("the model has an alignment adapter, which was made for its head", "train the head before")
    if part.seam is not None:
        raise UserError("the model is decoupled, and was trained for its head", "train the head before decouple")
    config = copy.deepcopy(part.model.config)
    config.problem_type = "multi_label_classification" if spec.multi_label else None
    if spec.labels is not None:
        config.id2label = dict(enumerate(spec.labels))
        config.label2id = {label: index for index, label in enumerate(spec.labels)}
    elif spec.task == "question-answering":
        config.id2label = {0: "LABEL_0", 1: "LABEL_1"}  # start and end
        config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = empty_model(config, spec.task, initialised=True)
    made = make_part(model, spec)
    old, new = part.get_submodule(base_path(part)), made.get_submodule(base_path(made))
    tensors = {name: tensor for name, tensor in old.state_dict().items() if not name.startswith("pooler.")}
    take_shapes(new, tensors)
    result = new.load_state_dict(tensors, strict=False)
    lost = [name for name in (*result.missing_keys, *result.unexpected_keys) if not name.startswith("pooler.")]
    if lost:
        raise ModelError(f"the encoder does not fit a model for {spec.task}: {', '.join(lost[:5])}")
    _resize_head(made)
    heads_follow(made)
    made.model.config.architectures = [type(model).__name__]
    return made


def _resize_head(part: Part) -> None:
    """Where the encoder is narrower than its configuration says, the head's inputs are too."""
    width, declared = part.hidden_size, int(part.model.config.hidden_size)
    if width == declared:
        return
    base = base_path(part)
    outside = {
        name: parameter
        for name, parameter in part.named_parameters()
        if not name.startswith(f"{base}.") or ".pooler." in name
    }
    with torch.no_grad():
        shapes = {
            name: parameter[tuple(slice(0, width if size == declared else size) for size in parameter.shape)].clone()
            for name, parameter in outside.items()
        }
        take_shapes(part, shapes)
        part.load_state_dict(shapes, strict=False)
