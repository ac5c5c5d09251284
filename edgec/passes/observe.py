"""What the layers of a model are given while it answers texts, collected as it passes by: nothing is kept whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from edgec_runtime.notices import TruncationWarning
from torch import nn

from edgec.models.requests import requests_for
from edgec.models.torch_model import torch_model
from edgec.numerics.histogram import Histogram
from edgec.numerics.ranges import MovingAverage, Range
from edgec.state import ModelState, PassContext

Factors = npt.NDArray[np.float32]
"""What each channel is divided by, (channels,), or one number for all."""

_ONE: Final[Factors] = np.ones((), np.float32)


class Collector(Protocol):
    """Takes the inputs of one layer as they come. Its memory does not grow with the number of texts."""

    def add(self, rows: torch.Tensor, text: int) -> None:
        """rows: (rows, channels) of text number `text`; a layer that runs twice in a text gives two calls."""
        ...


class Observer(Collector, Protocol):
    """A collector that ends in the range of all channels together."""

    def range(self) -> Range: ...


class Extremes:
    """The smallest and largest value of each input channel, (channels,); NaN where one was seen."""

    def __init__(self) -> None:
        self.low = self.high = np.zeros(0, np.float32)
        self.used = False

    def add(self, rows: torch.Tensor, text: int) -> None:
        low, high = (values.numpy() for values in torch.aminmax(rows, dim=0))
        # numpy's minimum and maximum keep a NaN.
        self.low = np.minimum(self.low, low) if self.used else low
        self.high = np.maximum(self.high, high) if self.used else high
        self.used = True

    def magnitude(self) -> npt.NDArray[np.float32]:
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def range(self, factors: Factors = _ONE, outliers: Sequence[int] = ()) -> Range:
        """Of all channels but `outliers` together, each divided by its (positive) factor."""
        low, high = (np.delete(values / factors, list(outliers)) for values in (self.low, self.high))
        return float(low.min()), float(high.max())


class Averaged:
    """The moving average of the extremes of single texts.

    steps: how many batches are averaged, the texts over and over; None averages each text once. The model does not
    change between two visits to a text, so the extremes of the first `steps` texts serve for all.
    """

    def __init__(self, momentum: float, steps: int | None = None) -> None:
        self._momentum, self._steps = momentum, steps
        self._average = MovingAverage(momentum)
        self._text = -1
        self._batch: Range | None = None
        self._batches: list[Range] = []

    def add(self, rows: torch.Tensor, text: int) -> None:
        low, high = (float(value) for value in torch.aminmax(rows))
        if text != self._text or self._batch is None:
            self._close()
            self._text, self._batch = text, (low, high)
        else:
            self._batch = float(np.minimum(self._batch[0], low)), float(np.maximum(self._batch[1], high))

    def range(self) -> Range:
        self._close()
        average = self._average
        if self._steps is not None:
            average = MovingAverage(self._momentum)
            for batch in islice(cycle(self._batches), self._steps):
                average.add(*batch)
        assert average.range is not None
        return average.range

    def _close(self) -> None:
        """End the batch of one text."""
        if self._batch is None:
            return
        if self._steps is None:
            self._average.add(*self._batch)
        elif len(self._batches) < self._steps:
            self._batches.append(self._batch)
        self._batch = None


class FromHistogram:
    """The range that `choose` makes of the histogram of all values."""

    def __init__(self, choose: Callable[[Histogram], Range]) -> None:
        self._histogram, self._choose = Histogram(), choose

    def add(self, rows: torch.Tensor, text: int) -> None:
        self._histogram.add(rows.numpy())

    def range(self) -> Range:
        return self._choose(self._histogram)


class Divided:
    """An observer of inputs that are divided by a factor a channel first, and of which `outliers` are left out."""

    def __init__(self, observer: Observer, factors: Factors, outliers: Sequence[int] = ()) -> None:
        self._observer, self._factors, self._outliers = observer, factors, list(outliers)

    def add(self, rows: torch.Tensor, text: int) -> None:
        divided = rows.numpy() / self._factors
        self._observer.add(torch.from_numpy(np.delete(divided, self._outliers, axis=-1)), text)

    def range(self) -> Range:
        return self._observer.range()


def observe(
    state: ModelState,
    texts: Sequence[Any],
    ctx: PassContext,
    collectors: Mapping[str, Sequence[Collector]],
    label: str = "calibrate",
) -> None:
    """Run `texts` through the float model and hand each layer's inputs to its collectors.

    collectors: by part and module path of a linear layer or an embedding, whose ids come as (rows, 1). Texts run one
    by one, so that no padding is observed. label: of the progress.
    """
    requests = requests_for(state.spec.task, texts, mask_token=str(state.tokenizer.mask_token))
    number = [0]
    with (
        _hooks(state, collectors, number),
        torch_model(state, schedule="streams") as model,
        warnings.catch_warnings(),
    ):
        # Texts beyond the model's length are cut as the runtime will cut them.
        warnings.simplefilter("ignore", TruncationWarning)
        step = ctx.progress(label, len(requests))
        for done, request in enumerate(requests, start=1):
            number[0] = done
            model.raw([request])
            step(done)


@contextmanager
def _hooks(state: ModelState, collectors: Mapping[str, Sequence[Collector]], number: list[int]) -> Iterator[None]:
    """Inside, the layers tell their collectors what they are given, with the number of the text that runs."""

    def observer(chosen: Sequence[Collector]) -> Any:
        def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            width = 1 if isinstance(module, nn.Embedding) else inputs[0].shape[-1]
            rows = inputs[0].reshape(-1, width)
            for collector in chosen:
                collector.add(rows, number[0])

        return note

    handles = []
    try:
        for key, chosen in collectors.items():
            part, _, path = key.partition(":")
            module = state.parts[part].get_submodule(path)
            handles.append(module.register_forward_pre_hook(observer(chosen)))
        yield
    finally:
        for handle in handles:
            handle.remove()
