"""quantize: decide which layers run in int8, and calibrate the ranges of their inputs.

The options are checked before torch is loaded, so what needs it is imported by `apply`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

from edgec.errors import DataError, PassError, UserError
from edgec.state import (
    LayerQuantization,
    ModelState,
    PassContext,
    PassResult,
    Quantization,
)

if TYPE_CHECKING:
    from torch import nn

    from edgec.passes.observe import Inputs

SMALL_HEAD: Final = 64
"""A matrix with fewer outputs is a task head: next to no work, and its error goes straight into the answer."""


@dataclass(frozen=True)
class Quantize:
    """Post-training quantization to 8 bits: s8 weights with a scale a channel, u8 activations, float accumulation out.

    scheme: "static", one activation scale a tensor, fixed by the smallest and largest value seen on the calibration
    texts (after Jacob et al. 2018, section 3), so an answer never depends on batch-mates; "dynamic", a scale a tensor
    taken from the input itself: no calibration, but only texts that run alone get the same answer every time.
    embeddings: the token embedding table too, int8 rows with a scale a row. skip: patterns (fnmatch) of module paths
    that stay in float; one that matches no layer is refused. smooth: patterns of the layers whose inputs are divided by
    a factor a channel, which the weights take over (SmoothQuant, Xiao et al. 2023, equation 4), so that a few outlier
    channels do not stretch the range of all; static only. smooth_alpha: how much of the difficulty moves from
    activations to weights, 0 to 1.
    """

    name: ClassVar[str] = "quantize"

    scheme: Literal["static", "dynamic"] = "static"
    embeddings: bool = True
    skip: tuple[str, ...] = ()
    smooth: tuple[str, ...] = ()
    smooth_alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.smooth and self.scheme != "static":
            raise ValueError("smooth needs calibrated ranges: scheme: static")
        if not 0 <= self.smooth_alpha <= 1:
            raise ValueError(f"smooth_alpha should be between 0 and 1, not {self.smooth_alpha}")

    def requires_texts(self) -> None:
        if self.scheme == "static":
            raise DataError(
                "static quantization needs calibration texts",
                "give data.calibrate in the recipe, or scheme: dynamic",
            )

    def requires(self, state: ModelState) -> None:
        if state.quantization is not None:
            raise UserError(
                "the model is quantized already",
                "keep one quantize pass in the recipe, or start from the float model",
            )
        paths = [path for part in state.parts.values() for path, module in part.named_modules() if _has_weights(module)]
        for pattern in self.skip:
            if not fnmatch.filter(paths, pattern):
                raise UserError(f"no layer matches skip: {pattern}", f"module paths look like {paths[-1]}")

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        from torch import nn

        from edgec.passes.observe import observe

        if not ctx.texts:
            self.requires_texts()
        # Without texts one dummy row tells which layers take part in the task.
        texts = ctx.texts if self.scheme == "static" else ("calibration",)
        observed = observe(state, texts, ctx)
        layers: dict[str, LayerQuantization] = {}
        left_alone: dict[str, str] = {}
        for part_name, part in state.parts.items():
            for path, module in part.named_modules():
                key = f"{part_name}:{path}"
                if not _has_weights(module):
                    continue
                reason = self._keep_in_float(path, module, key in observed, state)
                if reason:
                    left_alone[key] = reason
                elif isinstance(module, nn.Embedding):
                    layers[key] = LayerQuantization("embedding", "weight-only")
                elif self.scheme == "dynamic":
                    layers[key] = LayerQuantization("linear", "dynamic-tensor")
                else:
                    layers[key] = LayerQuantization("linear", input_range=observed[key].range())
        smoothed = self._smooth(state, layers, observed)
        report = {
            "scheme": self.scheme,
            "quantized": len(layers),
            "smoothed": len(smoothed),
            "calibration_texts": len(ctx.texts) if self.scheme == "static" else 0,
            "left_alone": left_alone,
        }
        quantization = Quantization(self.scheme, {**layers, **smoothed}, len(state.history))
        return PassResult(dataclasses.replace(state, quantization=quantization), report)

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

    def _smooth(
        self, state: ModelState, layers: dict[str, LayerQuantization], observed: dict[str, Inputs]
    ) -> dict[str, LayerQuantization]:
        """The layers that match `smooth`, with their factors. Layers that read the same tensor share them."""
        chosen = [
            key
            for key, layer in layers.items()
            if layer.kind == "linear" and any(fnmatch.fnmatch(key.partition(":")[2], p) for p in self.smooth)
        ]
        if self.smooth and not chosen:
            raise UserError(
                f"no quantized layer matches smooth: {', '.join(self.smooth)}",
                f"module paths look like {next(iter(layers)).partition(':')[2]}",
            )
        groups: dict[bytes, list[str]] = {}
        for key in chosen:
            # Layers whose inputs had the same extremes in every channel on all texts read the same tensor.
            groups.setdefault(observed[key].low.tobytes() + observed[key].high.tobytes(), []).append(key)
        smoothed: dict[str, LayerQuantization] = {}
        for keys in groups.values():
            weights = [_module(state, key).weight.detach().abs().amax(dim=0).numpy() for key in keys]
            inputs = observed[keys[0]]
            factors = smoothing_factors(inputs.magnitude(), np.max(weights, axis=0), self.smooth_alpha)
            for key in keys:
                smoothed[key] = LayerQuantization(
                    "linear", input_range=inputs.range(factors), smoothing=tuple(map(float, factors))
                )
        return smoothed

    def _keep_in_float(self, path: str, module: nn.Module, used: bool, state: ModelState) -> str | None:
        """Why a layer is left alone, or None."""
        from torch import nn

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


def smoothing_factors(
    activations: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], alpha: float
) -> npt.NDArray[np.float32]:
    """SmoothQuant's factor of each input channel: max|x|^alpha / max|w|^(1 - alpha) (Xiao et al. 2023, equation 4).

    activations, weights: the largest magnitude of each input channel, (channels,). A channel that is always zero in
    either gets 1.
    """
    live = (activations > 0) & (weights > 0)
    x, w = np.where(live, activations, 1), np.where(live, weights, 1)
    return np.where(live, x**alpha / w ** (1 - alpha), 1).astype(np.float32)


def _has_weights(module: nn.Module) -> bool:
    """Whether it is a matrix or a table, which are all that is ever quantized."""
    from torch import nn

    return isinstance(module, nn.Linear | nn.Embedding)


def _module(state: ModelState, key: str) -> Any:
    part, _, path = key.partition(":")
    return state.parts[part].get_submodule(path)
