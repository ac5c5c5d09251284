"""The finetune pass: heads, labels, weights, what is trained and what is not, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from edgec_runtime import load
from sklearn.utils.class_weight import compute_class_weight
from tiny_models import FAMILIES, LABELS, SENTENCES, tiny

from edgec.data.examples import Answer, Example, Labelled, Question, Tagged
from edgec.errors import DataError, PassError, UserError
from edgec.exporter import Exporter
from edgec.models import load_build, load_model, save_build
from edgec.nn.layout import base_path
from edgec.passes import Finetune, run_pass
from edgec.passes.supervised import lesson
from edgec.state import ModelState, PassContext, Quantization, TrainingData
from edgec.target import Target
from edgec.training import callbacks
from edgec.training.objectives import Supervised

FAST: dict[str, Any] = {"steps": 2, "batch_size": 3, "checks": 2}
ROWS: dict[str, tuple[Labelled, ...]] = {
    "text-classification": tuple(
        Example(text, label=("quiet", "loud")["!" in text or "cold" in text]) for text in SENTENCES
    ),
    "token-classification": (
        Tagged(("Ada", "works", "in", "Bern"), ("B-PER", "O", "O", "B-LOC")),
        Tagged(("Coffee", "!"), ("O", "O")),
        Tagged(("Cara",), ("B-PER",)),
    ),
    "question-answering": (
        Question("1", "Who works?", "Ada works in Bern", (Answer("Ada", 0),)),
        Question("2", "Who reads?", "Ada works in Bern"),
    ),
    "feature-extraction": (Example("Ada works", "Ada lives", "4.5"), Example("Yes.", "The river", "0")),
}
TASKS = tuple(ROWS)


def context(folder: Path, rows: tuple[Labelled, ...], **data: Any) -> PassContext:
    return PassContext(folder / "work", SENTENCES, data=TrainingData(train=rows, **data))


def tensors(state: ModelState) -> dict[str, torch.Tensor]:
    return dict(state.parts["encoder"].state_dict())


def encoder(state: ModelState) -> dict[str, torch.Tensor]:
    """The tensors below the head, by their names below the base model."""
    base = base_path(state.parts["encoder"])
    found = state.parts["encoder"].get_submodule(base).state_dict()
    return {name: tensor for name, tensor in found.items() if not name.startswith("pooler.")}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def report_of(state: ModelState) -> dict[str, Any]:
    return state.history[-1].report


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    """A sentence encoder: a model without a head."""
    return load_model(tiny("bert", "feature-extraction", tmp_path_factory.mktemp("model") / "m", num_hidden_layers=1))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_alone_leaves_the_encoder_untouched(family: str, task: str, tmp_path: Path) -> None:
    before = load_model(tiny(family, "fill-mask", tmp_path / "model"))
    if task == "feature-extraction":  # there is no head that could learn
        with pytest.raises(PassError, match="no parameter is to be trained"):
            run_pass(Finetune(task=task, train="head", **FAST), before, context(tmp_path, ROWS[task]))
        return
    after = run_pass(Finetune(task=task, train="head", **FAST), before, context(tmp_path, ROWS[task]))
    assert after.spec.task == task and report_of(after)["new_head"]
    assert equal(encoder(before), encoder(after))
    counted = report_of(after)["frozen_parameters"]
    assert counted == sum(p.numel() for name, p in after.parts["encoder"].named_parameters()
                          if name.removeprefix(base_path(after.parts["encoder"]) + ".") in encoder(after))  # fmt: skip
    assert all(parameter.requires_grad for parameter in after.parts["encoder"].parameters())
    ids = torch.tensor([[5, 6, 7, 8]], dtype=torch.int32)
    with torch.no_grad():
        shapes = [tuple(out.shape) for out in after.parts["encoder"](ids, torch.ones_like(ids))]
    assert (
        shapes
        == {
            "text-classification": [(1, 2)],
            "token-classification": [(1, 4, 3)],
            "question-answering": [(1, 4)] * 2,
        }[task]
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ["bert", "mpnet", "modernbert"])
def test_the_whole_model_learns_and_is_kept_in_a_build(family: str, task: str, tmp_path: Path) -> None:
    before = load_model(tiny(family, "feature-extraction", tmp_path / "model"))
    after = run_pass(Finetune(task=task, **FAST, learning_rate=1e-3), before, context(tmp_path, ROWS[task]))
    mine, yours = encoder(before), encoder(after)
    changed = [name for name in mine if not torch.equal(mine[name], yours[name])]
    assert any("layer" in name for name in changed) and any("embeddings" in name for name in changed)
    save_build(after, tmp_path / "build")
    again = load_build(tmp_path / "build")
    assert again.spec == after.spec and equal(tensors(again), tensors(after))


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_falls(task: str, tmp_path: Path, sentences: ModelState) -> None:
    step = Finetune(task=task, steps=40, checks=4, learning_rate=3e-3, batch_size=6)
    losses = list(report_of(run_pass(step, sentences, context(tmp_path, ROWS[task])))["losses"].values())
    assert losses[-1] < 0.8 * losses[0]


def test_a_head_that_fits_is_kept(tmp_path: Path) -> None:
    state = load_model(tiny("bert", "text-classification", tmp_path / "model"))
    rows = (Example("Ada", label="neutral"), Example("Bern", label="positive"))
    after = run_pass(Finetune(**FAST, learning_rate=1e-9), state, context(tmp_path, rows))
    assert after.spec.labels == LABELS["text-classification"] and not report_of(after)["new_head"]
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(
        tensors(state).values(), tensors(after).values(), strict=True))  # fmt: skip
    # One label that it does not have, and the head is another.
    other = run_pass(Finetune(**FAST), state, context(tmp_path, (*rows, Example("c", label="angry"))))
    assert other.spec.labels == ("angry", "neutral", "positive") and report_of(other)["new_head"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (("B-PER", "O", "B-LOC"), ("O", "B-LOC", "B-PER")),
        (("10", "9", "-1", "2.5"), ("-1", "2.5", "9", "10")),
        (("yes", "no"), ("no", "yes")),
    ],
)
def test_labels_are_in_order(
    found: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path, sentences: ModelState
) -> None:
    taught = lesson(
        Finetune(task="token-classification"), sentences, context(tmp_path, (Tagged(("a",) * len(found), found),))
    )
    assert taught.state.spec.labels == expected
    config = taught.state.parts["encoder"].model.config
    assert tuple(config.id2label[i] for i in range(len(expected))) == expected


def test_labels_that_differ_by_case_alone_are_told(tmp_path: Path, sentences: ModelState) -> None:
    said: list[str] = []
    rows = tuple(Example("Ada works", None, label) for label in ("food", "Food", "sport"))
    taught = lesson(
        Finetune(task="text-classification"), sentences, dataclasses.replace(context(tmp_path, rows), say=said.append)
    )
    assert taught.state.spec.labels == ("Food", "food", "sport")
    assert said == ["the labels 'Food', 'food' differ by case alone: they are labels of their own"]


def test_labels_may_be_named(tmp_path: Path, sentences: ModelState) -> None:
    named = ("loud", "odd", "quiet")
    step = Finetune(task="text-classification", labels=named, **FAST)
    after = run_pass(step, sentences, context(tmp_path, ROWS["text-classification"]))
    assert after.spec.labels == named and after.parts["encoder"].model.classifier.out_features == 3
    targets = lesson(step, sentences, context(tmp_path, ROWS["text-classification"])).rows
    assert {row.targets["label"] for row in targets} == {0, 2}


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_balanced_weights_are_those_of_scikit_learn(task: str, tmp_path: Path, sentences: ModelState) -> None:
    taught = lesson(Finetune(task=task, class_weights="balanced"), sentences, context(tmp_path, ROWS[task]))
    every = [
        label
        for row in ROWS[task]
        for label in (row.tags if isinstance(row, Tagged) else [row.label])  # type: ignore[union-attr]
    ]
    labels = list(taught.state.spec.labels or ())
    expected = compute_class_weight("balanced", classes=np.array(labels), y=np.array(every))
    found = taught.objective.class_weights
    assert found is not None and found.mean().item() == pytest.approx(1.0)
    assert found.numpy() == pytest.approx(expected / expected.mean(), rel=1e-5)
    assert lesson(Finetune(task=task), sentences, context(tmp_path, ROWS[task])).objective.class_weights is None


def test_a_label_that_never_occurs_weighs_as_the_mean(tmp_path: Path, sentences: ModelState) -> None:
    step = Finetune(task="text-classification", class_weights="balanced", labels=("loud", "odd", "quiet"))
    found = lesson(step, sentences, context(tmp_path, ROWS["text-classification"])).objective.class_weights
    assert found is not None and found[1] == 1.0 and found[[0, 2]].mean().item() == pytest.approx(1.0)


def test_balanced_labels_of_texts_that_have_several(tmp_path: Path, sentences: ModelState) -> None:
    kinds = (("a", ("a",), 6), ("a|b", ("a", "b"), 2), ("", (), 2))
    rows = [Example("Ada", label=label, labels=labels) for label, labels, count in kinds for _ in range(count)]
    step = Finetune(task="text-classification", class_weights="balanced", multi_label=True, labels=("a", "b", "c"))
    found = lesson(step, sentences, context(tmp_path, tuple(rows))).objective.class_weights
    # 2 of 10 are without a, and 8 without b; c never occurs.
    assert found is not None and found.tolist() == [2 / 8, 8 / 2, 1.0]
    with pytest.raises(DataError, match=r"data\.train has no labels"):
        lesson(Finetune(task="text-classification", multi_label=True), sentences, context(tmp_path, tuple(rows[-2:])))


def test_a_frozen_encoder_drops_nothing_out(
    tmp_path: Path, sentences: ModelState, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[bool, bool]] = set()
    of = Supervised.__call__

    def spy(self: Supervised, part: Any, batch: Any) -> Any:
        seen.add((part.model.training, part.model.bert.encoder.training))
        return of(self, part, batch)

    monkeypatch.setattr(Supervised, "__call__", spy)
    trained: tuple[Literal["head", "all"], ...] = ("head", "all")
    for train in trained:
        step = Finetune(task="text-classification", train=train, steps=1)
        after = run_pass(step, sentences, context(tmp_path, ROWS["text-classification"]))
        assert not after.parts["encoder"].training
    assert seen == {(True, False), (True, True)}
    # It can be put to training again.
    assert after.parts["encoder"].train().model.bert.encoder.training


def test_a_text_may_have_several_labels(tmp_path: Path, sentences: ModelState) -> None:
    rows = (
        Example("Ada", label="a|b", labels=("a", "b")),
        Example("Bern", label="", labels=()),
        Example("Cara", label="b", labels=("b",)),
    )
    step = Finetune(task="text-classification", multi_label=True, **FAST)
    after = run_pass(step, sentences, context(tmp_path, rows))
    assert (after.spec.labels, after.spec.multi_label) == (("a", "b"), True)
    assert after.parts["encoder"].model.config.problem_type == "multi_label_classification"
    assert [row.targets["label"].tolist() for row in lesson(step, sentences, context(tmp_path, rows)).rows] == [
        [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]
    ]  # fmt: skip


def test_pairs_of_texts(tmp_path: Path, sentences: ModelState) -> None:
    rows = (Example("Ada read", "The river", "yes"), Example("Yes.", "No", "no"))
    after = run_pass(Finetune(task="text-classification", **FAST), sentences, context(tmp_path, rows))
    assert after.spec.pairs and after.parts["encoder"].input_names[-1] == "token_type_ids"
    single = run_pass(
        Finetune(task="text-classification", **FAST), sentences, context(tmp_path, ROWS["text-classification"])
    )
    assert not single.spec.pairs


def test_the_best_on_validation_is_kept(tmp_path: Path, sentences: ModelState) -> None:
    ctx = context(tmp_path, ROWS["text-classification"], validation=ROWS["text-classification"])
    step = Finetune(task="text-classification", steps=4, checks=4, learning_rate=2e-3, patience=4)
    report = report_of(run_pass(step, sentences, ctx))
    best = max(report["scores"].values(), key=lambda found: found["accuracy"])
    assert list(report["scores"]) == [1, 2, 3, 4] and report["scores"][report["best_step"]] == best


def test_zeros_stay_zero(tmp_path: Path) -> None:
    state = load_model(tiny("bert", "text-classification", tmp_path / "model"))
    name = "model.bert.encoder.layer.0.output.dense.weight"
    with torch.no_grad():
        state.parts["encoder"].get_parameter(name)[::2] = 0.0
    sparse = dataclasses.replace(state, sparse=(f"encoder:{name}",))
    rows = (Example("Ada", label="neutral"), Example("Bern", label="positive"))
    after = run_pass(Finetune(**FAST, learning_rate=1e-2), sparse, context(tmp_path, rows))
    found = tensors(after)[name]
    assert (found[::2] == 0).all() and (found[1::2] != 0).all() and after.sparse == sparse.sparse


class Killed(Exception):
    pass


def _kill(label: str, total: int) -> Callable[[int], None]:
    def done(step: int) -> None:
        if step == 4:
            raise Killed

    return done


def test_a_killed_run_goes_on_to_the_same_weights(
    tmp_path: Path, sentences: ModelState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN", 0.0)
    step = Finetune(task="text-classification", steps=6, batch_size=2, checks=3, learning_rate=1e-3, layer_decay=0.9)
    rows = ROWS["text-classification"]
    ctx = dataclasses.replace(context(tmp_path, rows, validation=rows), checkpoints=tmp_path / "whole")
    whole = run_pass(step, sentences, ctx)
    cut = dataclasses.replace(ctx, checkpoints=tmp_path / "cut")
    with pytest.raises(Killed):
        run_pass(step, sentences, dataclasses.replace(cut, progress=_kill))
    resumed = run_pass(step, sentences, cut)
    assert equal(tensors(whole), tensors(resumed))
    assert report_of(whole)["scores"] == report_of(resumed)["scores"]


def test_a_bundle_of_it_answers(tmp_path: Path, sentences: ModelState, here: Target) -> None:
    step = Finetune(task="text-classification", steps=40, learning_rate=3e-3, checks=1)
    after = run_pass(step, sentences, context(tmp_path, ROWS["text-classification"]))
    Exporter(after, name="tuned").write(tmp_path / "bundle", here)
    bundle = load(tmp_path / "bundle")
    found = [best.label for best in bundle.classify(list(SENTENCES))]
    assert found == [row.label for row in ROWS["text-classification"]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("task", "options", "rows", "error", "message"),
    [
        ("text-classification", {"labels": ("loud",)}, ROWS["text-classification"], DataError, "has the label 'quiet'"),
        ("question-answering", {"labels": ("a",)}, ROWS["question-answering"], UserError, "answering has none"),
        ("text-classification", {}, (Example("a"),), DataError, "data.train has no labels"),
        ("text-classification", {}, ROWS["token-classification"], DataError, "cannot train a model for text-class"),
        ("token-classification", {}, ROWS["text-classification"], DataError, "cannot train a model for token-class"),
        ("question-answering", {}, ROWS["text-classification"], DataError, "cannot train a model for question"),
        ("feature-extraction", {}, ROWS["text-classification"], DataError, "cannot train a model for feature"),
        (None, {"multi_label": True}, ROWS["feature-extraction"], UserError, "multi_label is for text-classification"),
        (
            "text-classification", {}, (Example("a", label="x|y", labels=("x", "y")),), UserError,
            "rows of data.train may have several labels",
        ),
    ],
)  # fmt: skip
def test_rows_and_options_that_do_not_fit(
    task: str | None, options: dict[str, Any], rows: Any, error: type[UserError], message: str, tmp_path: Path,
    sentences: ModelState,
) -> None:  # fmt: skip
    step = Finetune(task=task, **options, **FAST)  # type: ignore[arg-type]
    with pytest.raises(error, match=message) as caught:
        run_pass(step, sentences, context(tmp_path, rows))
    assert caught.value.hint


def test_states_and_data_that_do_not_fit(tmp_path: Path, sentences: ModelState) -> None:
    with pytest.raises(DataError, match="finetune needs labelled rows"):
        Finetune().requires_data(PassContext(tmp_path))
    with pytest.raises(UserError, match="finetune trains in float") as caught:
        Finetune().requires(dataclasses.replace(sentences, quantization=Quantization("dynamic", {})))
    assert "before quantize" in caught.value.hint
    with pytest.raises(UserError, match="LoRA"):
        Finetune().requires(dataclasses.replace(sentences, lora={"r": 4}))
    masks = load_model(tiny("bert", "fill-mask", tmp_path / "model"))
    with pytest.raises(UserError, match="no head to train for fill-mask"):
        run_pass(Finetune(**FAST), masks, context(tmp_path, ROWS["text-classification"]))
    with pytest.raises(PassError, match="was to train for question-answering"):
        Finetune(task="question-answering").ensures(sentences, sentences)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_score": 0.0}, "max_score should be above 0"),
        ({"multi_label": True, "task": "question-answering"}, "multi_label is for text-classification"),
        ({"labels": ("a", "b", "a")}, "labels names a label twice"),
        ({"warmup": 1.0}, "warmup is a share of the steps"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Finetune(**options)


@pytest.mark.parametrize("score", ["7.5", "-1", "nan", "much"])
def test_scores_beyond_the_scale_are_refused_with_their_place(
    tmp_path: Path, sentences: ModelState, score: str
) -> None:
    rows = (Example("a", "b", "5"), Example("c", "d", score, line=3, path="pairs.csv"))
    step = Finetune(task="feature-extraction", **FAST)
    with pytest.raises(DataError, match=rf"pairs\.csv:3: the score '?{score}"):
        step.requires_data(context(tmp_path, rows))
    with pytest.raises(DataError, match=r"pairs\.csv:3: the score"):
        run_pass(Finetune(**FAST), sentences, context(tmp_path, rows))


def test_one_label_teaches_nothing(tmp_path: Path, sentences: ModelState) -> None:
    rows = (Example("a", label="calm"), Example("b", label="calm"))
    step = Finetune(task="text-classification", **FAST)
    with pytest.raises(DataError, match="one label alone, 'calm'"):
        run_pass(step, sentences, context(tmp_path, rows))
    named = Finetune(task="text-classification", labels=("calm", "glad"), **FAST)
    assert run_pass(named, sentences, context(tmp_path, rows)).spec.labels == ("calm", "glad")
