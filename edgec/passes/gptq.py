"""Weight-only layers rounded by GPTQ: the second moments of their inputs, gathered text by text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from edgec.numerics.gptq import gptq, output_error
from edgec.numerics.weights import quantize_blocks
from edgec.passes.layers import module_of
from edgec.passes.observe import Extremes, observe
from edgec.passes.smoothing import readers_of_one_tensor
from edgec.state import LayerQuantization, ModelState, PassContext

MEMORY: Final = 2**30
"""Bytes of second moments that are held at a time: where the layers need more, the texts run again."""


class SecondMoment:
    """The sum of x x^T over all rows x, (inputs, inputs)."""

    def __init__(self, inputs: int) -> None:
        self.sum = torch.zeros(inputs, inputs, dtype=torch.float64)

    def add(self, rows: torch.Tensor, text: int) -> None:
        self.sum += rows.T @ rows


def round_layers(
    state: ModelState,
    layers: Mapping[str, LayerQuantization],
    seen: Mapping[str, Extremes],
    texts: Sequence[Any],
    ctx: PassContext,
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, dict[str, float]]]:
    """Round the linear layers among `layers` by GPTQ, on the inputs that the float model gives them.

    Returns the integers and scales as Quantization.tensors holds them, and of each layer the squared error of its
    outputs in parts of the squared outputs: {"nearest": .., "gptq": ..}.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    errors: dict[str, dict[str, float]] = {}
    linear = [key for key, layer in layers.items() if layer.kind == "linear"]
    for groups in _portions(readers_of_one_tensor(linear, seen), seen):
        moments = {readers[0]: SecondMoment(seen[readers[0]].low.size) for readers in groups}
        observe(state, texts, ctx, {key: [moment] for key, moment in moments.items()}, "gather second moments")
        step = ctx.progress("round weights", len(groups))
        for done, readers in enumerate(groups, start=1):
            moment = moments.pop(readers[0]).sum.numpy()
            for key in readers:
                weight = np.ascontiguousarray(module_of(state, key).weight.detach().numpy().T)
                bits, block_size = layers[key].bits, layers[key].block_size
                nearest, chosen = quantize_blocks(weight, bits, block_size), gptq(weight, moment, bits, block_size)
                tensors[f"{key}/weight"], tensors[f"{key}/scale"] = chosen
                errors[key] = {
                    "nearest": output_error(weight, *nearest, block_size, moment),
                    "gptq": output_error(weight, *chosen, block_size, moment),
                }
            step(done)
    return tensors, errors


def _portions(groups: Iterable[list[str]], seen: Mapping[str, Extremes]) -> list[list[list[str]]]:
    """The groups in portions whose second moments fit into MEMORY together."""
    portions: list[list[list[str]]] = []
    held = MEMORY
    for readers in groups:
        size = 8 * seen[readers[0]].low.size ** 2
        if held + size > MEMORY:
            portions.append([])
            held = 0
        portions[-1].append(readers)
        held += size
    return portions
