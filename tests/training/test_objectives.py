"""The supervised losses, against loops over numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import EXAMPLES, model

from edgec.training.features import IGNORED, Featurizer, collate
from edgec.training.objectives import Supervised


def _surprise(logits: Sequence[float], label: int) -> float:
    """-log of the label's probability."""
    highest = max(logits)
    return math.log(sum(math.exp(value - highest) for value in logits)) + highest - logits[label]


def _binary(logit: float, label: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -label * math.log(probability) - (1 - label) * math.log(1 - probability)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn((4, 3), generator=torch.Generator().manual_seed(1)) * 3


def test_classes(logits: torch.Tensor) -> None:
    labels = [2, 0, 1, 2]
    batch = {"label": torch.tensor(labels)}
    plain = Supervised().of("text-classification", (logits,), batch, None)
    losses = [_surprise(row, label) for row, label in zip(logits.tolist(), labels, strict=True)]
    assert plain.item() == pytest.approx(sum(losses) / 4, rel=1e-5)
    weights = [0.5, 1.0, 1.5]
    weighted = Supervised(class_weights=torch.tensor(weights)).of("text-classification", (logits,), batch, None)
    counts = [weights[label] for label in labels]
    expected = sum(count * loss for count, loss in zip(counts, losses, strict=True)) / sum(counts)
    assert weighted.item() == pytest.approx(expected, rel=1e-5)


def test_several_labels(logits: torch.Tensor) -> None:
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.float32)
    found = Supervised(multi_label=True).of("text-classification", (logits,), {"label": labels}, None)
    pairs = zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
    assert found.item() == pytest.approx(sum(_binary(*pair) for pair in pairs) / 12, rel=1e-5)
    # A weight is of the rows that have the label; those without it count once.
    present = torch.tensor([3.0, 1.0, 0.5])
    weighted = Supervised(multi_label=True, class_weights=present)
    found = weighted.of("text-classification", (logits,), {"label": labels}, None)
    counts = torch.where(labels == 1, present, 1.0).flatten().tolist()
    pairs = zip(logits.flatten().tolist(), labels.flatten().tolist(), counts, strict=True)
    assert found.item() == pytest.approx(sum(c * _binary(x, y) for x, y, c in pairs) / 12, rel=1e-5)


def test_tokens_without_a_label_do_not_count() -> None:
    logits = torch.randn((2, 4, 5), generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([[IGNORED, 3, IGNORED, 0], [IGNORED, 4, IGNORED, IGNORED]])
    found = Supervised().of("token-classification", (logits,), {"labels": labels}, None)
    losses = [_surprise(logits[row, token].tolist(), label) for row, token, label in ((0, 1, 3), (0, 3, 0), (1, 1, 4))]
    assert found.item() == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_an_answer_is_among_the_real_tokens() -> None:
    logits = [torch.randn((2, 4), generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)]
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"attention_mask": mask, "start": torch.tensor([1, 0]), "end": torch.tensor([3, 1])}
    found = Supervised().of("question-answering", tuple(logits), batch, None)
    losses = [
        _surprise(logits[which][row, :count].tolist(), label)
        for which, row, count, label in ((0, 0, 4, 1), (0, 1, 2, 0), (1, 0, 4, 3), (1, 1, 2, 1))
    ]
    assert found.item() == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_similarity_is_compared_with_the_score(tmp_path: Path) -> None:
    state = model("feature-extraction", tmp_path)
    part: Any = state.parts["encoder"]
    batch = collate(Featurizer(state).labelled(EXAMPLES["feature-extraction"]), state.tokenizer.pad_token_id)
    found = Supervised(score_range=(0.0, 5.0))(part, batch)
    squares = []
    for example in EXAMPLES["feature-extraction"]:
        vectors = []
        for text in (example.text, example.text_pair):
            encoded = state.tokenizer(text, return_tensors="pt")
            hidden = part.model(encoded["input_ids"], attention_mask=encoded["attention_mask"]).last_hidden_state
            vectors.append(hidden[0].mean(0).tolist())
        dot = sum(a * b for a, b in zip(*vectors, strict=True))
        cosine = dot / math.prod(math.sqrt(sum(a * a for a in vector)) for vector in vectors)
        squares.append((cosine - float(example.label) / 5) ** 2)
    assert found.item() == pytest.approx(sum(squares) / len(squares), rel=1e-4)
    # The same where the second texts were embedded along with the first.
    second = part(batch["other_input_ids"], batch["other_attention_mask"])[0]
    first = part(batch["input_ids"], batch["attention_mask"])
    again = Supervised(score_range=(0.0, 5.0)).of("feature-extraction", first, batch, part, other=second)
    assert again.item() == pytest.approx(found.item(), rel=1e-6)


def test_a_task_without_labels() -> None:
    with pytest.raises(ValueError, match="no labels for fill-mask"):
        Supervised().of("fill-mask", (torch.zeros(1, 2, 3),), {}, None)
