"""A model with an alignment adapter between its encoder and its head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from edgec.errors import UserError
from edgec.nn.alignment import AlignmentAdapter
from edgec.nn.layout import depth
from edgec.nn.parts import Part
from edgec.nn.resize import take_shapes

_LAST: Final = ("classifier", "out_proj", "qa_outputs")
"""What the linear layers are called whose outputs are the labels'; those before keep the width."""


def attach(part: Part, adapter: AlignmentAdapter, *, seed: int) -> None:
    """Put `adapter` on `part` in place, and under it a head of the adapter's width with new weights.

    seed: of the head's weights: matrices normal with the configuration's initializer_range, biases 0, norms 1.
    """
    part.attach(adapter)
    outside = head(part)
    width, deviation = adapter.outputs, float(getattr(part.model.config, "initializer_range", 0.02))
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for path, leaf in part.named_modules():
        if f"{path}.weight" not in outside:
            continue
        if isinstance(leaf, nn.Linear):
            channels = leaf.out_features if path.rpartition(".")[2] in _LAST else width
            tensors[f"{path}.weight"] = torch.randn(channels, width, generator=generator) * deviation
        else:
            tensors[f"{path}.weight"], channels = torch.ones(width), width
        if leaf.bias is not None:
            tensors[f"{path}.bias"] = torch.zeros(channels)
    set_head(part, tensors)


def head(part: Any) -> dict[str, torch.Tensor]:
    """The tensors between the adapter, or the encoder, and the outputs, by name below the part."""
    below = depth(part)
    return {
        name: parameter.detach()
        for name, parameter in part.named_parameters()
        if not below[name] and not name.startswith("adapter.")
    }


def set_head(part: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give the head these tensors, and their shapes, in place. Raises UserError where they are another head's."""
    if (names := head(part).keys()) != tensors.keys():
        apart = sorted(names ^ tensors.keys())
        raise UserError(
            f"the large model's head is not built like that of the compressed model: {apart[0]} is in one alone",
            "train a new one: head: new",
        )
    take_shapes(part, tensors)
    with torch.no_grad():
        for name, tensor in tensors.items():
            part.get_parameter(name).copy_(tensor)
