"""A quantization decision that takes in layers which were put on the model after it was made."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from torch import nn

from edgec.errors import DataError
from edgec.passes.calibrate import require_range
from edgec.passes.layers import kept_in_float
from edgec.passes.observe import Extremes, observe
from edgec.passes.quantize import Quantize
from edgec.state import LayerQuantization, ModelState, PassContext, Quantization

_CALIBRATED: Final = ("static", "llm-int8")


def renamed(decision: Quantization, names: Mapping[str, str]) -> Quantization:
    """`decision` with its modules, by "PART:PATH", called as `names` says, and without those that it does not name."""
    tensors = {key.rpartition("/"): tensor for key, tensor in decision.tensors.items()}
    return dataclasses.replace(
        decision,
        layers={names[key]: layer for key, layer in decision.layers.items() if key in names},
        points={names[key]: point for key, point in decision.points.items() if key in names},
        tensors={f"{names[key]}/{name}": tensor for (key, _, name), tensor in tensors.items() if key in names},
    )


def extended(
    state: ModelState, decision: Quantization, keys: Sequence[str], texts: Sequence[Any], ctx: PassContext
) -> tuple[Quantization, dict[str, str]]:
    """`decision` with the linear layers `keys` of `state`, and those that stay in float with the reason.

    state: computes as `decision` says (edgec.nn.fake_quantize), the new layers in float, so that they are calibrated on
    what an int8 graph will give them. They take the form that most layers have: its scheme, bits and block size.
    Activations on a fixed scale get the range of all `texts`; outliers are channels above Quantize.outlier_threshold;
    there is no smoothing, correction or GPTQ. Raises DataError where texts are needed and there are none.
    """
    form = _form(decision)
    if form.scheme in _CALIBRATED and not texts:
        raise DataError("the adapter of a quantized model is calibrated on texts", "give data.calibrate in the recipe")
    seen = {key: Extremes() for key in keys}
    dummy = ("calibration",)
    observe(state, texts if form.scheme in _CALIBRATED else dummy, ctx, {key: [one] for key, one in seen.items()})
    layers, left_alone = {}, {}
    for key in keys:
        part, _, path = key.partition(":")
        module: nn.Linear = state.parts[part].get_submodule(path)
        reason = kept_in_float(
            module, vocabulary=len(state.tokenizer), skipped=False, used=seen[key].used, embeddings=True
        )
        if reason is not None:
            left_alone[key] = reason
            continue
        require_range(key, seen[key].range())
        layers[key] = _decided(form, seen[key])
    return dataclasses.replace(decision, layers={**decision.layers, **layers}), left_alone


def _form(decision: Quantization) -> LayerQuantization:
    """What most linear layers have in common."""
    bare = Counter(
        dataclasses.replace(layer, input_range=None, smoothing=None, outliers=(), bias_correction=None)
        for layer in decision.layers.values()
        if layer.kind == "linear"
    )
    return bare.most_common(1)[0][0] if bare else LayerQuantization("linear", "weight-only")


def _decided(form: LayerQuantization, inputs: Extremes) -> LayerQuantization:
    if form.scheme == "static":
        return dataclasses.replace(form, input_range=inputs.range())
    if form.scheme == "llm-int8":
        outliers = np.flatnonzero(inputs.magnitude() > Quantize.outlier_threshold)
        if len(outliers) < len(inputs.magnitude()):
            return dataclasses.replace(form, outliers=tuple(map(int, outliers)))
    return form
