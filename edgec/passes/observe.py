"""What the layers of a model are given while it answers texts: the ranges of their inputs, channel by channel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from edgec_runtime.notices import TruncationWarning
from torch import nn

from edgec.models.requests import requests_for
from edgec.models.torch_model import torch_model
from edgec.state import ModelState, PassContext


@dataclass
class Inputs:
    """The smallest and largest value of each input channel of a layer, (channels,); empty for an embedding."""

    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]

    def magnitude(self) -> npt.NDArray[np.float32]:
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def range(self, factors: npt.NDArray[np.float32] | float = 1.0) -> tuple[float, float]:
        """Of all channels together, each divided by its (positive) factor. NaN where one was seen."""
        return float(np.min(self.low / factors)), float(np.max(self.high / factors))


def observe(state: ModelState, texts: Sequence[Any], ctx: PassContext) -> dict[str, Inputs]:
    """What every linear layer and embedding that the task runs through was given.

    Texts run one by one, so that no padding is observed.
    """
    observed: dict[str, Inputs] = {}
    requests = requests_for(state.spec.task, texts, mask_token=str(state.tokenizer.mask_token))
    with _hooks(state, observed), torch_model(state, schedule="streams") as model, warnings.catch_warnings():
        # Texts beyond the model's length are cut as the runtime will cut them.
        warnings.simplefilter("ignore", TruncationWarning)
        step = ctx.progress("calibrate", len(requests))
        for done, request in enumerate(requests, start=1):
            model.raw([request])
            step(done)
    return observed


@contextmanager
def _hooks(state: ModelState, observed: dict[str, Inputs]) -> Iterator[None]:
    handles = []
    for part_name, part in state.parts.items():
        for path, module in part.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                handles.append(module.register_forward_pre_hook(_observer(f"{part_name}:{path}", observed)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _observer(key: str, observed: dict[str, Inputs]) -> Any:
    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.Embedding):
            observed[key] = Inputs(np.zeros(0, np.float32), np.zeros(0, np.float32))
            return
        rows = inputs[0].reshape(-1, inputs[0].shape[-1])
        low, high = (values.numpy() for values in torch.aminmax(rows, dim=0))
        before = observed.get(key)
        # numpy's minimum and maximum keep a NaN, so that `ensures` sees it.
        observed[key] = Inputs(
            low if before is None else np.minimum(before.low, low),
            high if before is None else np.maximum(before.high, high),
        )

    return note
