"""LoRA adapters that peft has saved: a folder with adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from edgec.errors import ModelError
from edgec.models.files import first_line, read_object
from edgec.models.heads import with_head
from edgec.models.weights import sha256
from edgec.nn.adapters import inject, is_adapter, without_adapters
from edgec.nn.layout import base_path
from edgec.nn.parts import Part
from edgec.state import ModelState

CONFIG_FILE: Final = "adapter_config.json"
WEIGHT_FILE: Final = "adapter_model.safetensors"

_PREFIX: Final = "base_model.model."
_TOO_MUCH: Final = (
    "alora_invocation_tokens",
    "layer_replication",
    "megatron_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
"""Settings with which the adapters are more than matrices beside layers."""
_PLAIN_START: Final = (True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights with which the weights of the model itself stay as they were."""


@dataclasses.dataclass(frozen=True)
class Adapter:
    """config: as adapter_config.json has it. tensors: by name below the transformers model, without the adapter's
    own name. sha256: of the weight file.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    sha256: str


def read_adapter(folder: Path) -> Adapter:
    """Raises ModelError for a folder that is no adapter, for a kind other than LoRA, and for weights that are pickled:
    they could run code."""
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"{folder} holds no {CONFIG_FILE}", "give the folder that peft's save_pretrained wrote")
    config = read_object(folder / CONFIG_FILE)
    where = folder / CONFIG_FILE
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{where}: adapters of the kind {config.get('peft_type')} are not supported", "LORA is")
    if more := [name for name in _TOO_MUCH if config.get(name)]:
        raise ModelError(f"{where}: {more[0]} is not supported", "merge it with peft's merge_and_unload instead")
    if config.get("init_lora_weights", True) not in _PLAIN_START:
        raise ModelError(
            f"{where}: init_lora_weights {config['init_lora_weights']!r} has changed the model's own weights, too",
            "save the adapter with peft's path_initial_model_for_weight_conversion, which makes it a plain one",
        )
    file = folder / WEIGHT_FILE
    if not file.is_file():
        raise ModelError(f"{folder} holds no {WEIGHT_FILE}", "save it again with safe_serialization=True")
    try:
        tensors = {name.removeprefix(_PREFIX): tensor.float() for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read: {first_line(error)}", "get the file again") from error
    return Adapter(folder, config, tensors, sha256((file,)))


def with_adapter(
    state: ModelState, adapter: Adapter, *, task: str | None = None, labels: Sequence[str] | None = None
) -> ModelState:
    """A copy of `state` with the adapters beside its layers, and the modules in it that were saved whole.

    task, labels: those that the adapter was trained for, where the model has another head: the adapter then brings
    all of the new one. Raises ModelError where it does not fit the model.
    """
    task = task or state.spec.task
    named = tuple(labels) if labels is not None else state.spec.labels
    new_head = (task, named) != (state.spec.task, state.spec.labels)
    if new_head:
        made = with_head(state, task, labels=named)
    else:
        made = dataclasses.replace(state, parts=copy.deepcopy(dict(state.parts)))
    part = made.parts["encoder"]
    assert isinstance(part, Part)
    _inject(part.model, adapter)
    whole = without_adapters(adapter.tensors)
    if new_head and (untold := sorted(_outside(part) - whole.keys())):
        raise ModelError(
            f"{adapter.folder} does not bring {untold[0]}, which a model for {task} needs",
            "give a model that has this head already",
        )
    _fill(part.model, adapter, whole)
    return made


def _inject(model: Any, adapter: Adapter) -> None:
    from peft import LoraConfig

    known = {field.name for field in dataclasses.fields(LoraConfig) if field.init}
    # What was saved whole is put in by name; the rest of these is where adapters come from, not what they are.
    apart = {"modules_to_save", "init_lora_weights", "runtime_config", "auto_mapping", "task_type", "inference_mode"}
    settings = {name: value for name, value in adapter.config.items() if name in known - apart}
    try:
        inject(model, settings)
    except (ValueError, TypeError, KeyError) as error:
        raise _misfit(adapter, first_line(error)) from error


def _fill(model: Any, adapter: Adapter, whole: Mapping[str, torch.Tensor]) -> None:
    from peft import set_peft_model_state_dict

    matrices = {name: tensor for name, tensor in adapter.tensors.items() if is_adapter(name)}
    try:
        found: Any = set_peft_model_state_dict(model, dict(matrices))
    except RuntimeError as error:
        raise _misfit(adapter, str(error).strip().splitlines()[-1].strip()) from error
    if found.unexpected_keys:
        raise _misfit(adapter, f"the model has no layer for {found.unexpected_keys[0]}")
    if missing := [name for name in found.missing_keys if is_adapter(name)]:
        raise _misfit(adapter, f"{missing[0]} is not in {WEIGHT_FILE}")
    own = without_adapters(model.state_dict())
    for name, tensor in whole.items():
        if name not in own:
            raise _misfit(adapter, f"the model has no {name}")
        if own[name].shape != tensor.shape:
            raise _misfit(adapter, f"{name} is {tuple(tensor.shape)}, and the model's {tuple(own[name].shape)}")
        own[name].copy_(tensor)


def _outside(part: Part) -> set[str]:
    """The parameters behind the encoder, by name below the transformers model."""
    base = f"{base_path(part)}."
    return {
        name.removeprefix("model.")
        for name, _ in part.named_parameters()
        if not name.startswith(base) or ".pooler." in name
    }


def _misfit(adapter: Adapter, why: str) -> ModelError:
    trained_on = adapter.config.get("base_model_name_or_path")
    hint = f"it was trained on {trained_on}: give that model" if trained_on else "give the model it was trained on"
    return ModelError(f"the adapter {adapter.folder} does not fit the model: {why}", hint)
