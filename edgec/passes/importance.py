"""How much a unit matters: an attention head, a channel of the feed-forward network or of the residual stream, a layer.

Taylor importance is the first-order change of a loss when a unit is taken out. With a gate of value 1 on the unit's
activations z, that is dL/dgate = sum(z * dL/dz); its magnitude is averaged over rows of data (Molchanov et al. 2017,
section 2.2, and 2019, section 3; of heads Michel et al. 2019, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from edgec.nn.cut import head_slices, heads, inner_slices, inner_width, stream_slices, stream_width
from edgec.nn.layout import head_size, layers
from edgec.training.features import collate

if TYPE_CHECKING:
    from edgec.state import Progress
    from edgec.training.features import Batch, TrainingRow
    from edgec.training.objectives import Objective

Unit = Literal["heads", "ffn", "hidden"]


class OutputChange:
    """A loss without labels: the part's outputs times random directions of unit variance, summed for each row.

    The mean magnitude of its derivative by a gate is sqrt(2 / pi) times the length of the vector by which the outputs
    change to first order: what a unit does to the outputs, whichever way. Outputs of padding do not count.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, part: Any, batch: Batch) -> torch.Tensor:
        outputs = part(*(batch[name] for name in part.input_names))
        total = torch.zeros((), device=outputs[0].device)
        for name, output in zip(part.output_names, outputs, strict=True):
            directions = torch.randn(output.shape, generator=self.generator).to(output.device)
            if 1 in part.output_axes[name]:  # (batch, tokens, ..)
                mask = batch["attention_mask"].reshape(*output.shape[:2], *[1] * (output.ndim - 2))
                directions = directions * mask
            total = total + (output * directions).sum()
        # A loss is a mean over the rows of its batch.
        return total / len(batch["input_ids"])


def taylor(
    part: Any,
    unit: Unit,
    rows: Sequence[TrainingRow],
    objective: Objective,
    *,
    pad_id: int,
    batch_size: int,
    progress: Progress,
) -> list[torch.Tensor]:
    """The Taylor importance of each unit, float32: of heads and ffn one tensor a layer, of hidden a single one.

    Heads and channels of the feed-forward network are gated where the next product reads them. A channel of the
    residual stream has one gate for all layers: it counts in front of each, and behind the last. Rows are independent,
    so each row's derivative is had from the batch's loss, times the rows in the batch. `part` keeps its weights; it is
    moved to a GPU and back where there is one.
    """
    counts = _counts(part, unit)
    totals = [torch.zeros(count, dtype=torch.float64) for count in counts]
    done = progress(f"importance of {unit}", len(rows))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    part.to(device).eval()
    try:
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            batch = {name: tensor.to(device) for name, tensor in collate(chosen, pad_id).items()}
            with torch.enable_grad(), _gated(part, unit) as seen:
                loss = objective(part, batch)
                found = [(place, value) for place, values in enumerate(seen) for value in values]
                gradients = torch.autograd.grad(loss, [value for _, value in found], allow_unused=True)
            sums = [torch.zeros(len(chosen), count, dtype=torch.float64) for count in counts]
            for (place, value), gradient in zip(found, gradients, strict=True):
                if gradient is not None:
                    sums[place] += _by_unit(value.detach() * gradient, counts[place]).double().cpu()
            for total, summed in zip(totals, sums, strict=True):
                total += summed.abs().sum(dim=0) * len(chosen)
            done(start + len(chosen))
    finally:
        part.to("cpu")
    return [(total / len(rows)).float() for total in totals]


def magnitude(part: Any, unit: Unit) -> list[torch.Tensor]:
    """The importance of each unit by its weights: the root of the sum of the squares of all that go with it.

    Shapes as those of `taylor`. Of a channel of the residual stream the matrices and layer norms of the encoder's
    layers count, not the vocabulary, which would outweigh them.
    """
    counts = _counts(part, unit)
    if unit == "hidden":
        inside = tuple(f"{layer.path}." for layer in layers(part))
        total = torch.zeros(counts[0], dtype=torch.float64)
        for name, axes in stream_slices(part).items():
            if name.startswith(inside):
                for axis in axes:
                    total += _squares(part.get_parameter(name), axis, counts[0], 1)
        return [total.sqrt().float()]
    slices = head_slices if unit == "heads" else inner_slices
    found = []
    for layer, count in zip(layers(part), counts, strict=True):
        size = head_size(part, layer) if unit == "heads" else 1
        squares = [_squares(part.get_parameter(name), axis, count, size) for name, axis in slices(part, layer).items()]
        found.append(torch.stack(squares).sum(dim=0).sqrt().float())
    return found


def similarity(
    part: Any, rows: Sequence[TrainingRow], *, pad_id: int, batch_size: int, progress: Progress
) -> list[float]:
    """Of each layer, the mean cosine between what it is given and what it returns, over the tokens of `rows`.

    Rai et al. 2025, Application-Specific Compression: a layer whose output barely differs from its input on the
    application's data does little for the application.
    """
    totals = torch.zeros(len(layers(part)), dtype=torch.float64)
    tokens = 0
    done = progress("similarity of layers", len(rows))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    part.to(device).eval()
    try:
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            batch = {name: tensor.to(device) for name, tensor in collate(chosen, pad_id).items()}
            real = batch["attention_mask"].bool()
            with torch.no_grad(), _layer_states(part) as seen:
                part(*(batch[name] for name in part.input_names))
            for index, (given, returned) in enumerate(seen):
                totals[index] += nn.functional.cosine_similarity(given[real], returned[real], dim=-1).double().sum()
            tokens += int(real.sum())
            done(start + len(chosen))
    finally:
        part.to("cpu")
    return [float(total / tokens) for total in totals]


def keep_best(scores: Sequence[torch.Tensor], keep: int, *, minimum: int = 1) -> list[list[int]]:
    """The `keep` best units of all layers together; of each layer at least its `minimum` best.

    scores: (units,) of each layer. They are divided by their root mean square in the layer first, since layers differ
    in scale (Molchanov et al. 2017, section 2.2; Michel et al. 2019, section 4.1).
    """
    scaled = [score / score.square().mean().sqrt().clamp(min=1e-30) for score in scores]
    orders = [ranked(score) for score in scaled]
    chosen = [order[:minimum] for order in orders]
    others = [(-float(scaled[index][unit]), index, unit) for index, o in enumerate(orders) for unit in o[minimum:]]
    for _, index, unit in sorted(others)[: max(0, keep - sum(map(len, chosen)))]:
        chosen[index].append(unit)
    return [sorted(units) for units in chosen]


def ranked(scores: torch.Tensor) -> list[int]:
    """Indices, the highest score first; of equal scores the lower index."""
    return [int(index) for index in torch.sort(scores, descending=True, stable=True).indices]


def _counts(part: Any, unit: Unit) -> list[int]:
    if unit == "hidden":
        return [stream_width(part)]
    return [heads(part, layer) if unit == "heads" else inner_width(part, layer) for layer in layers(part)]


def _squares(parameter: torch.Tensor, axis: int, count: int, size: int) -> torch.Tensor:
    """(count,): the sum of squares of each unit, which is `size` neighbouring channels along `axis`.

    Merged or gated products have all units more than once along it.
    """
    squares = parameter.detach().double().square().movedim(axis, 0).reshape(parameter.shape[axis], -1).sum(dim=1)
    return squares.reshape(-1, count, size).sum(dim=(0, 2))


def _by_unit(values: torch.Tensor, count: int) -> torch.Tensor:
    """(batch, tokens, channels) summed to (batch, count); a unit is neighbouring channels."""
    return values.sum(dim=1).reshape(len(values), count, -1).sum(dim=-1)


@contextmanager
def _gated(part: Any, unit: Unit) -> Iterator[list[list[torch.Tensor]]]:
    """The activations that gates would multiply, of heads and ffn by layer, of hidden in a single list."""
    known = layers(part)
    seen: list[list[torch.Tensor]] = [[] for _ in range(1 if unit == "hidden" else len(known))]

    def note(place: int) -> Callable[..., None]:
        return lambda module, args: seen[place].append(args[0])

    handles = []
    for index, layer in enumerate(known):
        path = {"heads": layer.context, "ffn": layer.down, "hidden": layer.path}[unit]
        place = 0 if unit == "hidden" else index
        handles.append(part.get_submodule(path).register_forward_pre_hook(note(place)))
    if unit == "hidden":
        last = part.get_submodule(known[-1].path)
        handles.append(last.register_forward_hook(lambda module, args, out: seen[0].append(_first(out))))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _layer_states(part: Any) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handles = [
        part.get_submodule(layer.path).register_forward_hook(
            lambda module, args, out: seen.append((args[0], _first(out)))
        )
        for layer in layers(part)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _first(output: Any) -> torch.Tensor:
    """A layer returns its states, alone or before others."""
    return output[0] if isinstance(output, tuple) else output
