"""Options of the quantize pass that do not go together, told at once, and what has to be calibrated."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgec.errors import DataError
from edgec.passes import Quantize, run_pass
from edgec.state import ModelState, PassContext

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "granularity": ({"granularity": "tensor"}, "granularity is an option of scheme dynamic, not of static"),
    "observer": ({"scheme": "dynamic", "observer": "mse"}, "observer is an option of scheme static, not of dynamic"),
    "weights": (
        {"scheme": "weight-only", "weights": "per-tensor"},
        "weights is an option of scheme static, dynamic, llm-int8 or fully-quantized, not of weight-only",
    ),
    "clip": ({"scheme": "weight-only", "clip": True}, "clip is an option of scheme static"),
    "smooth llm-int8": (
        {"scheme": "llm-int8", "smooth": ("*",)},
        "smooth is an option of scheme static, dynamic or fully-quantized, not of llm-int8",
    ),
    "smooth weight-only": ({"scheme": "weight-only", "smooth": ("*",)}, "smooth is an option of"),
    "outliers": ({"scheme": "dynamic", "outliers": ("*",)}, "outliers is an option of scheme static, not of dynamic"),
    "rounding": ({"rounding": "gptq"}, "rounding is an option of scheme weight-only, not of static"),
    "steps": ({"steps": 5}, "steps is an option of scheme fully-quantized, not of static"),
    "softmax": ({"softmax": False}, "softmax is an option of scheme fully-quantized"),
    "layer_norms": ({"scheme": "dynamic", "layer_norms": "all"}, "layer_norms is an option of scheme fully-quantized"),
    "layer_norm_smoothing": ({"layer_norm_smoothing": False}, "layer_norm_smoothing is an option of scheme fully"),
    "bits static": ({"bits": 4}, "bits should be 8 with scheme static, not 4"),
    "bits weight-only": ({"scheme": "weight-only", "bits": 5}, "bits should be 4 or 8 with scheme weight-only, not 5"),
    "bits fully-quantized": (
        {"scheme": "fully-quantized", "bits": 3},
        "bits should be 4, 5, 6, 7 or 8 with scheme fully-quantized, not 3",
    ),
    "percentile": ({"observer": "percentile", "percentile": 50.0}, "percentile should be above 50 and at most 100"),
    "percentile too large": ({"observer": "percentile", "percentile": 101.0}, "percentile should be above 50"),
    "percentile of another": ({"observer": "mse", "percentile": 99.0}, "percentile is for observer: percentile, not"),
    "momentum": ({"observer": "moving-average", "momentum": 1.0}, "momentum should be at least 0 and below 1, not 1.0"),
    "momentum of another": ({"momentum": 0.5}, "momentum is for observer: moving-average, not for minmax"),
    "momentum of dynamic": ({"scheme": "dynamic", "momentum": 0.5}, "momentum is an option of scheme static or fully"),
    "smooth_alpha": ({"smooth_alpha": 1.5}, "smooth_alpha should be between 0 and 1, not 1.5"),
    "threshold": ({"scheme": "llm-int8", "outlier_threshold": 0.0}, "outlier_threshold should be above 0, not 0.0"),
    "threshold of nothing": ({"outlier_threshold": 4.0}, "outlier_threshold is given, and outliers names no layer"),
    "threshold of dynamic": ({"scheme": "dynamic", "outlier_threshold": 4.0}, "is an option of scheme static or llm"),
    "steps 0": ({"scheme": "fully-quantized", "steps": 0}, "steps should be at least 1, not 0"),
    "embedding_bits": ({"embeddings": False, "embedding_bits": 4}, "embedding_bits is 4, and embeddings is off"),
    "block_size": ({"block_size": 64}, "block_size is for scheme weight-only and for embedding_bits: 4"),
}
ACCEPTED: tuple[dict[str, Any], ...] = (
    {"scheme": "dynamic", "granularity": "tensor", "smooth": ("*",), "weights": "per-tensor", "clip": False},
    {"observer": "percentile", "percentile": 100.0, "embedding_bits": 4, "block_size": 16},
    {"observer": "moving-average", "momentum": 0.0, "bias_correction": True},
    {"outliers": ("*",), "outlier_threshold": 3.0, "smooth": ("*",)},
    {"scheme": "llm-int8", "outlier_threshold": 3.0, "bias_correction": True},
    {"scheme": "weight-only", "bits": 4, "block_size": 128, "rounding": "gptq", "bias_correction": True},
    {"scheme": "fully-quantized", "bits": 4, "momentum": 0.5, "steps": 1, "clip": True, "layer_norms": "all"},
)


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_do_not_fit(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^.*{re.escape(message)}"):
        Quantize(**options)


@pytest.mark.parametrize("options", ACCEPTED, ids=lambda options: next(iter(options.values())))
def test_options_that_fit(options: dict[str, Any]) -> None:
    Quantize(**options)


def test_options_are_checked_without_torch() -> None:
    code = (
        "import sys; from edgec.passes import Quantize\n"
        "try: Quantize(bits=4)\n"
        "except ValueError: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("options", "message", "remedy"),
    [
        ({}, "static quantization", "scheme: dynamic"),
        ({"scheme": "llm-int8"}, "llm-int8 quantization", "scheme: dynamic"),
        ({"scheme": "fully-quantized"}, "full quantization", "scheme: dynamic"),
        ({"scheme": "dynamic", "smooth": ("*",)}, "the option smooth", "leave it out"),
        ({"scheme": "weight-only", "bias_correction": True}, "the option bias_correction", "leave it out"),
        ({"scheme": "weight-only", "rounding": "gptq"}, "rounding: gptq", "rounding: nearest"),
    ],
    ids=str,
)
def test_what_needs_texts(options: dict[str, Any], message: str, remedy: str, bert: ModelState, tmp_path: Path) -> None:
    step = Quantize(**options)
    nothing = PassContext(tmp_path)
    for call in (lambda: step.requires_data(nothing), lambda: run_pass(step, bert, nothing)):
        with pytest.raises(DataError, match=f"^{message} needs calibration texts$") as caught:
            call()
        assert caught.value.hint == f"give data.calibrate in the recipe, or {remedy}"


@pytest.mark.parametrize("scheme", ["dynamic", "weight-only"])
def test_what_needs_none(scheme: Any, bert: ModelState, tmp_path: Path) -> None:
    step = Quantize(scheme=scheme)
    step.requires_data(PassContext(tmp_path))
    after = run_pass(step, bert, PassContext(tmp_path))
    assert after.quantization is not None and len(after.quantization.layers) == 13
    assert all(layer.input_range is None for layer in after.quantization.layers.values())
    assert after.history[0].report["calibration_texts"] == 0
