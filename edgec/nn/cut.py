"""Smaller tensors: heads, channels of the feed-forward network, and channels of the residual stream taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from edgec.nn.layout import Layer, base_path, head_size, layers, stack_path
from edgec.nn.resize import heads_follow, take_shapes

_PROJECTIONS: Final = {"electra": "embeddings_project", "deberta-v2": "embeddings.embed_proj"}
"""By family: the linear layer from the embeddings to a residual stream of another width, below the base model."""

_POSITION_BIAS: Final = "encoder.relative_attention_bias"
"""MPNet: (buckets, heads), one table for all layers."""

Axes = Mapping[str, tuple[int, ...]]
"""By parameter name: the axes that are cut."""


def heads(part: Any, layer: Layer) -> int:
    """How many attention heads a layer has."""
    channels = int(part.get_submodule(layer.query).out_features)
    return channels // (3 if layer.merged else 1) // head_size(part, layer)


def inner_width(part: Any, layer: Layer) -> int:
    """Channels between the two products of the feed-forward network."""
    return int(part.get_submodule(layer.down).in_features)


def stream_width(part: Any) -> int:
    """Channels of the residual stream, whatever an adapter behind it makes of them."""
    return int(part.get_submodule(layers(part)[-1].down).out_features)


def shares_position_bias(part: Any) -> bool:
    """Whether one table of position biases, a column a head, serves all layers, so that all need the same heads."""
    return _POSITION_BIAS in dict(part.get_submodule(base_path(part)).named_modules())


def head_slices(part: Any, layer: Layer) -> dict[str, int]:
    """The parameters of a layer whose channels belong to its heads, one after the other, with the axis they run along.

    Merged query, key and value have three rows of heads along their axis.
    """
    writers = dict.fromkeys([layer.query, layer.key, layer.value])
    # DeBERTa's projections of the positions.
    known = {*writers, layer.context}
    beside = [
        path
        for name, module in part.get_submodule(layer.attention).named_modules()
        if isinstance(module, nn.Linear) and (path := f"{layer.attention}.{name}") not in known
    ]
    found = {name: 0 for path in (*writers, *beside) for name in _parameters(part, path)}
    return found | {f"{layer.context}.weight": 1}


def inner_slices(part: Any, layer: Layer) -> dict[str, int]:
    """The parameters of a layer whose channels are those of its feed-forward network, and the axis they run along.

    The first product of a gated network has two rows of channels along its axis.
    """
    return dict.fromkeys(_parameters(part, layer.up), 0) | {f"{layer.down}.weight": 1}


def stream_slices(part: Any) -> Axes:
    """The parameters with an axis over the channels of the residual stream.

    The head reads the stream by its first linear layer, whose outputs keep their width; that of fill-mask ends in the
    table of the embeddings, so that all of it is of their width. Embeddings that a projection widens are not of the
    stream.
    """
    base = base_path(part)
    axes: dict[str, tuple[int, ...]] = {}

    def read(path: str) -> None:
        axes[f"{path}.weight"] = (1,)

    def write(path: str) -> None:
        axes.update(dict.fromkeys(_parameters(part, path), (0,)))

    for layer in layers(part):
        written = {layer.context, layer.down}
        for name, module in part.get_submodule(layer.path).named_modules():
            path = f"{layer.path}.{name}"
            if isinstance(module, nn.LayerNorm) or path in written:
                write(path)
            elif isinstance(module, nn.Linear):
                read(path)
    projection = _projection(part)
    for name, module in part.get_submodule(base).named_modules():
        path = f"{base}.{name}"
        if path.startswith(f"{stack_path(part)}.") or name.startswith("pooler.") or name == _POSITION_BIAS:
            continue
        if name == projection:
            write(path)
        elif projection is not None and name.startswith("embeddings.") and not _after(projection, name):
            continue
        elif isinstance(module, nn.LayerNorm):
            write(path)
        elif isinstance(module, nn.Embedding):
            axes[f"{path}.weight"] = (1,)
    return axes | _head_axes(part, whole=part.task == "fill-mask" and projection is None)


def cut_heads(part: Any, kept: Sequence[Sequence[int]]) -> None:
    """Keep these heads of each layer, in place, in ascending order. All layers the same where they share a table of
    position biases."""
    tensors: dict[str, torch.Tensor] = {}
    for layer, chosen in zip(layers(part), kept, strict=True):
        size, count = head_size(part, layer), heads(part, layer)
        channels = [head * size + place for head in sorted(chosen) for place in range(size)]
        tensors |= _kept(part, head_slices(part, layer), channels, count * size)
    if shares_position_bias(part):
        name = f"{base_path(part)}.{_POSITION_BIAS}.weight"
        tensors[name] = part.get_parameter(name).detach()[:, sorted(kept[0])].clone()
    _take(part, tensors)
    heads_follow(part)


def cut_inner(part: Any, kept: Sequence[Sequence[int]]) -> None:
    """Keep these channels of each layer's feed-forward network, in place, in ascending order."""
    tensors: dict[str, torch.Tensor] = {}
    for layer, chosen in zip(layers(part), kept, strict=True):
        tensors |= _kept(part, inner_slices(part, layer), sorted(chosen), inner_width(part, layer))
    _take(part, tensors)


def cut_stream(part: Any, kept: Sequence[int]) -> None:
    """Keep these channels of the residual stream, in place, in ascending order: everywhere the same."""
    channels = torch.tensor(sorted(kept))
    tensors: dict[str, torch.Tensor] = {}
    for name, axes in stream_slices(part).items():
        tensor = part.get_parameter(name).detach()
        for axis in axes:
            tensor = tensor.index_select(axis, channels)
        tensors[name] = tensor
    _take(part, tensors)


def uncuttable_stream(part: Any) -> str | None:
    """Why the width of the residual stream cannot be changed, or None."""
    if part.adapter is not None:
        return "its alignment adapter was made for this width"
    base = part.get_submodule(base_path(part))
    if any(isinstance(module, nn.Conv1d) for module in base.modules()):
        return "it has a convolution over the residual stream"
    return None


def _kept(part: Any, slices: Mapping[str, int], channels: list[int], width: int) -> dict[str, torch.Tensor]:
    """The tensors of `slices` with these of `width` channels left, in each of the rows of channels along the axis."""
    found = {}
    for name, axis in slices.items():
        tensor = part.get_parameter(name).detach()
        rows = tensor.shape[axis] // width
        places = torch.tensor([row * width + channel for row in range(rows) for channel in channels])
        found[name] = tensor.index_select(axis, places)
    return found


def _take(part: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    # state_dict has a tied tensor under each of its names, named_parameters under one.
    tied = part.state_dict(keep_vars=True)
    names = {id(parameter): name for name, parameter in part.named_parameters()}
    everywhere = {
        name: tensors[first] for name, value in tied.items() if (first := names.get(id(value), name)) in tensors
    }
    take_shapes(part, everywhere)
    part.model.tie_weights()
    part.load_state_dict(everywhere, strict=False)


def _parameters(part: Any, path: str) -> list[str]:
    return [f"{path}.{name}" for name, _ in part.get_submodule(path).named_parameters()]


def _projection(part: Any) -> str | None:
    """The linear layer between embeddings and stream, where there is one."""
    name = _PROJECTIONS.get(part.model.config.model_type)
    modules = dict(part.get_submodule(base_path(part)).named_modules())
    return name if name in modules else None


def _after(projection: str, name: str) -> bool:
    """Whether a module of the embeddings comes after their projection: DeBERTa's norm does, ELECTRA's does not."""
    return projection.startswith("embeddings.") and name == "embeddings.LayerNorm"


def _head_axes(part: Any, *, whole: bool) -> dict[str, tuple[int, ...]]:
    """Of the task head: its first linear layer alone, or `whole`."""
    base = base_path(part)
    below = {
        path: module
        for path, module in part.named_modules()
        if isinstance(module, nn.Linear | nn.LayerNorm) and (not path.startswith(f"{base}.") or ".pooler." in path)
    }
    matrices = [path for path, module in below.items() if isinstance(module, nn.Linear)]
    if not matrices:
        return {}
    first, *others = matrices
    if not whole:
        return {f"{first}.weight": (1,)}
    axes = {f"{first}.weight": (0, 1), **{name: (0,) for name in _parameters(part, first) if name.endswith(".bias")}}
    for path, module in below.items():
        if isinstance(module, nn.LayerNorm):
            axes |= dict.fromkeys(_parameters(part, path), (0,))
    known = dict(part.named_parameters())
    # The output layer usually is the table of the embeddings under another name.
    return axes | {f"{path}.weight": (1,) for path in others if f"{path}.weight" in known}
