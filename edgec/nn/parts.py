"""A transformers model as the graph of one task: ids in, the task's tensors out."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from edgec.errors import ModelError
from edgec.nn.alignment import AlignmentAdapter
from edgec.nn.heads import defer_pooler, head_outputs
from edgec.nn.layout import layers
from edgec.nn.seam import Seam, apart, crossed, kept_states, together

POOLINGS: Final = ("mean", "cls", "max")

_OUTPUTS: Final = {
    "feature-extraction": ("sentence_embedding",),
    "text-classification": ("logits",),
    "token-classification": ("logits",),
    "question-answering": ("start_logits", "end_logits"),
    "fill-mask": ("logits",),
}
_PER_TOKEN: Final = ("token-classification", "question-answering", "fill-mask")
_TOKEN_AXES: Final = {0: "batch", 1: "tokens"}


class Part(nn.Module):
    """One graph of a model: the transformers model (`self.model`) and what its task computes around it.

    Inputs are int32 (batch, tokens). Outputs, float32, in the order of `output_names`:

        feature-extraction     sentence_embedding (batch, hidden), pooled and, where `normalize` is set, of
        unit length text-classification    logits (batch, labels) token-classification   logits (batch,
        tokens, labels) question-answering     start_logits, end_logits (batch, tokens) fill-mask
        logits (batch, tokens, vocabulary)

    token_types: whether the model tells the two texts of a pair apart by token_type_ids. boolean_mask: hand
    the mask to the model as (batch, 1, tokens, tokens), which transformers passes on untouched, so that the
    exported graph has one Attention node a layer; only right for families whose every layer attends to all
    tokens through SDPA. input_axes and output_axes name the dynamic axes by index. Module paths below `model`
    are those of transformers. adapter: what the last hidden states go through before the head reads them, see `attach`.
    seam: below it the two texts of a row do not see each other, see `decouple`.
    """

    def __init__(
        self,
        model: nn.Module,
        task: str,
        *,
        token_types: bool = False,
        boolean_mask: bool = False,
        pooling: str | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if task not in _OUTPUTS:
            raise ModelError(f"unknown task {task!r}", f"tasks are {', '.join(_OUTPUTS)}")
        if task == "feature-extraction" and pooling not in POOLINGS:
            raise ModelError(f"unknown pooling {pooling!r}", f"poolings are {', '.join(POOLINGS)}")
        self.model = model
        self.adapter: AlignmentAdapter | None = None
        self.seam: Seam | None = None
        self.task = task
        self.boolean_mask = boolean_mask
        self.pooling = pooling
        self.normalize = normalize
        self.input_names = ("input_ids", "attention_mask", *(("token_type_ids",) if token_types else ()))
        self.output_names = _OUTPUTS[task]
        self.input_axes = {name: dict(_TOKEN_AXES) for name in self.input_names}
        axes = _TOKEN_AXES if task in _PER_TOKEN else {0: "batch"}
        self.output_axes = {name: dict(axes) for name in self.output_names}
        self.eval()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        if self.adapter is not None or self.seam is not None:
            return self.answer(self.aligned(input_ids, attention_mask, token_type_ids), attention_mask)
        result = self.model(**self.model_inputs(input_ids, attention_mask, token_type_ids))
        if self.task == "feature-extraction":
            return (self.embedding(result.last_hidden_state, attention_mask),)
        return tuple(result[name] for name in self.output_names)

    def attach(self, adapter: AlignmentAdapter) -> None:
        """Put an adapter between the encoder and the head, whose matrices must be as wide as the adapter's outputs.

        Raises ModelError for a task whose head cannot be taken apart from the encoder.
        """
        if self.task == "fill-mask":
            raise ModelError("a model for fill-mask takes no alignment adapter", "its output layer is its vocabulary")
        defer_pooler(self.model)
        self.adapter = adapter

    def decouple(self, seam: Seam) -> None:
        """Keep the two texts of a row apart below `seam`. Rows then need token_type_ids that tell them apart."""
        defer_pooler(self.model)
        self.seam = seam
        self.input_names = ("input_ids", "attention_mask", "token_type_ids")
        self.input_axes = {name: dict(_TOKEN_AXES) for name in self.input_names}

    def encoded(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The encoder's last hidden states, (batch, tokens, hidden), before an adapter."""
        if self.seam is not None:
            assert token_type_ids is not None
            mask, places = apart(attention_mask, token_type_ids)
            kept, _ = kept_states(self, input_ids, mask, token_type_ids, places)
            return crossed(self, kept, together(attention_mask), token_type_ids)
        inputs = self.model_inputs(input_ids, attention_mask, token_type_ids)
        return self.model.base_model(**inputs).last_hidden_state

    def aligned(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the head reads, (batch, tokens, hidden): the encoder's last hidden states, or what an adapter makes of
        them."""
        states = self.encoded(input_ids, attention_mask, token_type_ids)
        return states if self.adapter is None else self.adapter(states, attention_mask)

    def answer(self, states: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs of the task where the head reads `states` (batch, tokens, hidden)."""
        if self.task == "feature-extraction":
            return (self.embedding(states, attention_mask),)
        return head_outputs(self.model, self.task, states, attention_mask)

    def states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """The hidden states of the encoder, each (batch, tokens, hidden): of the embeddings, then of every layer."""
        inputs = self.model_inputs(input_ids, attention_mask, token_type_ids)
        return tuple(self.model.base_model(**inputs, output_hidden_states=True).hidden_states)

    def embedding(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden) pooled to (batch, hidden) as the task says."""
        embedding = pool(hidden, attention_mask, str(self.pooling))
        if self.normalize:
            embedding = nn.functional.normalize(embedding, p=2.0, dim=-1, eps=1e-12)
        return embedding

    def model_inputs(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """What the transformers model is called with."""
        mask = attention_mask
        if self.boolean_mask:
            mask = attention_mask[:, None, None, :].to(torch.bool).expand(-1, 1, input_ids.shape[1], -1)
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return {"input_ids": input_ids, "attention_mask": mask, **types}

    @property
    def hidden_size(self) -> int:
        """The width of the states that the head reads: the adapter's, where there is one."""
        if self.adapter is not None:
            return self.adapter.outputs
        return int(self.get_submodule(layers(self)[-1].down).out_features)


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector a row, as sentence-transformers' Pooling module computes it for rows padded on the right.

    hidden: (batch, tokens, hidden). attention_mask: (batch, tokens), 1 where there is a token. pooling:
    "mean" and "max" over the tokens, "cls" the first token. Returns (batch, hidden).
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return hidden.masked_fill(attention_mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
