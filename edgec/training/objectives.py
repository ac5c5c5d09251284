"""What training minimises. An objective is called with a part and a batch and gives one number; one that learns tensors
of its own (a projection) is a torch module, and they are trained along."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from edgec.nn.parts import Part
from edgec.training.features import IGNORED, Batch


class Objective(Protocol):
    def __call__(self, part: Any, batch: Batch) -> torch.Tensor:
        """The loss of a batch, averaged over its rows or tokens: a scalar."""
        ...


def outputs_of(part: Part, batch: Batch, prefix: str = "") -> tuple[torch.Tensor, ...]:
    """The part's outputs; prefix "other_" for the second text of a pair."""
    return tuple(part(*(batch[prefix + name] for name in part.input_names)))


class Supervised:
    """The usual loss of the part's task against labels.

    Cross-entropy for text-classification (binary where a text may have several labels), token-classification (over the
    tokens that have a label) and question-answering (the mean of start and end); the squared difference between cosine
    similarity and score for feature-extraction. class_weights: (labels,), what the rows of a label count, beside those
    without it where a text may have several; None: the same. score_range: what scores of pairs lie in; they are mapped
    to [0, 1].
    """

    def __init__(
        self,
        *,
        multi_label: bool = False,
        class_weights: torch.Tensor | None = None,
        score_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.multi_label, self.class_weights = multi_label, class_weights
        self.score_range = score_range

    def __call__(self, part: Any, batch: Batch) -> torch.Tensor:
        return self.of(part.task, outputs_of(part, batch), batch, part)

    def of(
        self,
        task: str,
        outputs: tuple[torch.Tensor, ...],
        batch: Batch,
        part: Any,
        *,
        other: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss where the outputs of the batch are known already; other: the embeddings of the second texts."""
        if task == "text-classification":
            (logits,) = outputs
            if self.multi_label:
                present = self._weights(logits)
                return nn.functional.binary_cross_entropy_with_logits(logits, batch["label"], pos_weight=present)
            return nn.functional.cross_entropy(logits, batch["label"], self._weights(logits))
        if task == "token-classification":
            (logits,) = outputs
            return nn.functional.cross_entropy(
                logits.flatten(0, 1), batch["labels"].flatten(), self._weights(logits), ignore_index=IGNORED
            )
        if task == "question-answering":
            # A padded position is no place where an answer could begin.
            masked = [logits.masked_fill(batch["attention_mask"] == 0, -1e4) for logits in outputs]
            losses = [
                nn.functional.cross_entropy(logits, batch[name])
                for logits, name in zip(masked, ("start", "end"), strict=True)
            ]
            return (losses[0] + losses[1]) / 2
        if task == "feature-extraction":
            second = outputs_of(part, batch, "other_")[0] if other is None else other
            low, high = self.score_range
            similarity = nn.functional.cosine_similarity(outputs[0], second)
            return nn.functional.mse_loss(similarity, (batch["score"] - low) / (high - low))
        raise ValueError(f"there are no labels for {task}")

    def _weights(self, logits: torch.Tensor) -> torch.Tensor | None:
        return None if self.class_weights is None else self.class_weights.to(logits.device)
