"""Which parameters train at which rate, and which decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from edgec.nn.layout import depth
from edgec.training.options import TrainingOptions


def parameter_groups(learner: nn.Module, part: nn.Module, options: TrainingOptions) -> list[dict[str, Any]]:
    """Groups for an optimizer: decay on matrices alone, learning rates that fall from the head to the embeddings.

    The head, an adapter and what the objective learns train at learning_rate; the i-th layer from the top at
    learning_rate * layer_decay ** i, the embeddings below the last of them (Howard and Ruder 2018, section 3.2).
    """
    depths = depth(part)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if not parameter.requires_grad:
            continue
        below = depths.get(name.removeprefix("part."), 0)
        rate = options.learning_rate * options.layer_decay**below
        decay = options.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]
