"""Each term of a student's loss, against loops over numbers and the equations' own products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import EXAMPLES, model
from tiny_models import FAMILIES, SENTENCES

from edgec.state import ModelState
from edgec.training.distillation import Distillation, Matching, logits_loss, uniform_layers
from edgec.training.features import Batch, Featurizer, collate
from edgec.training.objectives import Supervised

EVERY = {"hidden": 0.5, "attention": 0.25}


def batch_of(state: ModelState, *, labelled: bool = False) -> Batch:
    rows = Featurizer(state)
    examples = EXAMPLES[state.spec.task]
    return collate(rows.labelled(examples) if labelled else rows.texts(SENTENCES), state.tokenizer.pad_token_id)


def two(task: str, folder: Path, family: str = "bert", **student: Any) -> tuple[ModelState, ModelState]:
    return model(task, folder / "s", family, seed=1, **student), model(task, folder / "t", family, seed=2)


def term(name: str, states: tuple[ModelState, ModelState], batch: Batch, **matching: Any) -> float:
    student, teacher = (state.parts["encoder"] for state in states)
    objective = Distillation(student, teacher, {name: 3.0}, Matching(**matching))
    found = objective.terms(student, batch)
    assert list(found) == [name]
    assert objective(student, batch).item() == pytest.approx(3 * found[name].item(), rel=1e-6)
    return found[name].item()


def _softened(logits: Sequence[float], temperature: float) -> list[float]:
    powers = [math.exp((value - max(logits)) / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def _divergence(wanted: Sequence[float], own: Sequence[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(wanted, own, strict=True))


def _logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_classes_are_compared_as_softened_distributions(temperature: float) -> None:
    own, wanted = _logits(1, 4, 3), _logits(2, 4, 3)
    mask = torch.ones(4, 5)
    found = logits_loss("text-classification", [own], [wanted], mask, temperature)
    rows = [
        _divergence(_softened(t, temperature), _softened(s, temperature))
        for s, t in zip(own.tolist(), wanted.tolist(), strict=True)
    ]
    assert float(found) == pytest.approx(temperature**2 * sum(rows) / 4, rel=1e-5)


def test_each_of_several_labels_is_a_distribution_of_two_values() -> None:
    own, wanted = _logits(3, 4, 3), _logits(4, 4, 3)
    found = logits_loss("text-classification", [own], [wanted], torch.ones(4, 5), 2.0, multi_label=True)
    every = []
    for s, t in zip(own.flatten().tolist(), wanted.flatten().tolist(), strict=True):
        pairs = [(p, 1 - p) for p in (1 / (1 + math.exp(-value / 2)) for value in (t, s))]
        every.append(_divergence(*pairs))
    assert float(found) == pytest.approx(4 * sum(every) / 12, rel=1e-5)


@pytest.mark.parametrize("task", ["token-classification", "fill-mask"])
def test_tokens_count_where_they_are_real(task: str) -> None:
    own, wanted = _logits(5, 2, 4, 3), _logits(6, 2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.int32)
    found = logits_loss(task, [own], [wanted], mask, 2.0)
    tokens = [
        _divergence(_softened(wanted[row, token].tolist(), 2), _softened(own[row, token].tolist(), 2))
        for row, count in ((0, 4), (1, 2))
        for token in range(count)
    ]
    assert float(found) == pytest.approx(4 * sum(tokens) / 6, rel=1e-5)


def test_answers_begin_and_end_at_real_tokens() -> None:
    own, wanted = [_logits(7, 2, 4), _logits(8, 2, 4)], [_logits(9, 2, 4), _logits(10, 2, 4)]
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.int32)
    found = logits_loss("question-answering", own, wanted, mask, 2.0)
    rows = [
        _divergence(_softened(t[row, :count].tolist(), 2), _softened(s[row, :count].tolist(), 2))
        for s, t in zip(own, wanted, strict=True)
        for row, count in ((0, 4), (1, 2))
    ]
    assert float(found) == pytest.approx(4 * sum(rows) / 4, rel=1e-5)


@pytest.mark.parametrize("normalized", [False, True])
def test_hidden_states_are_compared_over_real_tokens(normalized: bool, tmp_path: Path) -> None:
    states = two("text-classification", tmp_path, num_hidden_layers=1)
    batch = batch_of(states[0])
    found = term("hidden", states, batch, layers=((0, 1),), first_states=True, normalized_states=normalized)
    inputs = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
    own, wanted = (state.parts["encoder"].states(*inputs) for state in states)
    losses = []
    for mine, yours in ((own[0], wanted[0]), (own[1], wanted[2])):
        squares = []
        for row, count in enumerate(batch["attention_mask"].sum(1).tolist()):
            for token in range(count):
                s, t = mine[row, token].tolist(), yours[row, token].tolist()
                if normalized:
                    s, t = ([value / math.sqrt(sum(v * v for v in vector)) for value in vector] for vector in (s, t))
                squares += [(a - b) ** 2 for a, b in zip(s, t, strict=True)]
        losses.append(sum(squares) / len(squares))
    assert found == pytest.approx(sum(losses) / 2, rel=1e-4)


def _scores(part: Any, batch: Batch, layer: int) -> torch.Tensor:
    """(batch, 4 heads of 8 channels, tokens, tokens), from the layer's own matrices."""
    hidden = part.states(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])[layer]
    attention = part.model.bert.encoder.layer[layer].attention.self
    query, key = (
        (hidden @ linear.weight.T + linear.bias).unflatten(-1, (4, 8)) for linear in (attention.query, attention.key)
    )
    return torch.einsum("bihc,bjhc->bhij", query, key) / math.sqrt(8)


@pytest.mark.parametrize("maps", ["scores", "probabilities"])
def test_attention_is_compared_between_real_tokens(maps: str, tmp_path: Path) -> None:
    states = two("text-classification", tmp_path)
    batch = batch_of(states[0])
    found = term("attention", states, batch, layers=((0, 1), (1, 0)), maps=maps)
    losses = []
    for mine, yours in ((0, 1), (1, 0)):
        own, wanted = (
            _scores(state.parts["encoder"], batch, layer) for state, layer in zip(states, (mine, yours), strict=True)
        )
        squares, numbers = 0.0, 0
        for row, count in enumerate(batch["attention_mask"].sum(1).tolist()):
            s, t = (scores[row, :, :count, :count] for scores in (own, wanted))
            if maps == "probabilities":
                s, t = s.softmax(-1), t.softmax(-1)
            squares += (s - t).square().sum().item()
            numbers += s.numel()
        losses.append(squares / numbers)
    assert found == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_maps_of_other_heads_are_averaged(tmp_path: Path) -> None:
    states = two("text-classification", tmp_path, num_attention_heads=2)
    batch = {name: tensor[3:4] for name, tensor in batch_of(states[0]).items()}
    found = term("attention", states, batch, layers=((0, 0),), maps="probabilities")
    wanted = _scores(states[1].parts["encoder"], batch, 0).softmax(-1)
    part: Any = states[0].parts["encoder"]
    part.model.set_attn_implementation("eager")
    own = part.model(batch["input_ids"], batch["attention_mask"], output_attentions=True).attentions[0]
    assert own.shape[1] == 2
    assert found == pytest.approx((own.mean(1) - wanted.mean(1)).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("compare", ["mse", "cosine"])
def test_sentence_embeddings(compare: str, tmp_path: Path) -> None:
    states = two("feature-extraction", tmp_path)
    batch = batch_of(states[0])
    found = term("embeddings", states, batch, embeddings=compare)
    own, wanted = (state.parts["encoder"](batch["input_ids"], batch["attention_mask"])[0].tolist() for state in states)
    rows = []
    for s, t in zip(own, wanted, strict=True):
        length = math.sqrt(sum(a * a for a in s) * sum(b * b for b in t))
        dot = sum(a * b for a, b in zip(s, t, strict=True))
        squared = sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
        rows.append(1 - dot / length if compare == "cosine" else squared)
    assert found == pytest.approx(sum(rows) / len(rows), rel=1e-4)


@pytest.mark.parametrize("task", list(EXAMPLES))
def test_labels_are_those_of_supervised_training(task: str, tmp_path: Path) -> None:
    states = two(task, tmp_path)
    batch = batch_of(states[0], labelled=True)
    student, teacher = (state.parts["encoder"] for state in states)
    supervised = Supervised(score_range=(0.0, 5.0))
    objective = Distillation(
        student, teacher, {"labels": 1.0, "hidden": 1.0}, Matching(((0, 0),)), supervised=supervised
    )
    with torch.no_grad():
        found = objective.terms(student, batch)["labels"]
        assert float(found) == pytest.approx(float(supervised(student, batch)), rel=1e-5)


def test_both_texts_of_a_pair_are_learnt(tmp_path: Path) -> None:
    states = two("feature-extraction", tmp_path)
    student, teacher = (state.parts["encoder"] for state in states)
    batch = batch_of(states[0], labelled=True)
    objective = Distillation(student, teacher, {"embeddings": 1.0})
    found = objective.terms(student, batch)["embeddings"].item()
    apart = [
        (student(batch[f"{side}input_ids"], batch[f"{side}attention_mask"])[0]
         - teacher(batch[f"{side}input_ids"], batch[f"{side}attention_mask"])[0]).square().mean()
        for side in ("", "other_")
    ]  # fmt: skip
    assert found == pytest.approx(sum(apart).item() / 2, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["token-classification", "question-answering", "feature-extraction"])
def test_a_student_that_is_the_teacher_has_nothing_to_learn(family: str, task: str, tmp_path: Path) -> None:
    state = model(task, tmp_path, family)
    part = state.parts["encoder"]
    own = "embeddings" if task == "feature-extraction" else "logits"
    both = Matching(layers=((0, 0), (1, 1)), first_states=True)
    objective = Distillation(part, part, {own: 1.0, **EVERY}, both)
    with torch.no_grad():
        terms = objective.terms(part, batch_of(state))
    assert list(terms) == sorted([own, *EVERY], key=["logits", "hidden", "attention", "embeddings"].index)
    assert all(float(value) == pytest.approx(0.0, abs=1e-10) for value in terms.values())
    assert not list(objective.parameters())


def test_the_loss_is_the_weighted_sum(tmp_path: Path) -> None:
    states = two("text-classification", tmp_path)
    batch = batch_of(states[0], labelled=True)
    student, teacher = (state.parts["encoder"] for state in states)
    weights = {"logits": 0.5, "hidden": 0.25, "attention": 2.0, "labels": 1.5}
    matching = Matching(layers=((0, 0), (1, 1)), temperature=2.0)
    objective = Distillation(student, teacher, {**weights, "embeddings": 0.0}, matching)
    terms = {name: value.item() for name, value in objective.terms(student, batch).items()}
    assert terms.keys() == weights.keys() and min(terms.values()) > 1e-3
    assert objective(student, batch).item() == pytest.approx(sum(weights[n] * terms[n] for n in weights), rel=1e-5)
    objective(student, batch)
    assert objective.means() == pytest.approx(terms, rel=1e-5) and objective.means() == {}


def test_another_width_is_projected(tmp_path: Path) -> None:
    states = two("feature-extraction", tmp_path, hidden_size=16)
    student, teacher = (state.parts["encoder"] for state in states)
    batch = batch_of(states[0])
    matching = Matching(layers=((0, 0), (1, 1)))
    objective = Distillation(student, teacher, {"hidden": 1.0, "embeddings": 1.0}, matching, seed=5)
    shapes = {name: tuple(parameter.shape) for name, parameter in objective.named_parameters()}
    assert shapes == {"projections.hidden.weight": (32, 16), "projections.embeddings.weight": (32, 16)}
    terms = objective.terms(student, batch)
    inputs = batch["input_ids"], batch["attention_mask"]
    widen = objective.projections["hidden"].weight
    mask = batch["attention_mask"].bool()
    own, wanted = student.states(*inputs), teacher.states(*inputs)
    losses = [((own[i] @ widen.T)[mask] - wanted[i][mask]).square().mean() for i in (1, 2)]
    assert terms["hidden"].item() == pytest.approx(sum(losses).item() / 2, rel=1e-4)
    pooled = student(*inputs)[0] @ objective.projections["embeddings"].weight.T
    assert terms["embeddings"].item() == pytest.approx((pooled - teacher(*inputs)[0]).square().mean().item(), rel=1e-4)
    sum(terms.values()).backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in objective.parameters())
    again = Distillation(student, teacher, {"hidden": 1.0}, seed=5)
    assert torch.equal(again.projections["hidden"].weight, widen)


def test_the_teacher_is_outside(tmp_path: Path) -> None:
    states = two("text-classification", tmp_path)
    student, teacher = (state.parts["encoder"] for state in states)
    objective = Distillation(student, teacher, {"logits": 1.0, **EVERY}, Matching(layers=((0, 0),)))
    learner = torch.nn.ModuleDict({"part": student, "objective": objective}).train()
    objective(student, batch_of(states[0])).backward()
    assert not any(parameter.grad is not None for parameter in teacher.parameters())
    assert not teacher.training and student.training
    mine = {id(tensor) for tensor in learner.parameters()}
    assert not mine & {id(tensor) for tensor in teacher.parameters()}
    assert not [name for name in learner.state_dict() if name.startswith("objective")]


def test_labels_in_another_order(tmp_path: Path) -> None:
    states = two("text-classification", tmp_path)
    batch = batch_of(states[0])
    mixed = term("logits", states, batch, labels=(2, 0, 1))
    head: Any = states[1].parts["encoder"].model.classifier
    with torch.no_grad():
        head.weight.copy_(head.weight[[2, 0, 1]].clone())
        head.bias.copy_(head.bias[[2, 0, 1]].clone())
    assert term("logits", states, batch) == pytest.approx(mixed, rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "layers"),
    [
        (4, 12, (2, 5, 8, 11)),
        (3, 6, (1, 3, 5)),
        (4, 6, (1, 2, 4, 5)),
        (2, 2, (0, 1)),
        (1, 5, (4,)),
        (4, 2, (0, 0, 1, 1)),
    ],
)
def test_layers_at_equal_distances(student: int, teacher: int, layers: tuple[int, ...]) -> None:
    assert uniform_layers(student, teacher) == tuple(enumerate(layers))
