"""Objectives of the Alignment Adapter (Rai, Dhaka, Awekar, section 2), and the states of frozen models that they read.

A model that does not learn gives a row the same states in every epoch, so they are computed once and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from edgec_runtime.text import Row
from torch import nn

from edgec.data.examples import Example, Labelled, Question, Tagged
from edgec.state import Progress, no_progress
from edgec.training.features import Batch, Featurizer, TrainingRow, collate
from edgec.training.objectives import Supervised

Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""ids, mask and token types, int (batch, tokens), to states (batch, tokens, width)."""

_BATCH: Final = 32
_BYTES: Final = 4
_MEASURED: Final = 512
"""Rows that a distance is measured on: enough for three digits, and a small part of a training."""


class FrozenStates:
    """The states that a frozen model gives rows, looked up by the rows' ids and kept as far as memory goes.

    run: the model, in evaluation mode. width: of its states. types: it tells the texts of a pair apart. limit: bytes to
    keep at most, 4 * width a token; rows that find no room are computed anew each time.
    """

    def __init__(self, run: Run, width: int, *, types: bool, limit: int) -> None:
        self._run, self.width, self._types = run, width, types
        self._limit = self._free = limit
        self._known: dict[bytes, torch.Tensor] = {}

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, tokens, width) of rows padded on the right; what stands at padded places means nothing."""
        lengths = mask.sum(dim=1).tolist()
        rows = zip(ids.cpu(), self._zeros(ids) if types is None else types.cpu(), lengths, strict=True)
        found = [self._known.get(self._key(row[:n].numpy(), kinds[:n].numpy())) for row, kinds, n in rows]
        states = torch.zeros(*ids.shape, self.width, device=ids.device)
        missing = [place for place, known in enumerate(found) if known is None]
        if missing:
            chosen = torch.tensor(missing, device=ids.device)
            kinds = types[chosen] if types is not None and self._types else None
            with torch.no_grad():
                states[chosen] = self._run(ids[chosen], mask[chosen], kinds).to(states.dtype)
        for place, known in enumerate(found):
            if known is not None:
                states[place, : len(known)] = known.to(ids.device)
        return states

    def keep(self, rows: Sequence[TrainingRow], pad_id: int, label: str, progress: Progress = no_progress) -> int:
        """Compute and keep the states of `rows`, in their order as far as there is room. Returns how many are kept."""
        new: dict[bytes, TrainingRow] = {}
        for row in rows:
            key, size = self._key(row.ids, row.type_ids), _BYTES * self.width * len(row)
            if key not in self._known and key not in new and size <= self._free:
                new[key] = row
                self._free -= size
        # The same batches in every run: a row's last bits depend on what it is padded to.
        ordered = sorted(new.items(), key=lambda item: len(item[1]))
        done = progress(label, len(ordered))
        for start in range(0, len(ordered), _BATCH):
            part = ordered[start : start + _BATCH]
            batch = _to_device(collate([row for _, row in part], pad_id))
            kinds = batch["token_type_ids"] if self._types else None
            with torch.no_grad():
                states = self._run(batch["input_ids"], batch["attention_mask"], kinds).float().cpu()
            for (key, row), found in zip(part, states, strict=True):
                self._known[key] = found[: len(row)].clone()
            done(min(start + _BATCH, len(ordered)))
        return sum(self._key(row.ids, row.type_ids) in self._known for row in rows)

    def clear(self) -> None:
        """Forget all states."""
        self._known.clear()
        self._free = self._limit

    def _key(self, ids: Any, types: Any) -> bytes:
        return bytes(ids.tobytes()) + (bytes(types.tobytes()) if self._types else b"")

    @staticmethod
    def _zeros(ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(ids.shape, dtype=torch.int32)


class Alignment:
    """The mean squared difference between aligned states and the large model's, over the tokens of a batch and the
    channels: the loss of phases 1 and 2."""

    def __init__(self, compressed: FrozenStates, large: FrozenStates) -> None:
        self.compressed, self.large = compressed, large

    def __call__(self, part: Any, batch: Batch) -> torch.Tensor:
        aligned, wanted = self.states(part, batch)
        mask = batch["attention_mask"].bool()
        return nn.functional.mse_loss(aligned[mask], wanted[mask])

    def states(self, part: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the adapter and of the large model, each (batch, tokens, D_L)."""
        inputs = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        return part.adapter(self.compressed(*inputs), batch["attention_mask"]), self.large(*inputs)


class OnStates:
    """The loss on labels where the encoder is frozen: phase 3 with kept states."""

    def __init__(self, supervised: Supervised, compressed: FrozenStates) -> None:
        self.supervised, self.compressed = supervised, compressed

    def __call__(self, part: Any, batch: Batch) -> torch.Tensor:
        return self.supervised(_Answers(part, self.compressed), batch)


class _Answers:
    """Answers as `part` does, with known states in the place of its encoder's."""

    def __init__(self, part: Any, states: FrozenStates) -> None:
        self.part, self.states = part, states
        self.task, self.input_names = part.task, part.input_names

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        aligned = self.part.adapter(self.states(ids, mask, types), mask)
        return self.part.answer(aligned, mask)


def distance(part: Any, rows: Sequence[TrainingRow], alignment: Alignment, pad_id: int) -> dict[str, float]:
    """How far aligned states are from the large model's, on `rows` or 512 of them at equal distances: "mse", the mean
    squared difference of a channel, and "cosine", the mean over the tokens."""
    chosen = rows[:: -(-len(rows) // _MEASURED)]
    squares = cosines = 0.0
    tokens = channels = 0
    for start in range(0, len(chosen), _BATCH):
        batch = collate(chosen[start : start + _BATCH], pad_id)
        mask = batch["attention_mask"].bool()
        with torch.inference_mode():
            aligned, wanted = (states[mask] for states in alignment.states(part, batch))
        squares += float((aligned - wanted).square().sum())
        cosines += float(nn.functional.cosine_similarity(aligned, wanted).sum())
        tokens, channels = tokens + len(aligned), channels + aligned.numel()
    return {"mse": squares / channels, "cosine": cosines / tokens}


def rows_of(featurizer: Featurizer, examples: Sequence[Labelled]) -> list[TrainingRow]:
    """The texts of labelled examples as rows without targets: those that training on the labels reads."""
    rows = (row for example in examples for row in _rows(featurizer.encoder, example))
    return [TrainingRow(row.ids, row.type_ids) for row in rows]


def _rows(encoder: Any, example: Labelled) -> list[Row]:
    pairs = encoder.limits.pairs
    if isinstance(example, Tagged):
        return list(encoder.windows(example.text).rows)
    if isinstance(example, Question):
        if pairs:
            return list(encoder.pair_windows(example.question, example.context).rows)
        return [row for text in (example.question, example.context) for row in encoder.windows(text).rows]
    assert isinstance(example, Example)
    if example.text_pair is None:
        return list(encoder.single(example.text).rows)
    if pairs:
        return list(encoder.pair(example.text, example.text_pair).rows)
    return [row for text in (example.text, example.text_pair) for row in encoder.single(text).rows]


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Inside, `module` stays in evaluation mode when the model around it is put to training: a frozen encoder drops
    nothing out, and gives a row the same states every time."""
    module.eval()
    module.train = lambda mode=True: module
    try:
        yield
    finally:
        del module.train


def _to_device(batch: Batch) -> Batch:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: tensor.to(device) for name, tensor in batch.items()}
