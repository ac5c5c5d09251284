"""What a part computes on the way to its outputs: hidden states and attention maps, of one and the same forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from edgec.nn.fake_points import attention_scores
from edgec.nn.layout import layers


@dataclass(frozen=True)
class AttentionMap:
    """Of one layer. scores: (batch, heads, tokens, tokens), what the softmax over the keys, the last axis, reads. seen:
    (batch, 1, tokens, tokens), false where the model hides a key from a query; None: it hides none."""

    scores: torch.Tensor
    seen: torch.Tensor | None

    @property
    def probabilities(self) -> torch.Tensor:
        """The softmax, without the dropout of training."""
        scores = self.scores
        if self.seen is not None:
            scores = scores.masked_fill(~self.seen, torch.finfo(scores.dtype).min)
        return torch.softmax(scores, dim=-1)


@dataclass
class Watched:
    """What the last call gave. states: as Part.states. maps: one a layer, the lowest first."""

    states: tuple[torch.Tensor, ...] = ()
    _inputs: list[torch.Tensor] = field(default_factory=list)
    _maps: list[Callable[[], AttentionMap]] = field(default_factory=list)

    def map(self, layer: int) -> AttentionMap:
        """The attention of a layer, 0 the lowest."""
        return self._maps[layer]()


@contextmanager
def watch(part: Any, *, states: bool = False, attention: bool = False) -> Iterator[Watched]:
    """While this is open, the calls of `part` (edgec.nn.parts.Part) leave their inner tensors in what it yields.

    They carry gradients where the call does. The part itself computes what it always does, so this works with fused
    attention, which gives no maps of its own.
    """
    watched = Watched()
    with ExitStack() as stack:
        if states:
            base = part.model.base_model
            for layer in layers(part):
                stack.callback(_input_hook(part.get_submodule(layer.path), watched).remove)
            stack.callback(base.register_forward_hook(lambda module, args, output: _gathered(watched, output)).remove)
        if attention:
            stack.callback(part.register_forward_pre_hook(lambda module, args: watched._maps.clear()).remove)
            stack.enter_context(_Softmaxes(watched))
        yield watched


def _input_hook(layer: nn.Module, watched: Watched) -> Any:
    return layer.register_forward_pre_hook(lambda module, args: watched._inputs.append(args[0]))


def _gathered(watched: Watched, output: Any) -> None:
    """The layers' inputs, and what the encoder gives: the last layer's output, behind the last norm where there is
    one."""
    watched.states = (*watched._inputs, output[0])
    watched._inputs.clear()


class _Softmaxes(TorchFunctionMode):
    """Notes what is given to the softmax of each attention, fused or not, in the order of the layers."""

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self.watched = watched

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            query, key = args[:2]
            mask, scale = kwargs.get("attn_mask"), kwargs.get("scale")
            self.watched._maps.append(lambda: AttentionMap(attention_scores(query, key, scale), _seen(mask)))
        elif func is nn.functional.softmax:
            scores = args[0]
            lowest = torch.finfo(scores.dtype).min / 2
            self.watched._maps.append(lambda: AttentionMap(scores, (scores > lowest)[:, :1]))
        return func(*args, **kwargs)


def _seen(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask that is added to the scores, or a boolean one, as bool."""
    return mask if mask is None or mask.dtype == torch.bool else mask == 0
