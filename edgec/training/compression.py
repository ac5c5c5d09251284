"""Fewer channels for the states that a decoupled transformer keeps (ElFadeel and Peshterliev, section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from edgec_runtime.store.quantize import dequantize, quantize

from edgec.nn.seam import Seam, apart, kept_states
from edgec.training.features import TrainingRow, collate

_BATCH: Final = 16
_ROWS: Final = 2000
"""Rows whose states the compression is made from: 10**5 tokens and more, a hundred times as many as channels."""


def with_compression(part: Any, rows: Sequence[TrainingRow], width: int, *, pad_id: int) -> Seam:
    """The seam of `part` with layers that compress to `width` channels and undo it with the least squared error.

    The paper trains them to reconstruct (section 4.1, phase 1). Linear layers have a best solution, the principal
    components of the states, which is taken instead: no steps, no learning rate.
    """
    with torch.no_grad():
        total, mean, count = _moments(part, rows, pad_id)
        _, vectors = torch.linalg.eigh(total / count - torch.outer(mean, mean))
        # Turned at random: the components' variances differ by orders of magnitude, and a state that is kept in int8
        # has one scale a token, which then suits all channels.
        turn, _ = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))
        basis = vectors[:, -width:] @ turn  # (hidden, width)
        old = part.seam
        seam = Seam(old.split, part.hidden_size, len(old.positions.weight), width=width, first=old.first_position)
        seam.positions.load_state_dict(old.positions.state_dict())
        seam.segments.load_state_dict(old.segments.state_dict())
        seam.compress.weight.copy_(basis.T)
        seam.compress.bias.copy_(-(mean @ basis))
        seam.decompress.weight.copy_(basis)
        seam.decompress.bias.copy_(mean)
    return seam


def explained(part: Any, rows: Sequence[TrainingRow], *, pad_id: int) -> tuple[float, float]:
    """The share of the states' variance that compression keeps, on `rows`: 1 - squared error / variance.

    The second with the kept states rounded to int8 with a scale a token, as the passage store does.
    """
    errors = torch.zeros(2, dtype=torch.float64)
    squares, sums = torch.zeros((), dtype=torch.float64), torch.zeros(part.hidden_size, dtype=torch.float64)
    count = 0
    with torch.no_grad():
        for hidden in _states(part, rows, pad_id):
            kept = part.seam.compress(hidden)
            rounded = torch.from_numpy(dequantize(*quantize(kept.numpy())))
            given = (part.seam.decompress(states) for states in (kept, rounded))
            errors += torch.stack([(states - hidden).double().square().sum() for states in given])
            squares, sums = squares + hidden.double().square().sum(), sums + hidden.double().sum(0)
            count += len(hidden)
    variance = squares - (sums / count).square().sum() * count
    first, second = (1 - errors / variance).tolist()
    return first, second


def _moments(part: Any, rows: Sequence[TrainingRow], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(sum of outer products, mean, tokens) of the states at the seam."""
    hidden = part.hidden_size
    total, sums, count = torch.zeros(hidden, hidden), torch.zeros(hidden), 0
    for states in _states(part, rows, pad_id):
        total, sums, count = total + states.T @ states, sums + states.sum(0), count + len(states)
    return total, sums / count, count


def _states(part: Any, rows: Sequence[TrainingRow], pad_id: int) -> Iterator[torch.Tensor]:
    """(tokens, hidden) at the seam, of rows at equal distances."""
    part.eval()
    chosen = sorted(rows[:: max(1, len(rows) // _ROWS)], key=len)
    for start in range(0, len(chosen), _BATCH):
        batch = collate(chosen[start : start + _BATCH], pad_id)
        mask, types = batch["attention_mask"], batch["token_type_ids"]
        seen, places = apart(mask, types)
        with torch.no_grad():
            _, hidden = kept_states(part, batch["input_ids"], seen, types, places)
        yield hidden[mask.bool()]
