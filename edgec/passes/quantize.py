"""quantize: decide which layers run in int8, and calibrate the ranges of their inputs."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from edgec_runtime.notices import TruncationWarning
from torch import nn

from edgec.errors import DataError, PassError, UserError
from edgec.models.requests import requests_for
from edgec.models.torch_model import torch_model
from edgec.state import (
    LayerQuantization,
    ModelState,
    PassContext,
    PassResult,
    Quantization,
)

SMALL_HEAD: Final = 64
"""A matrix with fewer outputs is a task head: next to no work, and its error goes straight into the answer."""


@dataclass(frozen=True)
class Quantize:
    """Post-training quantization to 8 bits: s8 weights with a scale a channel, u8 activations, float accumulation out.

    scheme: "static", one activation scale a tensor, fixed by the smallest and largest value seen on the calibration
    texts (after Jacob et al. 2018, section 3), so an answer never depends on batch-mates; "dynamic", a scale a tensor
    taken from the input itself: no calibration, but only texts that run alone get the same answer every time.
    embeddings: the token embedding table too, int8 rows with a scale a row. skip: patterns (fnmatch) of module paths
    that stay in float.
    """

    name: ClassVar[str] = "quantize"

    scheme: Literal["static", "dynamic"] = "static"
    embeddings: bool = True
    skip: tuple[str, ...] = ()

    def requires(self, state: ModelState) -> None:
        if state.quantization is not None:
            raise UserError(
                "the model is quantized already",
                "keep one quantize pass in the recipe, or start from the float model",
            )

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        if self.scheme == "static" and not ctx.texts:
            raise DataError(
                "static quantization needs calibration texts",
                "give data.calibrate in the recipe, or scheme: dynamic",
            )
        # Without texts one dummy row tells which layers take part in the task.
        texts = ctx.texts if self.scheme == "static" else ("calibration",)
        ranges = _observe(state, texts, ctx)
        layers: dict[str, LayerQuantization] = {}
        left_alone: dict[str, str] = {}
        for part_name, part in state.parts.items():
            for path, module in part.named_modules():
                key = f"{part_name}:{path}"
                if not isinstance(module, nn.Linear | nn.Embedding):
                    continue
                reason = self._keep_in_float(path, module, key in ranges, state)
                if reason:
                    left_alone[key] = reason
                elif isinstance(module, nn.Embedding):
                    layers[key] = LayerQuantization("embedding")
                else:
                    layers[key] = LayerQuantization(
                        "linear", ranges[key] if self.scheme == "static" else None
                    )
        report = {
            "scheme": self.scheme,
            "quantized": len(layers),
            "calibration_texts": len(ctx.texts) if self.scheme == "static" else 0,
            "left_alone": left_alone,
        }
        return PassResult(dataclasses.replace(state, quantization=Quantization(self.scheme, layers)), report)

    def ensures(self, before: ModelState, after: ModelState) -> None:
        quantization = after.quantization
        if quantization is None or not quantization.layers:
            raise PassError("quantize left every layer in float", "look at its `skip` patterns")
        for path, layer in quantization.layers.items():
            if layer.kind != "linear" or self.scheme == "dynamic":
                continue
            low, high = layer.input_range or (math.nan, math.nan)
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise PassError(
                    f"the inputs of {path} span [{low}, {high}], which is no range",
                    "the model gives infinite or undefined values on the calibration texts: check its weights",
                )

    def _keep_in_float(self, path: str, module: nn.Module, used: bool, state: ModelState) -> str | None:
        """Why a layer is left alone, or None."""
        if any(fnmatch.fnmatch(path, pattern) for pattern in self.skip):
            return "named by the option skip"
        if isinstance(module, nn.Embedding):
            if not self.embeddings:
                return "the option embeddings is off"
            if module.num_embeddings < len(state.tokenizer):
                return "a small table (positions or types): nothing to gain"
            return None if used else "not used by this task"
        assert isinstance(module, nn.Linear)
        if not used:
            return "not used by this task"
        if module.out_features < SMALL_HEAD and module.out_features < module.in_features:
            return f"a task head of {module.out_features} outputs: next to no work, and its error is the answer's"
        return None


def _observe(state: ModelState, texts: Sequence[Any], ctx: PassContext) -> dict[str, tuple[float, float]]:
    """Smallest and largest input of every linear layer (and (0, 0) for every embedding) that the task runs through.

    Texts run one by one, so that no padding is observed.
    """
    ranges: dict[str, tuple[float, float]] = {}
    requests = requests_for(state.spec.task, texts, mask_token=str(state.tokenizer.mask_token))
    with _hooks(state, ranges), torch_model(state, schedule="streams") as model, warnings.catch_warnings():
        # Texts beyond the model's length are cut as the runtime will cut them.
        warnings.simplefilter("ignore", TruncationWarning)
        step = ctx.progress("calibrate", len(requests))
        for done, request in enumerate(requests, start=1):
            model.raw([request])
            step(done)
    return ranges


@contextmanager
def _hooks(state: ModelState, ranges: dict[str, tuple[float, float]]) -> Iterator[None]:
    handles = []
    for part_name, part in state.parts.items():
        for path, module in part.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                handles.append(module.register_forward_pre_hook(_observer(f"{part_name}:{path}", ranges)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _observer(key: str, ranges: dict[str, tuple[float, float]]) -> Any:
    def observe(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.Embedding):
            ranges[key] = (0.0, 0.0)
            return
        low, high = (float(value) for value in torch.aminmax(inputs[0]))
        before = ranges.get(key, (low, high))
        # A NaN must survive, so that `ensures` sees it: min() and max() of Python would drop it.
        ranges[key] = (low, high) if math.isnan(low) else (min(before[0], low), max(before[1], high))

    return observe
