"""Smaller models that a larger one can teach: some of its layers, another configuration, or another model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from edgec.errors import ModelError, UserError
from edgec.models.heads import with_head
from edgec.models.load import load_model
from edgec.models.part import make_part
from edgec.models.skeleton import empty_model
from edgec.nn.layout import depth, keep_layers, layers, stack_path
from edgec.resources import suggestion
from edgec.state import ModelState

_SHARED: Final = frozenset(
    {
        "model_type", "architectures", "vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id",
        "eos_token_id", "cls_token_id", "sep_token_id", "type_vocab_size", "id2label", "label2id", "num_labels",
        "problem_type",
    }
)  # fmt: skip
"""Settings in which student and teacher cannot differ: both read the same rows and give the same outputs."""

_SIZES: Final = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "hidden_dim")

_DERIVED: Final = {"layer_types": "num_hidden_layers", "pooler_hidden_size": "hidden_size"}
"""Settings that follow from another one where that is given."""


def from_layers(state: ModelState, kept: Sequence[int]) -> ModelState:
    """A copy of `state` with these encoder layers, 0 the lowest, in this order. Raises UserError for one that is not
    there."""
    part = copy.deepcopy(state.parts["encoder"])
    count, stack = len(layers(part)), stack_path(part)
    if not kept or max(kept) >= count or min(kept) < 0 or len(set(kept)) != len(kept):
        raise UserError(
            f"the layers {list(kept)} cannot be kept of {count}", f"name each at most once, from 0 to {count - 1}"
        )
    keep_layers(part, tuple(kept))
    places = {f"encoder:{stack}.{old}.": f"encoder:{stack}.{new}." for new, old in enumerate(kept)}
    sparse = []
    for name in state.sparse:
        if not name.startswith(f"encoder:{stack}."):
            sparse.append(name)
        sparse += [new + name.removeprefix(old) for old, new in places.items() if name.startswith(old)]
    return dataclasses.replace(state, parts={"encoder": part}, sparse=tuple(sparse))


def evenly(count: int, kept: int) -> tuple[int, ...]:
    """So many of `count` layers, from the lowest to the highest at equal distances: 0, 2, 4, 7, 9, 11 for 6 of 12."""
    if kept == 1:
        return (0,)
    return tuple(round(place * (count - 1) / (kept - 1)) for place in range(kept))


def from_config(state: ModelState, overrides: Mapping[str, Any], seed: int) -> tuple[ModelState, dict[str, Any]]:
    """A model of the configuration of `state` with `overrides`, and what was copied into it.

    The same family, task and vocabulary. Layers get new weights, drawn from `seed`; what lies below them, such as the
    token embeddings, and the head are copied where the shapes are the same. Raises UserError for a setting that the
    family does not have, that both models share, or that makes no model.
    """
    part: Any = state.parts["encoder"]
    old = part.model.config
    names = {old.attribute_map.get(name, name): value for name, value in overrides.items()}
    for given, name in zip(overrides, names, strict=True):
        if name in _SHARED:
            raise UserError(
                f"the student's configuration cannot set {given}: it is the teacher's", f"leave {given} out"
            )
        if not hasattr(old, name):
            raise UserError(
                f"config: {old.model_type} has no setting {given!r}", suggestion(given, sorted(old.to_dict()))
            )
    values = old.to_dict()
    for name, source in _DERIVED.items():
        if name in values and old.attribute_map.get(source, source) in names:
            del values[name]
    for name, value in names.items():
        if name in {old.attribute_map.get(size, size) for size in _SIZES} and isinstance(value, int) and value < 1:
            raise UserError(f"config: {name} should be at least 1, not {value}", "change config")
    # A pass may have cut the table, whatever the configuration says.
    values["vocab_size"] = part.model.get_input_embeddings().num_embeddings
    try:
        config = type(old).from_dict({**values, **names})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = empty_model(config, state.spec.task, initialised=True)
    except Exception as error:  # transformers checks fields through a library with errors of its own
        raise UserError(
            f"config: there is no {old.model_type} model of these settings: {error}", "change config"
        ) from error
    model.config.architectures = [type(model).__name__]
    made = make_part(model, state.spec)
    copied = {"below_the_layers": _copy_below(made, part), "head": _copy_head(made, part)}
    return dataclasses.replace(state, parts={"encoder": made}, sparse=()), copied


def from_source(state: ModelState, source: str, seed: int) -> tuple[ModelState, dict[str, Any]]:
    """The model of `source` for the task of `state`, with its labels, and what was copied into it.

    A head of another task or other labels is replaced: by that of `state` where it fits, else by new weights, drawn
    from `seed`. Raises ModelError where the vocabularies differ, and what load_model raises.
    """
    found = load_model(source)
    require_same_vocabulary(found, state, source)
    if found.quantization is not None or found.lora is not None or found.parts["encoder"].adapter is not None:
        raise ModelError(
            f"{source} is quantized or has adapters, so it cannot be a student", "name the model as it was before that"
        )
    asked = state.spec
    kept = (asked.task, asked.labels, asked.multi_label) == (found.spec.task, found.spec.labels, found.spec.multi_label)
    made = (
        found
        if kept
        else with_head(
            found, asked.task, labels=asked.labels, multi_label=asked.multi_label, pairs=asked.pairs, seed=seed
        )
    )
    spec = dataclasses.replace(
        made.spec,
        pairs=asked.pairs,
        pooling=asked.pooling,
        normalize=asked.normalize,
        prompts=asked.prompts,
        default_prompt=asked.default_prompt,
        max_length=min(made.spec.max_length, asked.max_length),
    )
    part: Any = made.parts["encoder"]
    fresh = make_part(part.model, spec)
    made.tokenizer.model_max_length = spec.max_length
    copied = {"below_the_layers": [], "head": False if kept else _copy_head(fresh, state.parts["encoder"])}
    return dataclasses.replace(made, spec=spec, parts={"encoder": fresh}, history=state.history), copied


def require_same_vocabulary(one: ModelState, other: ModelState, source: str) -> None:
    """Raises ModelError where a token of one is none of the other's, or has another id. source: of `one`."""
    mine, yours = one.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    apart = sorted(dict(mine.items() ^ yours.items()))
    if apart or one.tokenizer.pad_token_id != other.tokenizer.pad_token_id:
        such = f": {len(apart)} tokens differ, such as {apart[0]!r}" if apart else ": it pads with another token"
        raise ModelError(
            f"{source} has another vocabulary than {other.spec.name}{such}",
            "both models read the same ids: take models with one tokenizer, and put trim-vocab after this pass",
        )


def encoder_parameters(part: Any) -> tuple[int, int]:
    """How many parameters a part has, and how many of them are of the encoder: of its layers and below, without the
    token embeddings and without the head."""
    below = depth(part)
    table = part.model.get_input_embeddings().weight
    every = list(part.named_parameters())
    encoder = sum(parameter.numel() for name, parameter in every if below[name] and parameter is not table)
    return sum(parameter.numel() for _, parameter in every), encoder


def _copy_below(student: Any, teacher: Any) -> list[str]:
    """Parameters below all layers that have the same shape; their names."""
    known, lowest = dict(teacher.named_parameters()), len(layers(student)) + 1
    names = [
        name
        for name, below in depth(student).items()
        if below == lowest and name in known and known[name].shape == student.get_parameter(name).shape
    ]
    return _copy(student, known, names)


def _copy_head(student: Any, teacher: Any) -> bool:
    """The whole head, where all of it has the same names and shapes; whether it was copied."""
    mine, yours = _head(student), _head(teacher)
    fits = mine.keys() == yours.keys() and all(mine[name].shape == yours[name].shape for name in mine)
    return bool(fits and _copy(student, yours, list(mine)))


def _head(part: Any) -> dict[str, torch.Tensor]:
    below = depth(part)
    return {name: parameter for name, parameter in part.named_parameters() if not below[name]}


def _copy(student: Any, known: Mapping[str, torch.Tensor], names: list[str]) -> list[str]:
    with torch.no_grad():
        for name in names:
            student.get_parameter(name).copy_(known[name])
    return names
