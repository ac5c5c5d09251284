"""The decouple pass: two components that compute what the whole does, its loss by hand, what it keeps and refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import DECOUPLED, SENTENCES, tiny
from tokenizers import processors
from torch import nn

from edgec.data.examples import Answer, Example, Labelled, Question, Tagged
from edgec.errors import DataError, PassError, UserError
from edgec.models import load_build, load_model, save_build
from edgec.models.decoupled import decoupled, telling_apart
from edgec.models.torch_model import torch_model
from edgec.nn.seam import CrossComponent, InputComponent
from edgec.passes import Align, Decouple, Distill, Finetune, Lora, Prune, Quantize, TrimVocab, learn, run_pass
from edgec.passes import decouple as module
from edgec.passes.learn import copied
from edgec.state import ModelState, PassContext, TrainingData
from edgec.training.compression import explained, with_compression
from edgec.training.decoupling import CONTRAST, Decoupling
from edgec.training.features import Featurizer, collate
from edgec.training.objectives import Supervised

FAST: dict[str, Any] = {"split": 1, "steps": 2, "batch_size": 2, "checks": 1}
QUESTIONS: tuple[Labelled, ...] = (
    Question("1", "Who works?", "Ada works in Bern", (Answer("Ada", 0),)),
    Question("2", "Who reads?", "The river is cold . Ada works in Bern"),
    Question("3", "Where does Ada work?", "Ada works in Bern", (Answer("Bern", 13),)),
)
PAIRS: tuple[Labelled, ...] = (
    Example("Ada works", "Ada lives", "same"),
    Example("Yes.", "The river is cold", "other"),
)


def context(folder: Path, rows: tuple[Labelled, ...] = QUESTIONS) -> PassContext:
    return PassContext(folder / "work", SENTENCES, data=TrainingData(train=rows))


def model(folder: Path, family: str = "bert", task: str = "question-answering", **config: Any) -> ModelState:
    return load_model(tiny(family, task, folder / f"{family}-{task}", **config))


def batch_of(state: ModelState, rows: tuple[Labelled, ...] = QUESTIONS) -> dict[str, torch.Tensor]:
    return collate(Featurizer(state).labelled(rows), int(state.tokenizer.pad_token_id))


@pytest.mark.parametrize("family", DECOUPLED)
def test_the_components_compute_what_the_whole_does(family: str, tmp_path: Path) -> None:
    state = decoupled(copied(model(tmp_path, family)), 1)
    part: Any = state.parts["encoder"].eval()
    batch = batch_of(state)
    with torch.no_grad():
        whole = part(*(batch[name] for name in part.input_names))
        below, above = InputComponent(part), CrossComponent(part)
        for row, types in enumerate(batch["token_type_ids"]):
            tokens = int(batch["attention_mask"][row].sum())
            ids, types = batch["input_ids"][row, :tokens], types[:tokens]
            assert types.tolist() == sorted(types.tolist()) and set(types.tolist()) == {0, 1}
            kept = [
                below(ids[types == side][None], torch.ones_like(ids[types == side])[None], types[types == side][None])[
                    0
                ]
                for side in (0, 1)
            ]
            got = above(torch.cat(kept, dim=1), torch.ones_like(ids)[None], types[None])
            for one, other in zip(got, whole, strict=True):
                torch.testing.assert_close(one[0], other[row, :tokens], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", DECOUPLED)
def test_a_text_below_the_seam_does_not_see_the_other(family: str, tmp_path: Path) -> None:
    state = decoupled(copied(model(tmp_path, family)), 1)
    rows = Featurizer(state).labelled(QUESTIONS)
    # The same context under two questions of unlike length.
    passages = [row.ids[row.type_ids == 1].tolist() for row in (rows[0], rows[2])]
    assert passages[0] == passages[1] and len(rows[0]) != len(rows[2])


def test_a_standard_model_sees_both_and_is_left_as_it_is(tmp_path: Path) -> None:
    state = model(tmp_path)
    before = {name: tensor.clone() for name, tensor in state.parts["encoder"].state_dict().items()}
    after = run_pass(Decouple(**FAST), state, context(tmp_path))
    assert state.parts["encoder"].seam is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.parts["encoder"].state_dict().items())
    report = after.history[-1].report
    assert (report["split"], report["width"], report["steps"]) == ("1-1", 32, 2)
    with torch_model(after) as loaded:
        assert loaded.raw([{"question": "Who?", "context": "Ada works"}])[0]["start_logits"].ndim == 1


def test_global_embeddings_begin_as_the_models_own(tmp_path: Path) -> None:
    state = model(tmp_path)
    table = state.parts["encoder"].model.base_model.embeddings
    seam = decoupled(copied(state), 1).parts["encoder"].seam
    assert torch.equal(seam.positions.weight, table.position_embeddings.weight)
    assert torch.equal(seam.segments.weight, table.token_type_embeddings.weight)
    plain = decoupled(copied(model(tmp_path, "distilbert")), 1).parts["encoder"].seam
    assert not plain.segments.weight.any() and plain.first_position == 0
    roberta = model(tmp_path, "roberta")
    assert decoupled(copied(roberta), 1).parts["encoder"].seam.first_position == roberta.tokenizer.pad_token_id + 1


def test_the_loss_is_that_of_the_paper(tmp_path: Path) -> None:
    state = model(tmp_path)
    teacher: Any = state.parts["encoder"].eval()
    after = decoupled(copied(state), 1)
    student: Any = after.parts["encoder"].eval()
    batch = batch_of(after)
    inner: dict[str, list[torch.Tensor]] = {"teacher": [], "student": []}
    for name, part in (("teacher", teacher), ("student", student)):
        attention = part.model.base_model.encoder.layer[-1].attention.output.dense
        attention.register_forward_hook(lambda m, args, out, name=name: inner[name].append(out))
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        given = [batch[name] for name in teacher.input_names]
        states = [part.encoded(*given) for part in (teacher, student)]
        answers = [
            part.answer(found, batch["attention_mask"]) for part, found in zip((teacher, student), states, strict=True)
        ]
    attention = [inner["teacher"][0], inner["student"][0]]
    hard = soft = 0.0
    for side, name in enumerate(("start", "end")):
        for row in range(len(mask)):
            wanted, own = (answer[side][row][mask[row]] for answer in answers)
            hard += float(-own.log_softmax(0)[batch[name][row]]) / (2 * len(mask))
            p, q = (wanted / 3).softmax(0), (own / 3).log_softmax(0)
            soft += float((p * (p.log() - q)).sum()) / (2 * len(mask))
    expected = 0.05 * hard + 0.95 * soft
    for pair in (states, attention):
        expected += 0.5 * float((pair[0] - pair[1])[mask].square().mean())
    loss = Decoupling(teacher, Supervised(), weight=0.95, temperature=3.0, states=0.5, attention=0.5)
    with torch.no_grad():
        assert float(loss(student, batch)) == pytest.approx(expected, rel=1e-5)
        found = float(loss(student, batch))
        loss.contrastive = 2.0
        assert float(loss(student, batch)) - found == pytest.approx(2 * _contrast(student, batch), rel=1e-4)


def _contrast(part: Any, batch: dict[str, torch.Tensor]) -> float:
    """InfoNCE of the mean states, each text run alone; windows without an answer are no question's."""
    below = InputComponent(part)
    pooled: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for ids, types, mask in zip(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"], strict=True):
        for side in (0, 1):
            kept = ids[(types == side) & mask.bool()][None]
            pooled[side].append(below(kept, torch.ones_like(kept), torch.full_like(kept, side))[1][0])
    scores = torch.stack(pooled[0]) @ torch.stack(pooled[1]).T / CONTRAST
    counted = [row for row, start in enumerate(batch["start"]) if start > 0]
    return float(sum(-scores[row].log_softmax(0)[row] for row in counted) / len(counted))


def test_compression_is_the_best_linear_one(tmp_path: Path) -> None:
    state = decoupled(copied(model(tmp_path)), 1)
    part: Any = state.parts["encoder"].eval()
    rows = Featurizer(state).labelled(QUESTIONS)
    states = []
    for row in rows:
        for side in (0, 1):
            ids = torch.from_numpy(row.ids[row.type_ids == side])[None]
            part.seam.compress = nn.Identity()
            states.append(InputComponent(part)(ids, torch.ones_like(ids), torch.full_like(ids, side))[0][0])
    hidden = torch.cat(states).detach()
    part.seam = with_compression(part, rows, 8, pad_id=0)
    singular = torch.linalg.svdvals((hidden - hidden.mean(0)).double()).square()
    assert part.seam.width == 8 and part.seam.compressed
    assert explained(part, rows, pad_id=0)[0] == pytest.approx(float(singular[:8].sum() / singular.sum()), abs=1e-4)


def test_compressed_and_saved_it_comes_back_the_same(tmp_path: Path) -> None:
    state = model(tmp_path, "roberta")
    after = run_pass(Decouple(**FAST, compression=4), state, context(tmp_path))
    assert after.parts["encoder"].seam.width == 8
    report = after.history[-1].report
    assert 0 < report["explained_variance"] <= 1
    # A scale a token costs little beside what three channels of four cost.
    assert report["explained_variance_int8"] == pytest.approx(report["explained_variance_after"], abs=0.01)
    save_build(after, tmp_path / "build")
    again = load_build(tmp_path / "build")
    pairs = zip(after.parts["encoder"].state_dict().items(), again.parts["encoder"].state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    request = [{"question": "Who works?", "context": "Ada works in Bern"}]
    with torch_model(after) as one, torch_model(again) as other:
        assert one.raw(request)[0]["end_logits"].tolist() == other.raw(request)[0]["end_logits"].tolist()


def test_a_kill_in_compression_does_not_cost_what_was_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, step = model(tmp_path), Decouple(**FAST, compression=4)
    whole = run_pass(step, state, context(tmp_path))
    ctx = dataclasses.replace(context(tmp_path), checkpoints=tmp_path / "kept")
    fits: list[str] = []

    def fit(*args: Any, label: str, **options: Any) -> Any:
        fits.append(label)
        if fits == ["decouple", "compression"]:
            raise KeyboardInterrupt
        return learn.fit(*args, label=label, **options)

    monkeypatch.setattr(module, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        run_pass(step, state, ctx)
    again = run_pass(step, state, ctx)
    assert fits == ["decouple", "compression", "compression"] and not (tmp_path / "kept" / "finished").exists()
    pairs = zip(*(one.parts["encoder"].state_dict().values() for one in (whole, again)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    # Steps are numbers in one and names in the other, which has them from a file.
    plain = [json.loads(json.dumps(one.history[-1].report)) for one in (whole, again)]
    assert plain[0] == plain[1]


def test_of_several_processes_one_keeps_what_was_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(module, "_finish", lambda *_: kept.append(True))
    for first in (True, False):
        monkeypatch.setattr(module, "is_main", lambda first=first: first)
        run_pass(Decouple(**FAST, compression=4), model(tmp_path), context(tmp_path))
        assert kept == [True]


def test_pairs_are_classified_apart(tmp_path: Path) -> None:
    state = model(tmp_path, "electra", "text-classification")
    state = dataclasses.replace(state, spec=dataclasses.replace(state.spec, labels=("other", "same", "no"), pairs=True))
    after = run_pass(Decouple(**FAST), state, context(tmp_path, PAIRS))
    with torch_model(after) as loaded:
        assert loaded.classify([("Ada works", "Ada lives")])[0].label in ("other", "same", "no")


@pytest.mark.parametrize("trims", [True, False])
def test_offsets_stay(trims: bool, tmp_path: Path) -> None:
    """RoBERTa's own post-processor leaves the blank before a word out of them."""
    tokenizer = model(tmp_path, "roberta").tokenizer
    ends, starts = (tokenizer.sep_token, tokenizer.sep_token_id), (tokenizer.cls_token, tokenizer.cls_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(ends, starts, trim_offsets=trims)
    told = telling_apart(tokenizer)
    for pair in (("Ada works", "in Bern"), ("Ada works",)):
        before, after = tokenizer.backend_tokenizer.encode(*pair), told.backend_tokenizer.encode(*pair)
        assert (before.ids, before.offsets) == (after.ids, after.offsets)
    assert set(after.type_ids) == {0}


def test_what_it_refuses(tmp_path: Path) -> None:
    whole = model(tmp_path)
    step = Decouple(**FAST)
    with pytest.raises(DataError, match="labelled rows"):
        step.requires_data(context(tmp_path, ()))
    for family in ("deberta-v2", "modernbert", "mpnet"):
        with pytest.raises(UserError, match="relative or rotary"):
            step.requires(model(tmp_path, family))
    with pytest.raises(UserError, match="reads single texts"):
        step.requires(model(tmp_path, "bert", "token-classification"))
    pairs = model(tmp_path, "bert", "text-classification")
    pairs = dataclasses.replace(pairs, spec=dataclasses.replace(pairs.spec, pairs=True))
    with pytest.raises(UserError, match="contrastive makes a question and its passage alike"):
        dataclasses.replace(step, contrastive=0.1).requires(pairs)
    with pytest.raises(UserError, match="leaves no layer"):
        dataclasses.replace(step, split=2).requires(whole)
    with pytest.raises(UserError, match="decoupled already"):
        step.requires(decoupled(copied(whole), 1))
    with pytest.raises(UserError, match="quantized"):
        step.requires(run_pass(Quantize(scheme="dynamic"), whole, context(tmp_path)))
    parted = decoupled(copied(whole), 1)
    others = (
        Prune(structure="layers", keep=1, select="magnitude"),
        Distill(keep=1),
        Align(large="large"),
        Lora(),
        TrimVocab(),
        Finetune(task="token-classification"),
    )
    for other in others[:-1]:
        with pytest.raises(UserError, match="the model is decoupled"):
            other.requires(parted)
    rows = (Tagged(("Ada", "works"), ("B-PER", "O")),)
    with pytest.raises(UserError, match="was trained for its head"):
        run_pass(others[-1], parted, context(tmp_path, rows))
    for wrong in ({"split": 0}, {"compression": 1.0}, {"distill": 1.5}, {"temperature": 0}, {"compression_steps": 5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Decouple(**{**FAST, **wrong})
    with pytest.raises(PassError, match="left the model whole"):
        step.ensures(whole, whole)
