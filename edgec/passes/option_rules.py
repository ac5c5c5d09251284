"""Which options of the quantize pass go together; told from the options alone, before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from edgec.training.options import TrainingOptions

if TYPE_CHECKING:
    from edgec.passes.quantize import Quantize

_INT8_PRODUCTS: Final = ("static", "dynamic", "llm-int8", "fully-quantized")

_SCHEMES_OF: Final[dict[str, tuple[str, ...]]] = {
    "granularity": ("dynamic",),
    "observer": ("static",),
    "percentile": ("static",),
    "momentum": ("static", "fully-quantized"),
    "weights": _INT8_PRODUCTS,
    "clip": _INT8_PRODUCTS,
    "smooth": ("static", "dynamic", "fully-quantized"),
    "rounding": ("weight-only",),
    "outliers": ("static",),
    "outlier_threshold": ("static", "llm-int8"),
    "steps": ("fully-quantized",),
    "softmax": ("fully-quantized",),
    "layer_norms": ("fully-quantized",),
    "layer_norm_smoothing": ("fully-quantized",),
}
"""The schemes that an option means something to; all others mean something to every scheme."""

_BITS: Final[dict[str, tuple[int, ...]]] = {"weight-only": (4, 8), "fully-quantized": (4, 5, 6, 7, 8)}


def check_options(step: Quantize) -> None:
    """Raises ValueError for a value out of bounds, and for an option that would have no effect beside the others."""
    _check_bounds(step)
    given = {f.name for f in dataclasses.fields(step) if getattr(step, f.name) != f.default}
    for name in [f.name for f in dataclasses.fields(step) if f.name in given]:
        schemes = _SCHEMES_OF.get(name, (step.scheme,))
        if step.scheme not in schemes:
            raise ValueError(f"{name} is an option of scheme {_or(schemes)}, not of {step.scheme}")
    _check_training(step, given)
    if "percentile" in given and step.observer != "percentile":
        raise ValueError(f"percentile is for observer: percentile, not for {step.observer}")
    averaged = step.observer == "moving-average" or step.when == "training"
    if "momentum" in given and step.scheme == "static" and not averaged:
        raise ValueError(f"momentum is for observer: moving-average, not for {step.observer}")
    if "outlier_threshold" in given and step.scheme == "static" and not step.outliers:
        raise ValueError("outlier_threshold is given, and outliers names no layer: leave it out, or name layers")
    if step.embedding_bits == 4 and not step.embeddings:
        raise ValueError("embedding_bits is 4, and embeddings is off: leave one of them out")
    if "block_size" in given and step.scheme != "weight-only" and step.embedding_bits != 4:
        raise ValueError("block_size is for scheme weight-only and for embedding_bits: 4; nothing else has blocks")


def _check_training(step: Quantize, given: set[str]) -> None:
    if step.when == "after":
        for name in ("training", "start_step", "average_checkpoints"):
            if name in given:
                raise ValueError(f"{name} is an option of when: training, not of after")
        return
    if step.rounding == "gptq":
        raise ValueError("rounding: gptq chooses integers for weights that stay; with when: training leave it out")
    if "observer" in given:
        raise ValueError("observer is for when: after; with when: training ranges are moving averages")
    training = step.training or TrainingOptions()
    if training.steps is not None and step.start_step >= training.steps:
        raise ValueError(f"start_step should be below training.steps ({training.steps}), not {step.start_step}")
    if step.average_checkpoints > training.checks:
        raise ValueError(
            f"average_checkpoints should be at most training.checks ({training.checks}), not {step.average_checkpoints}"
        )
    if step.average_checkpoints > 1 and training.patience is not None:
        raise ValueError("average_checkpoints is for a training of known length: leave it out, or training.patience")


def _check_bounds(step: Quantize) -> None:
    bits = _BITS.get(step.scheme, (8,))
    for name, fits, wanted in (
        ("bits", step.bits in bits, f"{_or(map(str, bits))} with scheme {step.scheme}"),
        ("percentile", 50 < step.percentile <= 100, "above 50 and at most 100"),
        ("momentum", 0 <= step.momentum < 1, "at least 0 and below 1"),
        ("smooth_alpha", 0 <= step.smooth_alpha <= 1, "between 0 and 1"),
        ("outlier_threshold", step.outlier_threshold > 0, "above 0"),
        ("steps", step.steps >= 1, "at least 1"),
        ("start_step", step.start_step >= 0, "at least 0"),
        ("average_checkpoints", step.average_checkpoints >= 1, "at least 1"),
    ):
        if not fits:
            raise ValueError(f"{name} should be {wanted}, not {getattr(step, name)}")


def _or(words: Iterable[str]) -> str:
    *first, last = list(words)
    return f"{', '.join(first)} or {last}" if first else last
