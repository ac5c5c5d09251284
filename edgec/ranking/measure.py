"""Each layer of a decision alone in few bits, everything else in float: what that does to the model's outputs."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from edgec_runtime.notices import TruncationWarning

from edgec import __version__
from edgec.data.examples import Text
from edgec.errors import UserError
from edgec.evaluation.quality import agreement
from edgec.models.requests import requests_for
from edgec.models.torch_model import torch_model
from edgec.nn.fake_points import apply_points
from edgec.nn.fake_quantize import quantized_layer, swapped
from edgec.state import LayerQuantization, ModelState, PointQuantization, Progress, Quantization, no_progress

from .finished import Finished
from .result import LayerSensitivity, Ranking
from .sizes import layer_bytes, module_of

if TYPE_CHECKING:
    from edgec_runtime.loading import Model

_CHUNK: Final = 32
Step = Callable[[int], None]


def rank(
    state: ModelState,
    texts: Sequence[Text],
    *,
    reduce_range: bool = False,
    resume_file: Path | None = None,
    progress: Progress = no_progress,
) -> Ranking:
    """The layers and points of `state.quantization`, each quantized alone, by what that costs.

    A layer's figure is 1 - mean cosine of the outputs against those of the float model over `texts`, as
    `edgec.evaluation.quality` computes it, with the layer replaced by its torch reference
    (edgec.nn.fake_quantize). One layer is replaced at a time, and of the float model only the outputs are kept, so
    memory does not grow with the number of layers. reduce_range: as the target's int8.reduce_range. resume_file: where
    finished layers are noted; a run of the same model, decision and texts goes on from there. Raises UserError where
    no layer is quantized, DataError where there are no texts.
    """
    quantization = state.quantization
    if quantization is None or not (quantization.layers or quantization.points):
        raise UserError("no layer of the model is quantized, so there is nothing to rank", "add a quantize pass")
    decided: dict[str, LayerQuantization | PointQuantization] = {**quantization.layers, **quantization.points}
    requests = requests_for(state.spec.task, texts, mask_token=str(state.tokenizer.mask_token))
    finished = Finished(resume_file, _key(state, requests, reduce_range))
    # A scale of a whole tensor would depend on batch-mates and padding.
    schedule = "batches" if quantization.batch_invariant else "streams"
    with torch_model(state, schedule=schedule) as model, warnings.catch_warnings():
        # Texts beyond the model's length are cut as the runtime will cut them.
        warnings.simplefilter("ignore", TruncationWarning)
        step = progress("float outputs", len(requests))
        expected = []
        for chunk in _chunks(requests):
            expected += model.raw(chunk)
            step(len(expected))
        step = progress("rank layers", len(decided) * len(requests))
        for number, key in enumerate(decided):
            if key not in finished.layers:
                started = time.perf_counter()
                with _alone(state, quantization, key, reduce_range):
                    figures = _agreements(model, requests, expected, step, number * len(requests))
                drop, least = 1 - float(np.mean(figures)), float(np.min(figures))
                seconds = time.perf_counter() - started
                finished.add(key, {"drop": drop, "min_cosine": least, "seconds": round(seconds, 3)})
            step((number + 1) * len(requests))
    layers = []
    for key, one in decided.items():
        found = finished.layers[key]["drop"], finished.layers[key]["min_cosine"]
        if isinstance(one, PointQuantization):
            layers.append(LayerSensitivity(key, one.kind, *found, bytes=0, float_bytes=0))
        else:
            sizes = (layer_bytes(module_of(state, key), form) for form in (one, None))
            layers.append(LayerSensitivity(key, one.scheme, *found, *sizes))
    layers.sort(key=lambda layer: -layer.drop)
    seconds = sum(finished.layers[key]["seconds"] for key in decided)
    return Ranking(state.spec.name, "cosine", len(requests), tuple(layers), round(seconds, 1))


@contextmanager
def _alone(state: ModelState, quantization: Quantization, key: str, reduce_range: bool) -> Iterator[None]:
    """Inside, this layer or point of the model computes as decided, and everything else in float."""
    name, _, path = key.partition(":")
    part, module, decision = state.parts[name], module_of(state, key), quantization.of_part(name)
    if path in decision.points:
        with swapped(part, {path: copy.deepcopy(module)}):  # a point is put into the module that it is in
            apply_points(part, {path: decision.points[path]}, reduce_range=reduce_range)
            yield
        return
    chosen = {name.removeprefix(f"{path}/"): v for name, v in decision.tensors.items() if name.startswith(f"{path}/")}
    with swapped(part, {path: quantized_layer(module, decision.layers[path], chosen, reduce_range=reduce_range)}):
        yield


def _agreements(
    model: Model, requests: Sequence[Any], expected: Sequence[Mapping[str, npt.NDArray[Any]]], step: Step, before: int
) -> list[float]:
    """The cosine of every request. before: how many of the whole step are done."""
    figures: list[float] = []
    for chunk in _chunks(requests):
        reference = expected[len(figures) : len(figures) + len(chunk)]
        figures += [agreement(*pair) for pair in zip(reference, model.raw(chunk), strict=True)]
        step(before + len(figures))
    return figures


def _chunks(requests: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(requests), _CHUNK):
        yield requests[start : start + _CHUNK]


def _key(state: ModelState, requests: Sequence[Any], reduce_range: bool) -> str:
    """Changes with everything that the figures depend on."""
    quantization = state.quantization
    assert quantization is not None
    digest = hashlib.sha256()
    tensors = {f"{part}:{name}": t for part, module in state.parts.items() for name, t in module.state_dict().items()}
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy())
    for name, values in sorted(quantization.tensors.items()):
        digest.update(name.encode() + values.tobytes())
    facts = [
        (__version__, torch.__version__),
        dataclasses.asdict(state.spec),
        state.tokenizer.backend_tokenizer.to_str(),
        dataclasses.asdict(dataclasses.replace(quantization, tensors={})),
        list(requests),
        reduce_range,
    ]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()
