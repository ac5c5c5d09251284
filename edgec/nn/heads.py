"""The head of a transformers task model, applied to hidden states that need not come from the model's own encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edgec.errors import ModelError

_CLASSIFIES_STATES = ("roberta", "xlm-roberta", "electra", "mpnet")
"""Families whose text classifier takes all states and picks the first token's by itself."""


class HeadPooler(nn.Module):
    """A BERT's pooler that pools what the head hands to it, and nothing while the encoder runs.

    transformers keeps BERT's pooler inside the encoder, where it would read the states before an adapter. Submodules,
    and so the names of tensors, are those of `pooler`.
    """

    def __init__(self, pooler: nn.Module) -> None:
        super().__init__()
        self.dense, self.activation = pooler.dense, pooler.activation

    def forward(self, states: torch.Tensor) -> None:
        """What the encoder calls."""

    def pool(self, states: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden) to (batch, hidden), of the first token."""
        return self.activation(self.dense(states[:, 0]))


def defer_pooler(model: Any) -> None:
    """Make the encoder of a transformers model leave pooling to the head, in place."""
    encoder = model.base_model
    if getattr(encoder, "pooler", None) is not None and not isinstance(encoder.pooler, HeadPooler):
        encoder.pooler = HeadPooler(encoder.pooler)


def head_outputs(model: Any, task: str, states: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the head of `model` answers where the encoder's last hidden states are `states`.

    model: of transformers, for `task`. states: (batch, tokens, hidden); attention_mask: (batch, tokens). Returns the
    outputs of the task as edgec.nn.parts.Part names them; of feature-extraction the states, which the part pools.
    Raises ModelError for a task or a family whose head is not known.
    """
    family = model.config.model_type
    if task == "feature-extraction":
        return (states,)
    if task == "text-classification":
        return (_text_logits(model, family, states, attention_mask),)
    if task == "token-classification":
        if family == "modernbert":
            return (model.classifier(model.drop(model.head(states))),)
        return (model.classifier(model.dropout(states)),)
    if task == "question-answering":
        if family == "modernbert":
            spans = model.classifier(model.drop(model.head(states)))
        else:
            spans = model.qa_outputs(model.dropout(states) if family == "distilbert" else states)
        start, end = spans.split(1, dim=-1)
        return start.squeeze(-1).contiguous(), end.squeeze(-1).contiguous()
    raise ModelError(f"the head of {task} cannot be taken apart from its encoder", "train for another task")


def _text_logits(model: Any, family: str, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    if family in _CLASSIFIES_STATES:
        return model.classifier(states)
    if family == "bert":
        pooler = model.base_model.pooler
        pooled = pooler.pool(states) if isinstance(pooler, HeadPooler) else pooler(states)
    elif family == "deberta-v2":
        pooled = model.pooler(states)
    elif family == "distilbert":
        pooled = nn.functional.relu(model.pre_classifier(states[:, 0]))
    elif family == "modernbert":
        if model.config.classifier_pooling == "mean":
            counted = states * attention_mask.unsqueeze(-1)
            first = counted.sum(dim=1) / attention_mask.sum(dim=1, keepdim=True)
        else:
            first = states[:, 0]
        return model.classifier(model.drop(model.head(first)))
    else:
        raise ModelError(f"the head of the family {family!r} is not known")
    return model.classifier(model.dropout(pooled))
