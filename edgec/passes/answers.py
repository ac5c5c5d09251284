"""What a model answers to sample texts, and how far two forms of one model are apart."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, Final

from edgec_runtime.notices import TruncationWarning

from edgec.data.examples import Text
from edgec.data.samples import SAMPLE_PAIR, SAMPLE_TEXTS
from edgec.graph.parity import Outputs, Parity, compare
from edgec.models.requests import requests_for
from edgec.models.torch_model import torch_model
from edgec.nn.fake_quantize import fake_quantized
from edgec.state import ModelState

MOST_TEXTS: Final = 64
"""Of the calibration texts, spread over all of them."""


def sample_requests(state: ModelState, texts: Sequence[Text]) -> list[Any]:
    """What the model is asked: the samples of every bundle, and `texts`, at most MOST_TEXTS of them."""
    asked: list[Text] = [*SAMPLE_TEXTS, *texts[:: max(1, -(-len(texts) // MOST_TEXTS))]]
    if state.spec.pairs and state.spec.task == "text-classification":
        asked.append(SAMPLE_PAIR)
    return requests_for(state.spec.task, asked, mask_token=str(state.tokenizer.mask_token or ""))


def answers(state: ModelState, requests: Sequence[Any]) -> Sequence[Outputs]:
    """Of the model as `state` has it: in float, or with the roundings of its quantization. One unpadded row at a
    time, as the runtime does with streams."""
    with torch_model(with_roundings(state), schedule="streams") as model, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # long samples are there on purpose
        return model.raw(requests)


def with_roundings(state: ModelState) -> ModelState:
    """The same, its parts with the roundings of its quantization, so that torch answers as the graph does."""
    if state.quantization is None:
        return state
    decided = state.quantization
    rounded = {name: fake_quantized(part, decided.of_part(name)) for name, part in state.parts.items()}
    return dataclasses.replace(state, parts=rounded, quantization=None)


def apart(expected: Sequence[Outputs], got: Sequence[Outputs]) -> Parity:
    """How far two models' answers to the same requests are apart, output by output."""
    return compare([(name, a[name], b[name]) for a, b in zip(expected, got, strict=True) for name in a])
