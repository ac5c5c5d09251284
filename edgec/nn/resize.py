"""Layers of another size: a model takes the shapes of the tensors that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from edgec.nn.layout import head_size, layers

_HEAD_COUNTS = ("num_attention_heads", "n_heads")


def take_shapes(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give each linear layer, embedding and layer norm of `module` the shape of its tensor in `tensors`, in place.

    tensors: by parameter name, such as a state dict; names that the module does not have are passed over, and so are
    parameters without a tensor. New parameters hold no values yet.
    """
    for path, leaf in module.named_modules():
        if not isinstance(leaf, nn.Linear | nn.Embedding | nn.LayerNorm):
            continue
        prefix = f"{path}." if path else ""
        for name, parameter in list(leaf.named_parameters(recurse=False)):
            wanted = tensors.get(prefix + name)
            if wanted is not None and wanted.shape != parameter.shape:
                setattr(leaf, name, nn.Parameter(torch.empty(wanted.shape), requires_grad=parameter.requires_grad))
        _attributes_follow(leaf)


def heads_follow(part: Any) -> None:
    """The attention of each layer counts as many heads as its query has channels for."""
    for layer in layers(part):
        attention, query = part.get_submodule(layer.attention), part.get_submodule(layer.query)
        size = head_size(part, layer)
        channels = query.out_features // (3 if layer.merged else 1)
        for name in _HEAD_COUNTS:
            if hasattr(attention, name):
                setattr(attention, name, channels // size)
        for name in ("all_head_size", "dim"):
            if hasattr(attention, name):
                setattr(attention, name, channels)


def _attributes_follow(leaf: nn.Linear | nn.Embedding | nn.LayerNorm) -> None:
    if isinstance(leaf, nn.Linear):
        leaf.out_features, leaf.in_features = leaf.weight.shape
    elif isinstance(leaf, nn.Embedding):
        leaf.num_embeddings, leaf.embedding_dim = leaf.weight.shape
    elif leaf.weight is not None:
        leaf.normalized_shape = tuple(leaf.weight.shape)
