"""The float graph as torch's older exporter traces it: what most tools of the field start from.

It is made without edgec's own export, from the transformers model alone, so that a peer gets the graph that its own
users would give it.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from edgec_runtime.tasks.embed import OUTPUT
from transformers import PreTrainedModel


class MeanOfTokens(torch.nn.Module):
    """ids and mask (batch, tokens) to embeddings (batch, hidden) of unit length: the mean over the mask's tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


def trace_embedding(model: PreTrainedModel, file: Path, *, attention: str = "eager", opset: int = 17) -> None:
    """Write `model` with mean pooling to `file` (ONNX, int64 inputs, dynamic batch and tokens).

    attention: transformers' name of the implementation to trace; eager attention is the form that onnxruntime's own
    tools recognise.
    """
    model.set_attn_implementation(attention)
    ids = torch.full((2, 16), 5)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    axes = {0: "batch", 1: "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation, and constants that it warns of and that hold
        torch.onnx.export(
            MeanOfTokens(model).eval(),
            (ids, mask),
            str(file),
            dynamo=False,
            opset_version=opset,
            input_names=["input_ids", "attention_mask"],
            output_names=[OUTPUT],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, OUTPUT: {0: "batch"}},
        )
