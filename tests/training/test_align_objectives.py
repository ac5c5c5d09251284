"""The loss of the alignment phases against one written by hand, and the states of frozen models that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rows import EXAMPLES, model
from tiny_models import SENTENCES

from edgec.data.examples import Example
from edgec.nn.alignment import AlignmentAdapter
from edgec.training.alignment import Alignment, FrozenStates, OnStates, distance, in_evaluation, rows_of
from edgec.training.features import Featurizer, TrainingRow, collate
from edgec.training.objectives import Supervised


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = model("token-classification", tmp_path_factory.mktemp("model"), num_hidden_layers=1)
    made.parts["encoder"].attach(AlignmentAdapter(32, 32, window=3, units=8).eval())
    return made


@pytest.fixture(scope="module")
def rows(state: Any) -> list[TrainingRow]:
    return Featurizer(state).texts(SENTENCES)


class Counted:
    """States of a model that counts the rows it was asked for: a function of the ids alone."""

    def __init__(self, width: int, factor: float = 1.0) -> None:
        self.width, self.factor, self.rows = width, factor, 0

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None) -> torch.Tensor:
        self.rows += len(ids)
        places = torch.arange(1, self.width + 1)
        # Nonsense at padded places, as a model gives.
        return torch.sin(self.factor * ids[..., None] * places) + 100.0 * (1 - mask[..., None])

    def frozen(self, limit: int = 10**6) -> FrozenStates:
        return FrozenStates(self, self.width, types=False, limit=limit)


def test_the_loss_is_the_mean_over_tokens_and_channels(state: Any, rows: list[TrainingRow]) -> None:
    part, batch = state.parts["encoder"], collate(rows, 0)
    compressed, large = Counted(32), Counted(32, 0.5)
    loss = Alignment(compressed.frozen(), large.frozen())(part, batch)
    total, count = 0.0, 0
    for row in rows:
        ids = torch.from_numpy(row.ids)[None]
        mask = torch.ones_like(ids)
        with torch.no_grad():
            aligned = part.adapter(compressed(ids, mask, None), mask)[0].numpy()
        wanted = large(ids, mask, None)[0].numpy()
        for i in range(len(row)):
            for j in range(32):
                total, count = total + float(aligned[i, j] - wanted[i, j]) ** 2, count + 1
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    assert distance(part, rows, Alignment(compressed.frozen(), large.frozen()), 0)["mse"] == pytest.approx(
        total / count, rel=1e-5
    )
    loss.backward()
    assert part.adapter.hidden.weight.grad is not None
    part.zero_grad()


def test_cosine_is_that_of_tokens(state: Any, rows: list[TrainingRow]) -> None:
    part, large, compressed = state.parts["encoder"], Counted(32, 0.5), Counted(32)
    found = distance(part, rows, Alignment(compressed.frozen(), large.frozen()), 0)["cosine"]
    cosines = []
    for row in rows:
        ids = torch.from_numpy(row.ids)[None]
        mask = torch.ones_like(ids)
        with torch.no_grad():
            one, other = part.adapter(compressed(ids, mask, None), mask)[0].numpy(), large(ids, mask, None)[0].numpy()
        cosines += [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(one, other, strict=True)]
    assert found == pytest.approx(np.mean(cosines), rel=1e-5)


def test_kept_states_are_those_of_the_model(rows: list[TrainingRow]) -> None:
    source = Counted(4)
    states, batch = source.frozen(), collate(rows, 0)
    mask = batch["attention_mask"].bool()
    expected = source(batch["input_ids"], batch["attention_mask"], None)[mask]
    assert states.keep(rows, 0, "states") == len(rows)
    source.rows = 0
    found = states(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    assert torch.equal(found[mask], expected) and source.rows == 0
    states.keep([*rows, rows[0]], 0, "states")
    assert source.rows == 0
    states.clear()
    assert torch.equal(states(batch["input_ids"], batch["attention_mask"])[mask], expected)
    assert source.rows == len(rows)


def test_what_finds_no_room_is_computed_anew(rows: list[TrainingRow]) -> None:
    source, batch = Counted(4), collate(rows, 0)
    # Four bytes a number: room for the first two rows and nothing else.
    states = source.frozen(4 * 4 * (len(rows[0]) + len(rows[1])))
    assert states.keep(rows, 0, "states") == 2
    source.rows = 0
    found = states(batch["input_ids"], batch["attention_mask"])
    assert source.rows == len(rows) - 2
    mask = batch["attention_mask"].bool()
    assert torch.equal(found[mask], source(batch["input_ids"], batch["attention_mask"], None)[mask])


def test_token_types_tell_rows_apart_where_the_model_does() -> None:
    ids = np.array([5, 6, 7], np.int32)
    rows = [TrainingRow(ids, np.array(types, np.int32)) for types in ([0, 0, 0], [0, 1, 1])]
    for types, asked in ((False, 1), (True, 2)):
        source = Counted(4)
        FrozenStates(source, 4, types=types, limit=10**6).keep(rows, 0, "states")
        assert source.rows == asked


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
def test_labels_are_learnt_on_kept_states_as_on_the_model(task: str, tmp_path: Path) -> None:
    made = model(task, tmp_path / "model", num_hidden_layers=1)
    part: Any = made.parts["encoder"]
    part.attach(AlignmentAdapter(32, 32, window=3, units=8).eval())
    batch = collate(Featurizer(made).labelled(EXAMPLES[task]), 0)
    states = FrozenStates(part.encoded, 32, types="token_type_ids" in part.input_names, limit=0)
    expected = Supervised()(part, batch)
    found = OnStates(Supervised(), states)(part, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
def test_texts_give_the_rows_that_labels_are_learnt_on(task: str, tmp_path: Path) -> None:
    featurizer = Featurizer(model(task, tmp_path / "model", num_hidden_layers=1), max_length=16)
    labelled, texts = featurizer.labelled(EXAMPLES[task]), rows_of(featurizer, EXAMPLES[task])
    assert [(row.ids.tolist(), row.type_ids.tolist()) for row in texts] == [
        (row.ids.tolist(), row.type_ids.tolist()) for row in labelled
    ]
    assert not any(row.targets for row in texts)


def test_both_texts_of_a_pair_are_rows_where_the_model_reads_one(tmp_path: Path) -> None:
    featurizer = Featurizer(model("feature-extraction", tmp_path / "model", num_hidden_layers=1))
    found = rows_of(featurizer, [Example("Ada works", "Bern was cold", "1")])
    expected = featurizer.texts(["Ada works", "Bern was cold"])
    assert [row.ids.tolist() for row in found] == [row.ids.tolist() for row in expected]


def test_a_frozen_encoder_stays_in_evaluation_mode(state: Any) -> None:
    part = state.parts["encoder"]
    with in_evaluation(part.model.bert):
        part.train()
        assert part.training and part.model.dropout.training
        assert not any(module.training for module in part.model.bert.modules())
    part.train()
    assert all(module.training for module in part.model.bert.modules())
    part.eval()
