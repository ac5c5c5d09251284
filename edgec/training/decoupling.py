"""What a decoupled transformer learns from the model that it was cut from (ElFadeel and Peshterliev, section 3.4)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from edgec.nn.layout import layers
from edgec.nn.seam import apart, crossed, kept_states, pooled, together
from edgec.training.distillation import logits_loss
from edgec.training.features import Batch
from edgec.training.objectives import Supervised

CONTRAST: float = 0.05
"""The temperature of the in-batch contrastive loss: what cosines are divided by."""


class Decoupling:
    """L = (1 - weight) CE + weight KL + states MSE + attention MSE, equations 1 to 4; and retrieval InfoNCE.

    teacher: the standard model, a Part, of which nothing is changed. weight: the paper's lambda. temperature: T; KL is
    that of logits / T, as it is. states, attention: the paper's sigma, of the last hidden states and of what the last
    multi-head attention gives. contrastive: the weight of in-batch retrieval: the pooled state of a question is to be
    nearer to that of its own passage than to those of the others (Karpukhin et al. 2020, equation 2, of cosines);
    windows without an answer are only others.
    """

    def __init__(
        self,
        teacher: Any,
        supervised: Supervised,
        *,
        weight: float,
        temperature: float,
        states: float,
        attention: float,
        contrastive: float = 0.0,
    ) -> None:
        self._teacher = teacher
        self.supervised = supervised
        self.weight, self.temperature = weight, temperature
        self.states, self.attention, self.contrastive = states, attention, contrastive

    def __call__(self, part: Any, batch: Batch) -> torch.Tensor:
        mask, types = batch["attention_mask"], batch["token_type_ids"]
        teacher = self._at(batch["input_ids"].device)
        with torch.no_grad(), _attention_of(teacher) as wanted_attention:
            wanted_states = teacher.encoded(*(batch[name] for name in teacher.input_names))
            wanted = teacher.answer(wanted_states, mask)
        with _attention_of(part) as attention:
            kept, hidden = kept_states(part, batch["input_ids"], *_apart(mask, types))
            states = crossed(part, kept, together(mask), types)
            outputs = part.answer(states, mask)
        softened = logits_loss(part.task, outputs, wanted, mask, self.temperature, self.supervised.multi_label) / (
            self.temperature**2
        )
        loss = (1 - self.weight) * self.supervised.of(part.task, outputs, batch, part) + self.weight * softened
        if self.states:
            loss = loss + self.states * _mse(states, wanted_states, mask)
        if self.attention:
            loss = loss + self.attention * _mse(attention[-1], wanted_attention[-1], mask)
        if self.contrastive:
            loss = loss + self.contrastive * contrastive_loss(hidden, mask, types, batch.get("start"))
        return loss

    def _at(self, device: torch.device) -> Any:
        """The teacher, where the batch is. It belongs to somebody else, so that it is not moved itself."""
        if next(self._teacher.parameters()).device != device:
            self._teacher = copy.deepcopy(self._teacher).to(device)
        return self._teacher.eval()


def contrastive_loss(
    hidden: torch.Tensor, mask: torch.Tensor, types: torch.Tensor, start: torch.Tensor | None
) -> torch.Tensor:
    """The mean over the questions of -log softmax(cosine / CONTRAST) at their own passage; 0 where no row counts.

    hidden: (batch, tokens, hidden), below the seam. start: (batch,), 0 where a window has no answer; None: all count.
    """
    questions, passages = (pooled(hidden, mask * (types == side)) for side in (0, 1))
    scores = questions @ passages.T / CONTRAST
    losses = nn.functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="none")
    counted = torch.ones_like(losses) if start is None else (start > 0).to(losses.dtype)
    return (losses * counted).sum() / counted.sum().clamp(min=1)


def _apart(mask: torch.Tensor, types: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    seen, places = apart(mask, types)
    return seen, types, places


def _mse(own: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Over real tokens and channels."""
    weights = mask.to(own.dtype)
    return ((own - wanted).square().mean(-1) * weights).sum() / weights.sum()


@contextmanager
def _attention_of(part: Any) -> Iterator[list[torch.Tensor]]:
    """Inside, what the last layer's multi-head attention gives, behind its output matrix, (batch, tokens, hidden)."""
    found: list[torch.Tensor] = []
    last = part.get_submodule(layers(part)[-1].context)
    handle = last.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()
