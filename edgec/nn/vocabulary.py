"""A model of fewer pieces: the rows of its token embeddings and of an output layer over the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgec.errors import UserError


def tables(part: Any) -> dict[str, nn.Module]:
    """The token embeddings and, of fill-mask, the layer that scores every piece.

    Raises UserError where one of them is no plain layer.
    """
    found = {"input": part.model.get_input_embeddings()}
    if (output := part.model.get_output_embeddings()) is not None:
        found["output"] = output
    for name, module in found.items():
        if type(module) not in (nn.Embedding, nn.Linear):
            raise UserError(
                f"the {name} embeddings are a {type(module).__name__}, whose rows cannot be picked",
                "merge adapters with fuse-adapters before",
            )
    return found


def keep_rows(part: Any, kept: Sequence[int]) -> None:
    """Keep these rows, in place and in this order, in every tensor over the vocabulary: embeddings (pieces, channels),
    output layer (pieces, channels) and its bias (pieces,), tied or not. The ids in the configuration follow; one that
    no kept row has becomes null.
    """
    model, padding = part.model, part.model.get_input_embeddings().padding_idx
    before = dict(model.state_dict())
    model.resize_token_embeddings(len(kept), mean_resizing=False)
    rows = torch.tensor(kept)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.shape != before[name].shape:
                tensor.copy_(before[name][rows])
    new = {old: place for place, old in enumerate(kept)}
    model.get_input_embeddings().padding_idx = new.get(padding)
    for name, value in vars(model.config).items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(model.config, name, new.get(value))
