"""Where a decoupled transformer is cut, and the two components that it is cut into (ElFadeel and Peshterliev,
"Decoupled Transformer for Scalable Inference in Open-domain Question Answering", section 3).

Below the seam the two texts of a pair do not see each other, so the states of one can be kept for every other. Above
it they are one row. A part (edgec.nn.parts.Part) computes both at once, on whole rows, with a mask that keeps the texts
apart; `InputComponent` and `CrossComponent` are the same modules as two graphs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgec.nn.layout import Layer, base_path, layers


class Seam(nn.Module):
    """What stands between the components.

    split: how many layers lie below it, N. positions: (longest row, hidden), segments: (2, hidden), the global
    embeddings, which tell a token its place in the row of both texts, and which of them it belongs to (section 3.3).
    width: of the states that are kept, after `compress` (hidden -> width) and before `decompress` (width -> hidden);
    None: states are kept as they are (section 4). first_position: of a row, in `positions`.
    """

    def __init__(self, split: int, hidden: int, longest: int, *, width: int | None = None, first: int = 0) -> None:
        super().__init__()
        self.split, self.first_position = split, first
        self.positions = nn.Embedding(longest, hidden)
        self.segments = nn.Embedding(2, hidden)
        self.compress = nn.Linear(hidden, width) if width is not None else nn.Identity()
        self.decompress = nn.Linear(width, hidden) if width is not None else nn.Identity()

    @property
    def width(self) -> int:
        """Of a token's kept state."""
        if isinstance(self.compress, nn.Linear):
            return self.compress.out_features
        return self.positions.embedding_dim

    @property
    def compressed(self) -> bool:
        """Whether there are layers that compress."""
        return isinstance(self.compress, nn.Linear)

    def joined(self, kept: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        """kept: (batch, tokens, width), the states of both texts, one after the other. Returns (batch, tokens, hidden),
        what the first layer of the cross component reads."""
        places = torch.arange(kept.shape[1], device=kept.device) + self.first_position
        return self.decompress(kept) + self.positions(places)[None] + self.segments(token_type_ids)


def components(part: Any) -> dict[str, Any]:
    """The graphs of a part, by name: the part itself as "encoder", or the two components of a decoupled one."""
    if part.seam is None:
        return {"encoder": part}
    return {"input": InputComponent(part), "cross": CrossComponent(part)}


def component(part: Any, path: str) -> str:
    """Which of `components` the module of this path belongs to."""
    if part.seam is None:
        return "encoder"
    seam, stack = part.seam, layers(part)
    if any(path == layer.path or path.startswith(f"{layer.path}.") for layer in stack):
        below = any(path == layer.path or path.startswith(f"{layer.path}.") for layer in stack[: seam.split])
        return "input" if below else "cross"
    base = base_path(part)
    below = path == "seam.compress" or any(
        path == name or path.startswith(f"{name}.") for name in (f"{base}.embeddings", f"{base}.embeddings_project")
    )
    return "input" if below else "cross"


def kept_states(
    part: Any, input_ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor, places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The input component: (kept states (batch, tokens, width), hidden states (batch, tokens, hidden)).

    mask: bool (batch, 1, tokens, tokens), which key a query sees. types: token_type_ids, places: positions, both
    (batch, tokens), of the text alone.
    """
    base = part.model.base_model
    positions = places.long() + part.seam.first_position
    if hasattr(base.embeddings, "token_type_embeddings"):
        kinds = base.embeddings.token_type_embeddings.num_embeddings
        hidden = base.embeddings(input_ids, token_type_ids=types if kinds > 1 else types * 0, position_ids=positions)
    else:
        hidden = base.embeddings(input_ids, position_ids=positions)
    if hasattr(base, "embeddings_project"):
        hidden = base.embeddings_project(hidden)
    hidden = _through(part, layers(part)[: part.seam.split], hidden, mask)
    return part.seam.compress(hidden), hidden


def crossed(part: Any, kept: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """The cross component up to the head: (batch, tokens, hidden). kept: of both texts, one after the other."""
    return _through(part, layers(part)[part.seam.split :], part.seam.joined(kept, types), mask)


def apart(attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(mask, places) of rows of two texts that do not see each other.

    attention_mask, token_type_ids: (batch, tokens). mask: bool (batch, 1, tokens, tokens). places: (batch, tokens), of
    each token in its own text, from 0.
    """
    same = token_type_ids[:, :, None] == token_type_ids[:, None, :]
    mask = (same & attention_mask[:, None, :].to(torch.bool))[:, None]
    first = ((1 - token_type_ids) * attention_mask).sum(dim=1, keepdim=True)
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)[None] - first * token_type_ids
    return mask, places


def together(attention_mask: torch.Tensor) -> torch.Tensor:
    """The mask of rows whose tokens all see each other: bool (batch, 1, tokens, tokens)."""
    return attention_mask[:, None, None, :].to(torch.bool).expand(-1, 1, attention_mask.shape[1], -1)


def _through(part: Any, stack: tuple[Layer, ...], hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    for layer in stack:
        hidden = part.get_submodule(layer.path)(hidden, mask)
    return hidden


class InputComponent(nn.Module):
    """One text of a pair: input_ids, attention_mask and token_type_ids, int32 (batch, tokens), to what is kept of it.

    states: (batch, tokens, width), what the cross component reads. text_embedding: (batch, hidden), the mean of its
    states below the seam, of unit length, what it is found by. Shares all modules with the part that it is made of.
    """

    input_names = ("input_ids", "attention_mask", "token_type_ids")
    output_names = ("states", "text_embedding")

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.model, self.seam = part.model, part.seam
        self._part = (part,)
        tokens = {0: "batch", 1: "tokens"}
        self.input_axes = {name: dict(tokens) for name in self.input_names}
        self.output_axes = {"states": dict(tokens), "text_embedding": {0: "batch"}}
        self.eval()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None].expand_as(input_ids)
        kept, hidden = kept_states(self, input_ids, together(attention_mask), token_type_ids, places)
        return kept, pooled(hidden, attention_mask)


class CrossComponent(nn.Module):
    """Both texts: `states` float32 (batch, tokens, width), the kept states of one after those of the other,
    attention_mask and token_type_ids, int32 (batch, tokens), to the outputs of the task."""

    input_names = ("states", "attention_mask", "token_type_ids")

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.model, self.seam = part.model, part.seam
        self._part = (part,)
        tokens = {0: "batch", 1: "tokens"}
        self.input_axes = {name: dict(tokens) for name in self.input_names}
        self.output_names, self.output_axes = part.output_names, part.output_axes
        self.eval()

    def forward(
        self, states: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        (part,) = self._part
        return part.answer(crossed(self, states, together(attention_mask), token_type_ids), attention_mask)


def pooled(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of `hidden` (batch, tokens, hidden) over the tokens of `mask` (batch, tokens), of unit length."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
    return nn.functional.normalize(mean, p=2.0, dim=-1, eps=1e-12)
