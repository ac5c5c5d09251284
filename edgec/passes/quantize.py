"""quantize: decide which layers run on small integers and how, and calibrate what that needs.

The options are checked before torch is loaded, so what needs it is imported by `apply`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from edgec.errors import DataError, PassError, UserError
from edgec.numerics.ranges import least_squares_range, percentile_range
from edgec.passes.learn import require_scored
from edgec.passes.option_rules import check_options
from edgec.state import LayerQuantization, ModelState, PassContext, PassResult, Quantization
from edgec.training.options import TrainingOptions

if TYPE_CHECKING:
    from edgec.passes.calibrate import MakeObserver
    from edgec.passes.observe import Extremes


@dataclass(frozen=True)
class Quantize:
    """s8 weights, u8 activations, float sums; or small weights alone. Calibrated, and trained where that is asked for.

    scheme: how products are computed; see the schemes below. granularity: "token", a scale each row of the
    activations, so that an answer never depends on batch-mates, or "tensor", one for all, so that texts run alone;
    scheme dynamic only. observer: what the range of a static scale spans: "minmax", the extremes of all calibration
    texts; "moving-average", an average of each text's extremes; "percentile", most values; "mse", the range whose
    rounding and clipping err least in the squared sense. percentile: how many per cent of the values the range holds;
    of the others one half lies on each side. momentum: the weight of the past in a moving average. bits: of the
    weights, 8 or 4 with scheme weight-only; of weights and activations, 4 to 8, with fully-quantized; else 8.
    block_size: how many values share a scale, in weight-only layers and in embeddings of 4 bits. weights:
    "per-channel", a scale an output channel, or "per-tensor", one for the matrix. clip: search the clipping range of
    the weights that errs least in the squared sense; null is true, except with fully-quantized, whose weights are cut
    at their extremes. embeddings: the token embedding table too. embedding_bits: 8, rows with a scale a row, or 4,
    with a scale a block. skip: patterns (fnmatch) of module paths that stay in float; one that matches no layer is
    refused. smooth: patterns of the layers whose inputs are divided by a factor a channel, which the weights take
    over (SmoothQuant, Xiao et al. 2023, equation 4), so that a few outlier channels do not stretch the range of all;
    one that matches no quantized layer is refused. smooth_alpha: how much of the difficulty moves from activations to
    weights, 0 to 1. bias_correction: add the mean of float output minus quantized output on the calibration texts to
    each layer's bias, a value an output channel (Nagel et al. 2019, section 4.2). outliers: patterns of the layers
    whose outlier input channels stay in a float product beside the integer one, as those of every layer do with
    scheme llm-int8; scheme static. outlier_threshold: a channel is an outlier where any magnitude on the calibration
    texts is larger. rounding: "nearest", or "gptq", which lets the weights still to be rounded make good the error of
    those before (Frantar et al. 2022, algorithm 1); scheme weight-only. steps: how many batches of one text the
    moving averages of fully-quantized run over, the texts over and over. softmax: the scores that the softmax reads
    are rounded, too; fully-quantized. layer_norms: which of their tensors are rounded: none, the outputs, or the
    inputs as well; fully-quantized. layer_norm_smoothing: divide the inputs of layer norms by a factor a channel
    before they are rounded; fully-quantized with layer_norms all. when: "after" the training of the model, whose
    weights stay as they are, or "training": the calibrated model goes on learning while it rounds, and fixed ranges
    become moving averages of the extremes of each step's rows, with `momentum` (Bie et al. 2020, section 3.1).
    training: how it learns; when: training. start_step: rounding begins after so many steps, before which the model
    learns in float; when: training. average_checkpoints: the mean of the weights at so many of the last
    `training.checks` is taken, and the ranges are adjusted to it; 1: the last weights, or those that score best on
    data.validation; when: training.
    """

    name: ClassVar[str] = "quantize"

    scheme: Literal["static", "dynamic", "fully-quantized", "llm-int8", "weight-only"] = "static"
    granularity: Literal["token", "tensor"] = "token"
    observer: Literal["minmax", "moving-average", "percentile", "mse"] = "minmax"
    percentile: float = 99.99
    momentum: float = 0.9
    bits: int = 8
    block_size: Literal[16, 32, 64, 128] = 32
    weights: Literal["per-channel", "per-tensor"] = "per-channel"
    clip: bool | None = None
    embeddings: bool = True
    embedding_bits: Literal[8, 4] = 8
    skip: tuple[str, ...] = ()
    smooth: tuple[str, ...] = ()
    smooth_alpha: float = 0.5
    bias_correction: bool = False
    outliers: tuple[str, ...] = ()
    outlier_threshold: float = 6.0
    rounding: Literal["nearest", "gptq"] = "nearest"
    steps: int = 1000
    softmax: bool = True
    layer_norms: Literal["float", "outputs", "all"] = "outputs"
    layer_norm_smoothing: bool = True
    when: Literal["after", "training"] = "after"
    training: TrainingOptions | None = None
    start_step: int = 0
    average_checkpoints: int = 1

    def __post_init__(self) -> None:
        check_options(self)

    def requires_data(self, ctx: PassContext) -> None:
        if not ctx.texts and (needed := self._needs_texts()):
            raise DataError(
                f"{needed[0]} needs calibration texts", f"give data.calibrate in the recipe, or {needed[1]}"
            )
        if self.training is not None:
            require_scored(self.training, ctx, None)
        if self.when == "training" and not (ctx.data.train or ctx.data.unlabelled or ctx.texts):
            raise DataError(
                "quantize with when: training needs rows to train on",
                "give data.train, or texts without labels as data.unlabelled",
            )

    def requires(self, state: ModelState) -> None:
        from edgec.passes.layers import candidates, path_of

        if state.quantization is not None:
            raise UserError(
                "the model is quantized already",
                "keep one quantize pass in the recipe, or start from the float model",
            )
        if state.lora is not None:
            raise UserError("the model has LoRA adapters beside its weights", "merge them with fuse-adapters first")
        paths = [path_of(key) for key in candidates(state)]
        # Full quantization has points inside attention and layer norms, too.
        named = [path for part in state.parts.values() for path, _ in part.named_modules()]
        for pattern in self.skip:
            if not fnmatch.filter(named if self.scheme == "fully-quantized" else paths, pattern):
                raise UserError(f"no layer matches skip: {pattern}", f"module paths look like {paths[-1]}")

    def apply(self, state: ModelState, ctx: PassContext) -> PassResult:
        from edgec.passes.calibrate import observe_inputs, require_range, with_ranges
        from edgec.passes.layers import candidates, is_table
        from edgec.passes.smoothing import factors_of

        texts, make = self._texts(ctx), self._observer()
        seen, observers = observe_inputs(state, texts, ctx, make)
        modules = candidates(state)
        left_alone = self._left_alone(state, modules, seen)
        tables = [key for key in modules if key not in left_alone and is_table(modules[key])]
        matrices = [key for key in modules if key not in left_alone and key not in tables]
        for key in matrices:
            require_range(key, seen[key].range())
        smoothed = _named(matrices, "smooth", self.smooth)
        split = _named([*matrices, *left_alone], "outliers", self.outliers)
        factors = factors_of(state, smoothed, seen, self.smooth_alpha)
        layers = {
            **{key: self._table() for key in tables},
            **{key: self._matrix(key, seen[key], factors.get(key)) for key in matrices},
        }
        layers = with_ranges(state, layers, seen, observers, texts, ctx, make)
        report: dict[str, Any] = {
            "scheme": self.scheme,
            "quantized": len(layers),
            "smoothed": len(smoothed),
            "calibration_texts": len(texts) if self._needs_texts() else 0,
            "left_alone": left_alone,
        }
        if self.scheme == "static":
            report["observer"] = self.observer
        if split or self.scheme == "llm-int8":
            report["outliers"] = {key: len(layers[key].outliers) for key in split or matrices if key in layers}
        decision = Quantization(self.scheme, layers, len(state.history))
        decision = self._refined(state, decision, seen, texts, ctx, report)
        if self.when == "training":
            return self._trained(state, decision, ctx, report)
        return PassResult(dataclasses.replace(state, quantization=decision), report)

    def ensures(self, before: ModelState, after: ModelState) -> None:
        from edgec.passes.calibrate import require_range

        quantization = after.quantization
        if quantization is None or not quantization.layers:
            raise PassError("quantize left every layer in float", "look at its `skip` patterns")
        for key, layer in quantization.layers.items():
            if layer.scheme == "static":
                require_range(key, layer.input_range)
        for key, point in quantization.points.items():
            for found in point.ranges.values():
                require_range(key, found)

    def _trained(
        self, state: ModelState, decision: Quantization, ctx: PassContext, report: dict[str, Any]
    ) -> PassResult:
        """The calibrated `decision` after training with it."""
        from edgec.passes.quantize_training import TrainingSettings, train_rounded

        if self.scheme == "static":
            report["observer"] = "moving-average"
        settings = TrainingSettings(
            self.training or TrainingOptions(), self.start_step, self.momentum, self.average_checkpoints
        )
        # A float export of the trained weights has gone through this pass as well.
        decision = dataclasses.replace(decision, passes_before=len(state.history) + 1)
        after, report["training"] = train_rounded(state, decision, settings, ctx)
        return PassResult(after, report)

    def _needs_texts(self) -> tuple[str, str] | None:
        """What of these options has to be calibrated, and what to choose instead."""
        if self.scheme in ("static", "llm-int8", "fully-quantized"):
            return f"{self.scheme.replace('fully-quantized', 'full')} quantization", "scheme: dynamic"
        if self.smooth:
            return "the option smooth", "leave it out"
        if self.bias_correction:
            return "the option bias_correction", "leave it out"
        return ("rounding: gptq", "rounding: nearest") if self.rounding == "gptq" else None

    def _texts(self, ctx: PassContext) -> tuple[Any, ...]:
        """What to observe. Where nothing is calibrated, one dummy tells which layers take part in the task."""
        if not self._needs_texts():
            return ("calibration",)
        self.requires_data(ctx)
        return ctx.texts[: self.steps] if self.scheme == "fully-quantized" else ctx.texts

    def _observer(self) -> MakeObserver | None:
        """What makes an observer of a layer's inputs; None where their extremes are all that is asked."""
        from edgec.passes.observe import Averaged, FromHistogram

        if self.scheme == "fully-quantized":
            return lambda: Averaged(self.momentum, self.steps)
        if self.observer == "moving-average":
            return lambda: Averaged(self.momentum)
        if self.observer == "percentile":
            return lambda: FromHistogram(lambda histogram: percentile_range(histogram, self.percentile))
        if self.observer == "mse":
            return lambda: FromHistogram(lambda histogram: least_squares_range(histogram, self.bits))
        return None

    def _left_alone(
        self, state: ModelState, modules: Mapping[str, Any], seen: Mapping[str, Extremes]
    ) -> dict[str, str]:
        """The matrices and tables that stay in float, with the reason."""
        from edgec.passes.layers import is_table, kept_in_float, matching

        skipped, vocabulary = matching(modules, self.skip), len(state.tokenizer)
        left: dict[str, str] = {}
        for key, module in modules.items():
            inputs = seen[key]
            reason = kept_in_float(
                module, vocabulary=vocabulary, skipped=key in skipped, used=inputs.used, embeddings=self.embeddings
            )
            if reason is None and not is_table(module) and len(self._outliers(key, inputs)) == module.in_features:
                reason = "all its input channels are outliers"
            if reason is not None:
                left[key] = reason
        return left

    def _table(self) -> LayerQuantization:
        return LayerQuantization("embedding", "weight-only", bits=self.embedding_bits, block_size=self.block_size)

    def _matrix(self, key: str, inputs: Extremes, factors: npt.NDArray[np.float32] | None) -> LayerQuantization:
        """Without the range of its inputs, and before its bias is corrected."""
        scheme = {"dynamic": f"dynamic-{self.granularity}", "fully-quantized": "static"}.get(self.scheme, self.scheme)
        return LayerQuantization(
            "linear",
            scheme,
            bits=self.bits,
            block_size=self.block_size,
            per_tensor=self.weights == "per-tensor",
            clip=self.scheme != "fully-quantized" if self.clip is None else self.clip,
            smoothing=None if factors is None else tuple(map(float, factors)),
            outliers=self._outliers(key, inputs),
        )

    def _outliers(self, key: str, inputs: Extremes) -> tuple[int, ...]:
        """The input channels of a matrix that stay in float (Dettmers et al. 2022, section 3.2)."""
        from edgec.passes.layers import matching

        if self.scheme != "llm-int8" and not matching([key], self.outliers):
            return ()
        return tuple(map(int, np.flatnonzero(inputs.magnitude() > self.outlier_threshold)))

    def _refined(
        self,
        state: ModelState,
        decision: Quantization,
        seen: Mapping[str, Extremes],
        texts: tuple[Any, ...],
        ctx: PassContext,
        report: dict[str, Any],
    ) -> Quantization:
        """`decision` with what follows from it: weights rounded by GPTQ, biases, the points of full quantization."""
        if self.rounding == "gptq":
            from edgec.passes.gptq import round_layers

            tensors, report["rounding_errors"] = round_layers(state, decision.layers, seen, texts, ctx)
            decision = dataclasses.replace(decision, tensors=tensors)
        if self.bias_correction:
            from edgec.passes.bias_correction import bias_corrected

            corrected = bias_corrected(state, decision, texts, ctx)
            decision = dataclasses.replace(decision, layers={**decision.layers, **corrected})
            report["bias_corrected"] = len(corrected)
        if self.scheme == "fully-quantized":
            from edgec.passes.layers import matching
            from edgec.passes.points import observe_points

            points, left_alone = observe_points(
                state,
                texts,
                ctx,
                bits=self.bits,
                softmax=self.softmax,
                layer_norms=self.layer_norms,
                layer_norm_smoothing=self.layer_norm_smoothing,
                momentum=self.momentum,
                steps=self.steps,
            )
            skipped = matching(points, self.skip)
            points = {key: point for key, point in points.items() if key not in skipped}
            decision = dataclasses.replace(decision, points=points)
            report["left_alone"] |= left_alone | dict.fromkeys(skipped, "named by the option skip")
            report["points"] = len(points)
        return decision


def _named(keys: Sequence[str], option: str, patterns: Sequence[str]) -> list[str]:
    """Those of the layers `keys` that an option names. Raises UserError for a pattern that matches none."""
    from edgec.passes.layers import matching, path_of

    for pattern in patterns:
        if not matching(keys, [pattern]):
            example = f"module paths look like {path_of(keys[0])}" if keys else "every layer is left in float"
            raise UserError(f"no quantized layer matches {option}: {pattern}", example)
    return matching(keys, patterns)
