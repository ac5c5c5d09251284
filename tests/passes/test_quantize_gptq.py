"""GPTQ in the pass: on the inputs that each layer really has, and in portions where memory is short."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgec.numerics.gptq import gptq
from edgec.numerics.weights import quantize_blocks
from edgec.passes import Quantize, run_pass
from edgec.passes import gptq as gptq_pass
from edgec.state import ModelState, PassContext, Quantization

Inputs = dict[str, list[np.ndarray]]


def rounded(state: ModelState, ctx: PassContext, bits: int = 4) -> tuple[Quantization, dict[str, Any]]:
    after = run_pass(Quantize(scheme="weight-only", bits=bits, block_size=16, rounding="gptq"), state, ctx)
    assert after.quantization is not None
    return after.quantization, after.history[0].report


def weight_of(state: ModelState, key: str) -> np.ndarray:
    return state.parts["encoder"].get_submodule(key.partition(":")[2]).weight.detach().numpy().T


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_those_of_gptq_on_the_layers_inputs(
    bert: ModelState, ctx: PassContext, inputs: Inputs, bits: int
) -> None:
    quantization, _ = rounded(bert, ctx, bits)
    assert {name.rpartition("/")[0] for name in quantization.tensors} == set(inputs)
    for key, texts in inputs.items():
        x = np.concatenate(texts).astype(np.float64)
        expected, scales = gptq(weight_of(bert, key), x.T @ x, bits, 16)
        found = quantization.tensors[f"{key}/weight"]
        assert found.dtype == np.int8 and found.shape == expected.shape
        # The moments are sums in another order: a weight on the edge of two levels may tip.
        assert (found != expected).mean() < 0.02
        assert quantization.tensors[f"{key}/scale"].dtype == np.float32
        assert quantization.tensors[f"{key}/scale"].shape == scales.shape


def test_the_report_has_the_error_of_the_outputs(bert: ModelState, ctx: PassContext, inputs: Inputs) -> None:
    quantization, report = rounded(bert, ctx)
    for key, texts in inputs.items():
        x, weight = np.concatenate(texts), weight_of(bert, key)
        chosen = {
            "nearest": quantize_blocks(weight, 4, 16),
            "gptq": (quantization.tensors[f"{key}/weight"], quantization.tensors[f"{key}/scale"]),
        }
        for name, (ints, scales) in chosen.items():
            error = x @ (ints * np.repeat(scales, 16, axis=0) - weight)
            expected = np.square(error).sum() / np.square(x @ weight).sum()
            assert report["rounding_errors"][key][name] == pytest.approx(expected, rel=1e-3)
    errors = report["rounding_errors"].values()
    assert sum(one["gptq"] for one in errors) < 0.8 * sum(one["nearest"] for one in errors)


def test_short_memory_changes_nothing_but_the_number_of_runs(
    bert: ModelState, ctx: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, _ = rounded(bert, ctx)
    runs: list[list[str]] = []
    observe = gptq_pass.observe

    def counted(state: Any, texts: Any, ctx: Any, collectors: Any, label: str) -> None:
        runs.append(list(collectors))
        observe(state, texts, ctx, collectors, label)

    monkeypatch.setattr(gptq_pass, "observe", counted)
    # All layers here have 32 inputs, so that two moments fit.
    monkeypatch.setattr(gptq_pass, "MEMORY", 2 * 8 * 32**2)
    apart, _ = rounded(bert, ctx)
    for name, tensor in together.tensors.items():
        np.testing.assert_array_equal(tensor, apart.tensors[name])
    # Of each layer's six matrices, query, key and value read one tensor and share its moments.
    assert [len(run) for run in runs] == [2, 2, 2, 2]
    assert not any("attention.self.key" in key for run in runs for key in run)


def test_nearest_keeps_no_tensors(bert: ModelState, ctx: PassContext) -> None:
    after = run_pass(Quantize(scheme="weight-only", bits=4), bert, ctx)
    assert after.quantization is not None and after.quantization.tensors == {}
    assert "rounding_errors" not in after.history[0].report
