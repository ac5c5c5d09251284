"""A torch part as its int8 graph computes it: what the graph is compared with, and what training can start from."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final, TypeVar

from torch import nn

from edgec.errors import PassError
from edgec.state import LayerQuantization, Quantization

from .fake_layers import FakeEmbedding, FakeLinear, Tensors

Module = TypeVar("Module", bound=nn.Module)

_NONE: Final[Tensors] = MappingProxyType({})


def fake_quantized(module: Module, quantization: Quantization, *, reduce_range: bool = False) -> Module:
    """A copy of `module` that computes as `quantization` says, rounding and all, in float32.

    module: a part, in float; it is not changed and shares no tensor with the copy. quantization: of this part
    (Quantization.of_part). reduce_range: as the target's int8.reduce_range. Raises PassError where a path names no
    layer that can be quantized.
    """
    result = copy.deepcopy(module)
    for path, layer in quantization.layers.items():
        tensors = {
            name: quantization.tensors[f"{path}/{name}"]
            for name in ("weight", "scale")
            if f"{path}/{name}" in quantization.tensors
        }
        _put(result, path, quantized_layer(_find(result, path), layer, tensors, reduce_range=reduce_range))
    if quantization.points:
        from .fake_points import apply_points

        apply_points(result, quantization.points, reduce_range=reduce_range)
    return result


def quantized_layer(
    layer: nn.Module, quantization: LayerQuantization, tensors: Tensors = _NONE, *, reduce_range: bool = False
) -> nn.Module:
    """The fake-quantized form of one linear layer or embedding, which shares the layer's weights.

    tensors: "weight" and "scale" of this layer, where a pass chose its integers (Quantization.tensors). Raises
    PassError where the layer is of another kind than the decision.
    """
    if quantization.kind == "linear" and isinstance(layer, nn.Linear):
        return FakeLinear(layer, quantization, tensors, reduce_range=reduce_range)
    if quantization.kind == "embedding" and isinstance(layer, nn.Embedding):
        return FakeEmbedding(layer, quantization)
    raise PassError(
        f"a {type(layer).__name__} cannot be quantized as {quantization.kind}",
        "leave it in float: name it in `skip` of the quantize pass",
    )


@contextmanager
def swapped(part: nn.Module, replacements: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, `part` has these modules at these paths; afterwards its own again, whatever happens.

    A replacement that came from `quantized_layer` shares its weights with the layer it stands for, so that trying
    one layer costs no copy of the model.
    """
    own = {path: _find(part, path) for path in replacements}
    try:
        for path, replacement in replacements.items():
            _put(part, path, replacement)
        yield
    finally:
        for path, layer in own.items():
            _put(part, path, layer)


def _find(module: nn.Module, path: str) -> nn.Module:
    try:
        found: nn.Module = module.get_submodule(path)
    except AttributeError:
        raise PassError(f"the model has no layer {path}", "the decision is that of another model") from None
    return found


def _put(module: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)
