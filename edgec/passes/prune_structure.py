"""Structured pruning: which heads, channels or layers stay, and what that leaves of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from edgec.errors import UserError
from edgec.nn.cut import cut_heads, cut_inner, cut_stream, heads, inner_width, stream_width
from edgec.nn.layout import depth, keep_layers, layers
from edgec.passes.importance import keep_best, ranked
from edgec.state import ModelState

Scope = Literal["global", "layer", "shared"]


def parameters(part: Any) -> dict[str, int]:
    """How many parameters lie in the encoder's layers, below them (embeddings) and above them (head)."""
    below, count = depth(part), len(layers(part))
    found = {"encoder": 0, "embeddings": 0, "head": 0}
    for name, parameter in part.named_parameters():
        place = "head" if not below[name] else "embeddings" if below[name] > count else "encoder"
        found[place] += parameter.numel()
    return found


def structure(part: Any) -> dict[str, Any]:
    """Heads and widths by layer, and the width of the residual stream."""
    known = layers(part)
    return {
        "layers": len(known),
        "heads": [heads(part, layer) for layer in known],
        "ffn": [inner_width(part, layer) for layer in known],
        "hidden": stream_width(part),
    }


@dataclass(frozen=True)
class Share:
    """How much stays: `keep` units a layer, or all but the share `ratio`."""

    keep: int | None
    ratio: float | None

    def of(self, count: int, layers: int = 1) -> int:
        """Units that stay of `count` in so many layers, one at least in each. UserError where there are fewer."""
        if self.keep is None:
            return max(layers, round(count * (1 - (self.ratio or 0.0))))
        if self.keep * layers > count:
            raise UserError(f"keep is {self.keep}, and there are only {count // layers}", "keep fewer, or give a ratio")
        return self.keep * layers


def choose_heads(scores: Sequence[torch.Tensor], share: Share, scope: Scope) -> list[list[int]]:
    """The heads of each layer that stay."""
    counts = [len(score) for score in scores]
    if scope == "global":
        return keep_best(scores, share.of(sum(counts), len(counts)))
    return _by_layer(_shared(scores) if scope == "shared" else scores, [share.of(count) for count in counts])


def choose_channels(scores: Sequence[torch.Tensor], share: Share, scope: Scope, multiple: int) -> list[list[int]]:
    """The channels of each layer's feed-forward network that stay: a multiple of `multiple`, one multiple at least.

    With scope global importance shares out the channels among the layers before each layer's number is rounded.
    """
    counts = [len(score) for score in scores]
    if scope == "global":
        wanted = [len(units) for units in keep_best(scores, share.of(sum(counts), len(counts)), minimum=multiple)]
    else:
        wanted = [share.of(count) for count in counts]
    wanted = [rounded(number, multiple, count) for number, count in zip(wanted, counts, strict=True)]
    return _by_layer(_shared(scores) if scope == "shared" else scores, wanted)


def rounded(count: float, multiple: int, most: int) -> int:
    """The nearest multiple, at least one and at most `most`, which need not be one."""
    return min(most, max(multiple, round(count / multiple) * multiple))


def evenly(count: int, keep: int) -> tuple[int, ...]:
    """`keep` of `count` layers at equal distances, the first and the last among them."""
    return (0,) if keep == 1 else tuple(round(place * (count - 1) / (keep - 1)) for place in range(keep))


def least_similar(similarities: Sequence[float], keep: int, *, bound: bool) -> tuple[int, ...]:
    """The `keep` layers that change their input most; with `bound` the first is one of them whatever it does."""
    order = sorted(range(len(similarities)), key=lambda index: (not (bound and index == 0), similarities[index], index))
    return tuple(sorted(order[:keep]))


def bound_to_first(part: Any) -> str | None:
    """Why the first layer has to stay, or None."""
    family, config = part.model.config.model_type, part.model.config
    if family == "modernbert":
        return "ModernBERT's first layer has no layer norm before its attention, the others have"
    if family == "deberta-v2" and getattr(config, "conv_kernel_size", 0) > 0:
        return "this DeBERTa's convolution belongs to its first layer"
    return None


def cut(state: ModelState, kind: str, kept: Sequence[Sequence[int]]) -> ModelState:
    """`state` with its part cut in place. kept: by layer, of hidden and layers a single list.

    Zeros that are meant (state.sparse) stay so: their parameters are named anew where layers move down.
    """
    ((name, part),) = state.parts.items()
    if kind == "layers":
        before = [layer.path for layer in layers(part)]
        keep_layers(part, tuple(kept[0]))
        after = {before[old]: before[new] for new, old in enumerate(kept[0])}
        return dataclasses.replace(state, sparse=_renamed(state.sparse, name, before, after))
    if kind == "heads":
        cut_heads(part, kept)
    elif kind == "ffn":
        cut_inner(part, kept)
    else:
        cut_stream(part, kept[0])
    return state


def _renamed(sparse: Sequence[str], part: str, before: Sequence[str], after: dict[str, str]) -> tuple[str, ...]:
    found = []
    for key in sparse:
        path = next((path for path in before if key.startswith(f"{part}:{path}.")), None)
        if path is None:
            found.append(key)
        elif path in after:
            found.append(f"{part}:{after[path]}.{key.removeprefix(f'{part}:{path}.')}")
    return tuple(found)


def _by_layer(scores: Sequence[torch.Tensor], wanted: Sequence[int]) -> list[list[int]]:
    return [sorted(ranked(score)[:count]) for score, count in zip(scores, wanted, strict=True)]


def _shared(scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Every layer's scores are the sum of all layers', each divided by its root mean square."""
    if len({len(score) for score in scores}) > 1:
        raise UserError(
            "scope: shared needs layers of equal width, and those of this model differ", "take scope: layer"
        )
    total = torch.stack([score / score.square().mean().sqrt().clamp(min=1e-30) for score in scores]).sum(dim=0)
    return [total] * len(scores)
