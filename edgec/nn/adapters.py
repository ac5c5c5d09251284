"""LoRA adapters beside the linear layers of a transformers model, as peft makes them."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from edgec.nn.layout import depth, layers

_ROOT: Final = "model."
_BASE: Final = ".base_layer."


def attention_projections(part: Any) -> list[str]:
    """Module paths, below the part (edgec.nn.parts.Part), of the layers that give queries, keys and values."""
    paths = (path for layer in layers(part) for path in (layer.query, layer.key, layer.value))
    return list(dict.fromkeys(paths))


def linear_layers(part: Any, patterns: Sequence[str] = ("*",)) -> list[str]:
    """Module paths, below the part, of the encoder's linear layers that one of the patterns (fnmatch) matches."""
    below = depth(part)
    linear = [
        path for path, module in part.named_modules() if isinstance(module, nn.Linear) and below[f"{path}.weight"]
    ]
    return [path for path in linear if any(fnmatch.fnmatch(path, pattern) for pattern in patterns)]


def settings(targets: Sequence[str], *, rank: int, alpha: float, dropout: float) -> dict[str, Any]:
    """ModelState.lora: what peft's LoraConfig takes, as JSON values. targets: module paths below a part."""
    return {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "target_modules": [path.removeprefix(_ROOT) for path in targets],
    }


def inject(model: nn.Module, lora: Mapping[str, Any]) -> None:
    """Put adapters that change nothing yet (B = 0) beside layers of the transformers model `model`, in place.

    lora: as `settings` makes it. Only the adapters require a gradient afterwards. W becomes W + alpha / r * B A (Hu et
    al. 2022, equation 3); A is drawn from torch's generator.
    """
    from peft import LoraConfig, inject_adapter_in_model

    training = model.training
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft guesses at what the model is for
        inject_adapter_in_model(LoraConfig(**lora), model)
    model.train(training)


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name is one of an adapter."""
    return ".lora_" in name


def without_adapters(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the model that adapters were put beside, by the names that it had before."""
    return {name.replace(_BASE, "."): tensor for name, tensor in tensors.items() if not is_adapter(name)}
