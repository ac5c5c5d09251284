"""A model of a known configuration whose weights are yet to come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from optimum.exporters.tasks import TasksManager
from transformers.initialization import no_init_weights

from edgec.errors import ModelError
from edgec.models.families import FAMILIES
from edgec.models.quiet import quiet
from edgec.nn.resize import take_shapes


def empty_model(config: Any, task: str, *, initialised: bool = False) -> Any:
    """The transformers model of `task`, in float32 and evaluation mode.

    initialised: draw weights as the family does, from torch's generator; otherwise they hold no values yet.
    """
    model_class = TasksManager.get_model_class_for_task(task)
    attention = FAMILIES[config.model_type].attention
    with quiet():
        if initialised:
            model = model_class.from_config(config, attn_implementation=attention, dtype=torch.float32)
        else:
            with no_init_weights():
                model = model_class.from_config(config, attn_implementation=attention, dtype=torch.float32)
    if task == "feature-extraction" and getattr(model, "pooler", None) is not None:
        model.pooler = None  # as load_weights: its output is in no embedding
    return model.eval()


def fill(model: Any, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Put `tensors` into `model`, which takes their shapes. Raises ModelError where one is missing or too many."""
    take_shapes(model, tensors)
    model.tie_weights()
    result = model.load_state_dict(dict(tensors), strict=False)
    tied = set(model.all_tied_weights_keys or ())
    missing = [name for name in result.missing_keys if name not in tied]
    if missing or result.unexpected_keys:
        wrong = ", ".join([*missing, *result.unexpected_keys][:5])
        raise ModelError(f"the weights in {folder} do not fit its config.json: {wrong}", "make the build again")
