"""A tiny model that answers as another does, one channel of its first feed-forward layer being 64 times as large."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import SENTENCES, tiny

from edgec.models import load_model
from edgec.state import ModelState

TEXTS = tuple(f"{a} {b}" for a in SENTENCES for b in SENTENCES[:3])
WORST = "encoder:model.encoder.layer.0.output.dense"
"""The layer that reads the channel."""


def plain_model(folder: Path, **config: int) -> ModelState:
    """A BERT of two layers with ReLU, which a positive factor passes through."""
    return load_model(tiny("bert", "feature-extraction", folder, hidden_act="relu", hidden_size=64, **config))


def scale_channel(state: ModelState, factor: float = 64.0, channel: int = 5) -> ModelState:
    """Scale a channel before the activation, and what reads it by the inverse, in place.

    A factor that is a power of two changes no output, not in the last bit.
    """
    layer = state.parts["encoder"].model.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.weight[channel] *= factor
        layer.intermediate.dense.bias[channel] *= factor
        layer.output.dense.weight[:, channel] /= factor
    return state
