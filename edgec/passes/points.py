"""What attention and layer norms compute with while a model answers texts: the points of the fully-quantized scheme."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgec.nn.fake_points import attention_calls, attention_probabilities, attention_scores
from edgec.numerics.ranges import Range
from edgec.passes.layers import candidates
from edgec.passes.observe import Averaged, Divided, Extremes, Observer, observe
from edgec.state import ModelState, PassContext, PointQuantization

Note = Callable[[str, str, torch.Tensor], None]
"""Takes a module's "PART:PATH", the name of one of its tensors as in PointQuantization.ranges, and the tensor."""

_PRODUCTS: Final = ("query", "key", "value", "probabilities")
_NOT_PLAIN: Final = "not a plain scaled dot product: its products stay in float"


def observe_points(
    state: ModelState,
    texts: Sequence[Any],
    ctx: PassContext,
    *,
    bits: int,
    softmax: bool,
    layer_norms: Literal["float", "outputs", "all"],
    layer_norm_smoothing: bool,
    momentum: float = 0.9,
    steps: int = 1000,
) -> tuple[dict[str, PointQuantization], dict[str, str]]:
    """The points inside attention and layer norms, with calibrated ranges, and the modules left alone with the reason.

    Attention: query, key, value and probabilities, which its two products read (Bie et al. 2020, section 3.2), and
    with `softmax` the scaled scores too, which the softmax reads. layer_norms: none of their tensors, the outputs, or
    inputs and outputs. layer_norm_smoothing: inputs are divided by each channel's largest magnitude first, because a
    few channels of the residual stream are far larger than all others and would stretch the one range of all.
    Ranges are moving averages of the extremes of single texts (section 3.1); momentum is the weight of what was, and
    the texts are averaged over and over for `steps` steps. Weights do not change, so each text runs once (twice where
    inputs of layer norms are smoothed: the factors come first), and its extremes serve whenever its turn comes again.
    Both results are by "PART:PATH".
    """
    wanted = {*_PRODUCTS, *(["scores"] if softmax else [])}
    wanted |= {"float": set(), "outputs": {"output"}, "all": {"input", "output"}}[layer_norms]
    smoothed = layer_norms == "all" and layer_norm_smoothing
    extremes: dict[str, Extremes] = {}
    averages: dict[str, dict[str, Observer]] = {}

    def first(key: str, name: str, values: torch.Tensor) -> None:
        if smoothed and name == "input":
            extremes.setdefault(key, Extremes()).add(values.reshape(-1, values.shape[-1]), clock.text)
        elif name in wanted:
            averages.setdefault(key, {}).setdefault(name, Averaged(momentum, steps)).add(values, clock.text)

    def again(key: str, name: str, values: torch.Tensor) -> None:
        if name == "input":
            averages[key][name].add(values, clock.text)

    texts, clock = texts[:steps], _Clock()
    _run(state, texts, ctx, clock, first, "calibrate attention and layer norms")
    factors = {key: _factors(seen.magnitude()) for key, seen in extremes.items()}
    for key, divisors in factors.items():
        averages[key]["input"] = Divided(Averaged(momentum, steps), divisors)
    if factors:
        _run(state, texts, ctx, clock, again, "calibrate smoothed layer norms")
    points = {
        key: PointQuantization(
            "layer-norm" if "output" in found else "attention",
            bits,
            {name: _range(name, observer) for name, observer in found.items()},
            tuple(map(float, factors[key])) if key in factors else None,
        )
        for key, found in averages.items()
    }
    return points, {key: _NOT_PLAIN for key in _self_attentions(state) if key not in points}


class _Clock:
    """A collector that knows which text runs."""

    text = 0

    def add(self, rows: torch.Tensor, text: int) -> None:
        self.text = text


def _run(state: ModelState, texts: Sequence[Any], ctx: PassContext, clock: _Clock, note: Note, label: str) -> None:
    """Run `texts` one by one, unpadded, and give `note` what attention and layer norms read and write."""
    # Every model looks its ids up before anything else.
    tables = {key: [clock] for key, module in candidates(state).items() if isinstance(module, nn.Embedding)}
    with _noted(state, note):
        observe(state, texts, ctx, tables, label)


@contextmanager
def _noted(state: ModelState, note: Note) -> Iterator[None]:
    names = {module: f"{part}:{path}" for part, one in state.parts.items() for path, module in one.named_modules()}

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        scores = attention_scores(query, key, scaling)
        probabilities = attention_probabilities(scores, mask)
        # What lies outside a sliding window is hidden even in a text that runs alone.
        seen = scores if mask is None else scores[mask.expand_as(scores)]
        for name, values in zip(
            ("query", "key", "value", "scores", "probabilities"), (query, key, value, seen, probabilities), strict=True
        ):
            note(names[module], name, values)
        return (probabilities @ value).transpose(1, 2).contiguous(), None

    def normed(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        note(names[module], "input", inputs[0])
        note(names[module], "output", output)

    handles = [module.register_forward_hook(normed) for module in names if isinstance(module, nn.LayerNorm)]
    try:
        with attention_calls(attend):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _factors(magnitude: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What brings every channel to the same range; 1 for a channel that is always zero."""
    return np.where(magnitude > 0, magnitude, np.float32(1))


def _range(name: str, observer: Observer) -> Range:
    low, high = observer.range()
    # In a padded batch some probabilities are zero that are not in a text that runs alone.
    return (0.0 if name == "probabilities" else low), high


def _self_attentions(state: ModelState) -> list[str]:
    return [
        f"{part}:{path}"
        for part, one in state.parts.items()
        for path, module in one.named_modules()
        if type(module).__name__.endswith("SelfAttention")
    ]
