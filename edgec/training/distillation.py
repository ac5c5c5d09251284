"""What a student learns from a teacher: the terms of its loss, each a weighted target (edgec.passes.distill)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import transformers
from torch import nn

from edgec.nn.layout import layers
from edgec.nn.watch import AttentionMap, Watched, watch
from edgec.training.features import Batch
from edgec.training.objectives import Supervised, outputs_of

TARGETS: Final = ("logits", "hidden", "attention", "embeddings", "labels")
Compare = Literal["mse", "cosine"]
Maps = Literal["scores", "probabilities"]

_HIDDEN: Final = -1e4
"""The logit of a position that is no answer's: its probability is 0, and its logarithm is a number."""


@dataclass(frozen=True)
class Matching:
    """How student and teacher are compared. layers: pairs of a layer of the student's and one of the teacher's, 0 the
    lowest. first_states: hidden states are compared before the first layer, too (TinyBERT, equation 9).
    normalized_states: as vectors of unit length (Patient KD, equation 7). labels: for each label of the student, its
    place among the teacher's; None: the same.
    """

    layers: tuple[tuple[int, int], ...] = ()
    temperature: float = 1.0
    maps: Maps = "scores"
    embeddings: Compare = "mse"
    first_states: bool = False
    normalized_states: bool = False
    multi_label: bool = False
    labels: tuple[int, ...] | None = None


class Distillation(nn.Module):
    """The weighted sum of what student and teacher differ in.

    weights: by target (TARGETS); those that are absent or 0 are neither computed nor counted. teacher: a Part. It is
    run in evaluation mode without gradients and is no submodule: it is not trained, not saved, not put in training
    mode. On another device than its own a copy of it is run. Where the widths differ, hidden states and embeddings of
    the student go through a learned linear map to the teacher's width (TinyBERT, equation 8: W_h), the same for all
    layers. seed: of its first weights.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        weights: Mapping[str, float],
        matching: Matching = Matching(),
        *,
        supervised: Supervised | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.matching = matching
        self.supervised = supervised or Supervised(multi_label=matching.multi_label)
        self._teacher = (teacher,)
        self.projections = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if "hidden" in self.weights:
                self._project("hidden", *(_stream_width(part) for part in (student, teacher)))
            if "embeddings" in self.weights:
                self._project("embeddings", _width(student), _width(teacher))
        self._sums: dict[str, torch.Tensor] = {}
        self._batches = 0

    def forward(self, part: Any, batch: Batch) -> torch.Tensor:
        terms = self.terms(part, batch)
        with torch.no_grad():
            for name, value in terms.items():
                self._sums[name] = self._sums.get(name, 0.0) + value.detach()
            self._batches += 1
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def terms(self, part: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Each target's loss, a scalar, before its weight."""
        both = _merged(batch)
        with torch.no_grad():
            taught, inner = self._run(self._at(both["input_ids"].device), both)
        learnt, own = self._run(part, both)
        mask = both["attention_mask"]
        found: dict[str, torch.Tensor] = {}
        if "logits" in self.weights:
            order = self.matching.labels
            if order is not None:
                taught = tuple(logits[..., list(order)] for logits in taught)
            found["logits"] = logits_loss(
                part.task, learnt, taught, mask, self.matching.temperature, self.matching.multi_label
            )
        if "hidden" in self.weights:
            pairs = [(mine + 1, yours + 1) for mine, yours in self.matching.layers]
            pairs = [(0, 0), *pairs] if self.matching.first_states else pairs
            found["hidden"] = hidden_loss(
                [self._projected("hidden", own.states[mine]) for mine, _ in pairs],
                [inner.states[yours] for _, yours in pairs],
                mask,
                normalized=self.matching.normalized_states,
            )
        if "attention" in self.weights:
            found["attention"] = attention_loss(
                [own.map(mine) for mine, _ in self.matching.layers],
                [inner.map(yours) for _, yours in self.matching.layers],
                mask,
                self.matching.maps,
            )
        if "embeddings" in self.weights:
            found["embeddings"] = embedding_loss(
                self._projected("embeddings", learnt[0]), taught[0], self.matching.embeddings
            )
        if "labels" in self.weights:
            found["labels"] = self._labels(part, learnt, batch)
        return found

    def means(self) -> dict[str, float]:
        """The mean of each term over the batches since the call before, and none where there were none."""
        found = {name: float(value) / self._batches for name, value in self._sums.items()}
        self._sums, self._batches = {}, 0
        return found

    def _labels(self, part: Any, outputs: tuple[torch.Tensor, ...], batch: Batch) -> torch.Tensor:
        rows = len(batch["input_ids"])
        other = outputs[0][rows:] if "other_input_ids" in batch else None
        return self.supervised.of(part.task, tuple(one[:rows] for one in outputs), batch, part, other=other)

    def _run(self, part: Any, batch: Batch) -> tuple[tuple[torch.Tensor, ...], Watched]:
        with self._watched(part) as watched:
            return outputs_of(part, batch), watched

    @contextmanager
    def _watched(self, part: Any) -> Iterator[Watched]:
        states, attention = "hidden" in self.weights, "attention" in self.weights
        with watch(part, states=states, attention=attention) if states or attention else nullcontext(Watched()) as seen:
            yield seen

    def _at(self, device: torch.device) -> Any:
        """The teacher, where the batch is. It belongs to somebody else, so that it is not moved itself."""
        (teacher,) = self._teacher
        if next(teacher.parameters()).device != device:
            teacher = copy.deepcopy(teacher).to(device)
            self._teacher = (teacher,)
        return teacher.eval()

    def _project(self, name: str, own: int, wanted: int) -> None:
        if own != wanted:
            self.projections[name] = nn.Linear(own, wanted, bias=False)

    def _projected(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return self.projections[name](tensor) if name in self.projections else tensor


def logits_loss(
    task: str,
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    mask: torch.Tensor,
    temperature: float,
    multi_label: bool = False,
) -> torch.Tensor:
    """KL of the teacher's softened distribution to the student's, times temperature ** 2 (Hinton et al. 2015, section
    2): the mean over rows; per token, over the real ones; for question-answering of start and end, each a distribution
    over the real tokens. multi_label: of each label's own two-valued distribution, the mean over labels.

    student, teacher: the outputs of the task. mask: (batch, tokens), 1 where there is a token.
    """
    squared = temperature**2
    if multi_label:
        (own,), (wanted,) = student, teacher
        return squared * _kl(_two_valued(own / temperature), _two_valued(wanted / temperature)).mean()
    if task == "question-answering":
        student, teacher = ([one.masked_fill(mask == 0, _HIDDEN) for one in logits] for logits in (student, teacher))
    per_row = [
        _kl((own / temperature).log_softmax(-1), (wanted / temperature).log_softmax(-1))
        for own, wanted in zip(student, teacher, strict=True)
    ]
    if task in ("token-classification", "fill-mask"):
        return squared * _mean_of_tokens(per_row[0], mask)
    return squared * torch.stack(per_row).mean()


def hidden_loss(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    mask: torch.Tensor,
    *,
    normalized: bool = False,
) -> torch.Tensor:
    """MSE over real tokens and channels (TinyBERT, equation 8), the mean over the pairs of layers.

    student, teacher: (batch, tokens, hidden) a layer. normalized: each state is divided by its length first.
    """
    losses = []
    for own, wanted in zip(student, teacher, strict=True):
        if normalized:
            own, wanted = (nn.functional.normalize(one, dim=-1) for one in (own, wanted))
        losses.append(_mean_of_tokens((own - wanted).square().mean(-1), mask))
    return torch.stack(losses).mean()


def attention_loss(
    student: Sequence[AttentionMap], teacher: Sequence[AttentionMap], mask: torch.Tensor, maps: Maps
) -> torch.Tensor:
    """MSE of attention maps over heads and pairs of real tokens (TinyBERT, equation 7), the mean over the pairs of
    layers.

    maps: of the scores before the softmax, where neither model hides the key from the query, or of the probabilities.
    Where the numbers of heads differ, the means over the heads are compared.
    """
    real = (mask[:, None, :, None] * mask[:, None, None, :]).bool()
    losses = []
    for own, wanted in zip(student, teacher, strict=True):
        counted = real
        for one in (own, wanted):
            if maps == "scores" and one.seen is not None:
                counted = counted & one.seen
        values = [one.scores if maps == "scores" else one.probabilities for one in (own, wanted)]
        if values[0].shape != values[1].shape:
            values = [value.mean(1, keepdim=True) for value in values]
        difference = values[0].masked_fill(~counted, 0.0) - values[1].masked_fill(~counted, 0.0)
        losses.append(difference.square().sum() / counted.expand_as(difference).sum())
    return torch.stack(losses).mean()


def embedding_loss(student: torch.Tensor, teacher: torch.Tensor, compare: Compare) -> torch.Tensor:
    """Of (batch, hidden) each: the mean squared difference (Reimers and Gurevych 2020, equation 1), or 1 - cosine, the
    mean over rows."""
    if compare == "mse":
        return nn.functional.mse_loss(student, teacher)
    return (1 - nn.functional.cosine_similarity(student, teacher)).mean()


class Terms(transformers.TrainerCallback):
    """Notes each term's mean beside the loss. by_step: what was noted, a resumed training's from before the kill as
    well."""

    def __init__(self, objective: Distillation) -> None:
        self.objective = objective
        self.by_step: dict[int, dict[str, float]] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if "loss" in (logs or {}):
            # The Trainer's own log travels with its checkpoints.
            state.log_history[-1]["terms"] = {name: round(mean, 6) for name, mean in self.objective.means().items()}

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.by_step = {entry["step"]: entry["terms"] for entry in state.log_history if "terms" in entry}


def uniform_layers(student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Layer i of the student's, from 1, learns from layer i * teacher / student of the teacher's, rounded up; as pairs
    from 0 (TinyBERT, section 4.1: g(m) = 3 m for 4 of 12)."""
    return tuple((layer, -(-(layer + 1) * teacher // student) - 1) for layer in range(student))


def _kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Of log-probabilities (..., outcomes): (...)."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def _two_valued(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (..., 2) that a label is there, and that it is not."""
    return torch.stack([nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)], dim=-1)


def _mean_of_tokens(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(batch, tokens) averaged where there is a token."""
    return (values * mask).sum() / mask.sum()


def _merged(batch: Batch) -> Batch:
    """First and second texts of pairs that are embedded apart, one below the other."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    if "other_input_ids" not in batch:
        return {name: batch[name] for name in names}
    tokens = max(batch[prefix + names[0]].shape[1] for prefix in ("", "other_"))
    padded = {}
    for name in names:
        both = batch[name], batch[f"other_{name}"]
        # Any id will do where the mask is 0.
        padded[name] = torch.cat([nn.functional.pad(one, (0, tokens - one.shape[1])) for one in both])
    return padded


def _stream_width(part: Any) -> int:
    """Of the hidden states of the encoder."""
    return int(part.get_submodule(layers(part)[-1].down).out_features)


def _width(part: Any) -> int:
    """Of the embeddings that a part gives."""
    device = next(part.parameters()).device
    ids = torch.zeros((1, 2), dtype=torch.int32, device=device)
    with torch.no_grad():
        return int(part(ids, torch.ones_like(ids))[0].shape[-1])
