"""The distill pass: students, teachers, what they learn, and that everything downstream takes what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edgec_runtime import load
from tiny_models import FAMILIES, LABELS, SENTENCES, tiny

from edgec.data.examples import Answer, Example, Labelled, Question, Tagged
from edgec.errors import DataError, ModelError, PassError, UserError
from edgec.exporter import Exporter
from edgec.models import load_build, load_model, save_build
from edgec.models.heads import with_head
from edgec.models.student import from_layers
from edgec.passes import Distill, Finetune, Quantize, run_pass
from edgec.passes.learn import copied
from edgec.state import ModelState, PassContext, Quantization, TrainingData
from edgec.target import Target
from edgec.training import callbacks

TASK = "text-classification"
ROWS = tuple(Example(text, label=LABELS[TASK][i % 3]) for i, text in enumerate(SENTENCES))
FAST: dict[str, Any] = {"steps": 2, "batch_size": 3, "checks": 2}


def depth_of(family: str, layers: int) -> dict[str, int]:
    return {"n_layers" if family == "distilbert" else "num_hidden_layers": layers}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    """Three layers, for three labels."""
    return load_model(tiny("bert", TASK, tmp_path_factory.mktemp("teacher") / "model", num_hidden_layers=3))


@pytest.fixture
def ctx(tmp_path: Path) -> PassContext:
    return PassContext(tmp_path / "work", SENTENCES, data=TrainingData(train=ROWS, unlabelled=SENTENCES))


def report_of(state: ModelState) -> dict[str, Any]:
    return state.history[-1].report


def tensors(state: ModelState) -> dict[str, torch.Tensor]:
    return dict(state.parts["encoder"].state_dict())


def same(one: ModelState, other: ModelState) -> bool:
    mine, yours = tensors(one), tensors(other)
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)


def answers(state: ModelState, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return tuple(state.parts["encoder"](ids, torch.ones_like(ids)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wanted", ["keep", "config"])
def test_every_family_gives_a_student_that_a_build_keeps(family: str, wanted: str, tmp_path: Path) -> None:
    task = "token-classification" if wanted == "keep" else "feature-extraction"
    state = load_model(tiny(family, task, tmp_path / "model", **depth_of(family, 3)))
    narrow = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    step = Distill(on="unlabelled", hidden=1.0, attention=1.0, first_states=True, **FAST,
                   **({"keep": 2} if wanted == "keep" else {"config": narrow}))  # fmt: skip
    after = run_pass(step, state, PassContext(tmp_path, data=TrainingData(unlabelled=SENTENCES)))
    report = report_of(after)
    own = "logits" if wanted == "keep" else "embeddings"
    assert list(report["terms"]) == [1, 2]
    assert set(report["terms"][2]) == {own, "hidden", "attention"} and min(report["terms"][2].values()) > 0
    assert report["projected"] == ([] if wanted == "keep" else ["embeddings", "hidden"])
    assert report["layer_map"] == [[0, 1], [1, 2]]
    save_build(after, tmp_path / "build")
    again = load_build(tmp_path / "build")
    assert same(after, again)
    ids = torch.randint(5, 30, (2, 9), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    assert all(torch.equal(one, other) for one, other in zip(answers(after, ids), answers(again, ids), strict=True))
    assert answers(after, ids)[0].shape[-1] == (5 if wanted == "keep" else 16)


def test_zeros_that_are_held_move_with_their_layer(teacher: ModelState, ctx: PassContext) -> None:
    name = "encoder:model.bert.encoder.layer.{}.output.dense.weight"
    table = "encoder:model.bert.embeddings.word_embeddings.weight"
    sparse = dataclasses.replace(from_layers(teacher, (0, 1, 2)), sparse=(name.format(1), name.format(2), table))
    with torch.no_grad():
        sparse.parts["encoder"].get_parameter(name.format(2).removeprefix("encoder:"))[:, ::2] = 0.0
    after = run_pass(Distill(layers=(0, 2), **FAST), sparse, ctx)
    assert after.sparse == (name.format(1), table)
    held = after.parts["encoder"].get_parameter(name.format(1).removeprefix("encoder:"))
    assert (held[:, ::2] == 0).all() and (held[:, 1::2] != 0).all()


def test_the_report_counts_without_the_vocabulary(teacher: ModelState, ctx: PassContext) -> None:
    report = report_of(run_pass(Distill(keep=1, **FAST), teacher, ctx))
    part: Any = teacher.parts["encoder"]
    layer = sum(p.numel() for p in part.model.bert.encoder.layer[0].parameters())
    rest = sum(p.numel() for p in part.model.bert.embeddings.parameters())
    rest -= part.model.bert.embeddings.word_embeddings.weight.numel()
    assert report["encoder_parameters"] == {"teacher": 3 * layer + rest, "student": layer + rest}
    assert report["encoder_smaller"] == pytest.approx(2 * layer / (3 * layer + rest), abs=1e-4)
    whole = sum(p.numel() for p in part.parameters())
    assert report["parameters"] == {"teacher": whole, "student": whole - 2 * layer}
    assert report["smaller"] == pytest.approx(2 * layer / whole, abs=1e-4)
    assert report["student"] == {"layers": [0], "of": 3} and report["weights"] == {"logits": 1.0}


@pytest.mark.parametrize("target", ["logits", "hidden", "attention", "labels"])
def test_training_lowers_each_term(target: str, teacher: ModelState, ctx: PassContext) -> None:
    weights: dict[str, Any] = {"logits": 0.0, target: 1.0}
    step = Distill(keep=2, **weights, steps=24, checks=3, batch_size=6, learning_rate=3e-3, warmup=0.0)
    report = report_of(run_pass(step, teacher, ctx))
    first, *_, last = (terms[target] for terms in report["terms"].values())
    assert last < 0.8 * first
    assert report["losses"] == pytest.approx({step: terms[target] for step, terms in report["terms"].items()}, abs=1e-4)


@pytest.mark.parametrize("compare", ["mse", "cosine"])
def test_sentence_embeddings_are_learnt_from_texts(compare: str, tmp_path: Path) -> None:
    state = load_model(tiny("bert", "feature-extraction", tmp_path / "model", num_hidden_layers=3))
    ctx = PassContext(tmp_path, data=TrainingData(unlabelled=(*SENTENCES, ("Ada read", "The river"))))
    step = Distill(layers=(0, 2), on="unlabelled", embedding_loss=compare, steps=24, checks=3, learning_rate=3e-3)
    report = report_of(run_pass(step, state, ctx))
    assert report["rows"] == len(SENTENCES) + 2
    first, *_, last = (terms["embeddings"] for terms in report["terms"].values())
    assert last < 0.7 * first


def test_the_teacher_stays_as_it_was(teacher: ModelState, ctx: PassContext) -> None:
    before = {name: tensor.clone() for name, tensor in tensors(teacher).items()}
    after = run_pass(Distill(keep=2, hidden=1.0, labels=1.0, **FAST, learning_rate=1e-2), teacher, ctx)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(teacher).items())
    assert all(parameter.requires_grad for parameter in teacher.parts["encoder"].parameters())
    assert not any(module._forward_hooks for module in after.parts["encoder"].modules())
    assert not same(after, from_layers(teacher, (0, 2)))


@pytest.mark.parametrize("task", ["token-classification", "question-answering", "feature-extraction"])
def test_labels_and_windows_of_each_task(task: str, tmp_path: Path) -> None:
    context = " ".join(SENTENCES[:4]) * 3
    rows: dict[str, tuple[Labelled, ...]] = {
        "token-classification": (Tagged(("Ada", "walked") * 50, ("B-PER", "O") * 50),),
        "question-answering": (Question("1", "Who?", context, (Answer("Ada", 0),)),),
        "feature-extraction": (Example("Ada", "Bern", "5"), Example("Yes.", "No", "0")),
    }
    state = load_model(tiny("bert", task, tmp_path / "model"))
    ctx = PassContext(tmp_path, data=TrainingData(train=rows[task]))
    taught = report_of(run_pass(Distill(keep=1, labels=1.0, **FAST), state, ctx))
    plain = report_of(run_pass(Distill(keep=1, **FAST), state, ctx))
    assert taught["terms"][2].keys() - plain["terms"][2].keys() == {"labels"}
    # Pairs with scores are one row, and two texts where the scores do not matter.
    assert (taught["rows"], plain["rows"]) == ((2, 4) if task == "feature-extraction" else (taught["rows"],) * 2)
    assert task == "feature-extraction" or taught["rows"] > 1


def test_rows_of_another_kind_are_texts(teacher: ModelState, tmp_path: Path) -> None:
    data = TrainingData(train=(Tagged(("Ada", "walked"), ("N", "V")), Question("1", "Who?", "Ada walked")))
    report = report_of(run_pass(Distill(keep=1, **FAST), teacher, PassContext(tmp_path, data=data)))
    assert report["rows"] == 2


def test_validation_rows_of_a_later_task_are_left_to_it(teacher: ModelState, ctx: PassContext) -> None:
    later = dataclasses.replace(ctx.data, validation=(Tagged(("Ada",), ("NOUN",)),))
    report = report_of(
        run_pass(Distill(keep=1, on="unlabelled", **FAST), teacher, dataclasses.replace(ctx, data=later))
    )
    assert report["scores"] == {}
    own = dataclasses.replace(ctx.data, validation=ROWS)
    report = report_of(run_pass(Distill(keep=1, on="unlabelled", **FAST), teacher, dataclasses.replace(ctx, data=own)))
    assert list(report["scores"]) == [1, 2] and "accuracy" in report["scores"][1]


def test_several_labels(teacher: ModelState, tmp_path: Path) -> None:
    state = with_head(teacher, TASK, labels=("a", "b"), multi_label=True)
    rows = (Example("Ada", label="a|b", labels=("a", "b")), Example("Bern", label="", labels=()))
    after = run_pass(Distill(keep=2, labels=1.0, **FAST), state, PassContext(tmp_path, data=TrainingData(train=rows)))
    assert after.spec.multi_label and after.spec.labels == ("a", "b")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of two layers and other weights."""
    return tiny("bert", TASK, tmp_path_factory.mktemp("other") / "model", seed=7)


def test_another_teacher_teaches_the_model_itself(teacher: ModelState, other: Path, ctx: PassContext) -> None:
    after = run_pass(Distill(teacher=str(other), hidden=1.0, **FAST), teacher, ctx)
    report = report_of(after)
    assert tensors(after).keys() == tensors(teacher).keys() and not same(after, teacher)
    assert report["layer_map"] == [[0, 0], [1, 1], [2, 1]] and report["encoder_smaller"] < 0
    still = run_pass(Distill(teacher=str(other), keep=3, layer_map=(None, None, 0), hidden=1.0, **FAST), teacher, ctx)
    assert report_of(still)["layer_map"] == [[2, 0]]


def test_labels_of_a_teacher_may_be_in_another_order(teacher: ModelState, tmp_path: Path, ctx: PassContext) -> None:
    turned = copied(teacher)
    head: Any = turned.parts["encoder"].model.classifier
    order = [2, 0, 1]
    with torch.no_grad():
        head.weight.copy_(head.weight[order].clone())
        head.bias.copy_(head.bias[order].clone())
    names = tuple(LABELS[TASK][place] for place in order)
    turned = dataclasses.replace(turned, spec=dataclasses.replace(turned.spec, labels=names))
    save_build(turned, tmp_path / "turned")
    # The same model under other numbers: there is nothing to learn but the dropout.
    found = report_of(run_pass(Distill(teacher=str(tmp_path / "turned"), **FAST), teacher, ctx))
    reference = report_of(run_pass(Distill(layers=(0, 1, 2), **FAST), teacher, ctx))
    for step, terms in reference["terms"].items():
        assert found["terms"][step] == pytest.approx(terms, abs=2e-6)


def test_another_model_as_the_student(teacher: ModelState, other: Path, ctx: PassContext) -> None:
    after = run_pass(Distill(student=str(other), hidden=1.0, **FAST, learning_rate=1e-9), teacher, ctx)
    assert (after.spec.labels, after.spec.source) == (teacher.spec.labels, str(other))
    source = tensors(load_model(other))
    assert all(torch.allclose(tensor, source[name], atol=1e-6) for name, tensor in tensors(after).items())
    assert report_of(after)["student"]["head"] is False  # its own, which is for the same labels


def test_a_student_of_another_task_gets_the_head(teacher: ModelState, tmp_path: Path, ctx: PassContext) -> None:
    encoder = tiny("bert", "fill-mask", tmp_path / "encoder", seed=3)
    after = run_pass(Distill(student=str(encoder), **FAST, learning_rate=1e-9), teacher, ctx)
    assert (after.spec.task, after.spec.labels) == (TASK, teacher.spec.labels)
    found, head = tensors(after), tensors(teacher)
    assert report_of(after)["student"]["head"] is True
    assert torch.allclose(found["model.classifier.weight"], head["model.classifier.weight"], atol=1e-6)
    inside = "model.bert.encoder.layer.1.output.dense.weight"
    assert torch.allclose(found[inside], tensors(load_model(encoder))[inside], atol=1e-6)


def test_a_student_of_another_family(tmp_path: Path) -> None:
    """WordPiece of BERT and of DistilBERT are the same, so their models understand each other."""
    state = load_model(tiny("bert", "feature-extraction", tmp_path / "bert"))
    small = tiny("distilbert", "feature-extraction", tmp_path / "distilbert", dim=16, n_layers=1)
    after = run_pass(
        Distill(student=str(small), on="unlabelled", hidden=1.0, attention=1.0, **FAST),
        state,
        PassContext(tmp_path, data=TrainingData(unlabelled=SENTENCES)),
    )
    assert (after.spec.family, report_of(after)["layer_map"]) == ("distilbert", [[0, 1]])
    assert report_of(after)["projected"] == ["embeddings", "hidden"]


# Kills, builds and bundles


class Killed(Exception):
    pass


def _kill(label: str, total: int) -> Callable[[int], None]:
    def done(step: int) -> None:
        if step == 4:
            raise Killed

    return done


def test_a_killed_run_goes_on_to_the_same_weights(
    teacher: ModelState, tmp_path: Path, ctx: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN", 0.0)
    narrow = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    step = Distill(config=narrow, hidden=1.0, attention=0.1, labels=0.5, steps=6, batch_size=2, checks=3)
    whole = run_pass(step, teacher, dataclasses.replace(ctx, checkpoints=tmp_path / "whole"))
    cut = dataclasses.replace(ctx, checkpoints=tmp_path / "cut")
    with pytest.raises(Killed):
        run_pass(step, teacher, dataclasses.replace(cut, progress=_kill))
    assert list((tmp_path / "cut").glob("checkpoint-*"))
    resumed = run_pass(step, teacher, cut)
    assert same(whole, resumed)
    # What was noted before the kill is noted still.
    assert report_of(resumed)["terms"][2] == report_of(whole)["terms"][2]
    assert not (tmp_path / "cut").exists()


def test_finetuned_distilled_quantized_and_shipped(tmp_path: Path, here: Target, ctx: PassContext) -> None:
    state = load_model(tiny("bert", "feature-extraction", tmp_path / "model", num_hidden_layers=3))
    tuned = run_pass(Finetune(task=TASK, **FAST), state, ctx)
    student = run_pass(Distill(keep=2, hidden=1.0, labels=0.5, **FAST), tuned, ctx)
    small = run_pass(Quantize(scheme="dynamic"), student, ctx)
    exporter = Exporter(small, name="student")
    ids = torch.tensor([student.tokenizer(SENTENCES[0])["input_ids"]], dtype=torch.int32)
    for precision in ("fp32", "int8"):
        folder = tmp_path / precision
        manifest = exporter.write(folder, here, precision="fp32" if precision == "fp32" else None)
        assert manifest.parts[0].precision == precision
        found = torch.from_numpy(load(folder).raw([SENTENCES[0]])[0]["logits"])
        torch.testing.assert_close(
            found, answers(student, ids)[0][0], atol=1e-4 if precision == "fp32" else 0.1, rtol=0
        )


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "say what the student is"),
        ({"keep": 2, "layers": (0,)}, "keep and layers both say what the student is"),
        ({"student": "x", "config": {"hidden_size": 2}}, "config and student both say"),
        ({"keep": 0}, "keep should be at least 1"),
        ({"keep": 1, "max_length": 3}, "max_length should be at least 8 tokens, not 3"),
        ({"config": {}}, "config names no setting"),
        ({"keep": 1, "hidden": -1.0}, "hidden is a weight"),
        ({"keep": 1, "temperature": 0.0}, "temperature should be above 0"),
        ({"keep": 1, "labels": 1.0, "on": "unlabelled"}, "labels are those of data.train"),
        ({"keep": 1, "first_states": True}, "first_states has no effect without hidden"),
        ({"keep": 1, "layer_map": (0,)}, "layer_map has no effect without hidden or attention"),
        ({"keep": 1, "layer_map": (None,), "hidden": 1.0}, "layer_map compares no layer"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distill(**options)


def test_data_is_needed() -> None:
    nothing = PassContext(Path())
    with pytest.raises(DataError, match="distill needs labelled rows"):
        Distill(keep=1).requires_data(nothing)
    with pytest.raises(DataError, match="distill needs texts") as caught:
        Distill(keep=1, on="unlabelled").requires_data(nothing)
    assert "data.unlabelled" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 4}, "the model has 3 layers, and 4 should be kept"),
        ({"layers": (0, 3)}, r"the layers \[0, 3\] cannot be kept of 3"),
        ({"layers": (1, 1)}, r"the layers \[1, 1\] cannot be kept"),
        ({"keep": 1, "embeddings": 1.0}, "gives no sentence embeddings"),
        ({"keep": 1, "logits": 0.0}, "every weight is 0"),
        ({"keep": 2, "hidden": 1.0, "layer_map": (0,)}, "layer_map has 1 entries, and the student 2 layers"),
        ({"keep": 1, "hidden": 1.0, "layer_map": (3,)}, "layer_map names layer 3 of a teacher with 3"),
        ({"config": {"vocab_size": 9}}, "cannot set vocab_size"),
        ({"config": {"hiden_size": 9}}, "bert has no setting 'hiden_size'"),
        ({"config": {"hidden_size": 15}}, "no bert model of these settings"),
        ({"config": {"num_hidden_layers": 0}}, "num_hidden_layers should be at least 1, not 0"),
        ({"config": {"intermediate_size": 0}}, "intermediate_size should be at least 1, not 0"),
        ({"config": {"hidden_act": "nonsense"}}, "no bert model of these settings"),
    ],
)
def test_what_does_not_fit_the_model(
    options: dict[str, Any], message: str, teacher: ModelState, ctx: PassContext
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run_pass(Distill(**options), teacher, ctx)
    assert caught.value.hint


def test_models_that_do_not_fit(teacher: ModelState, other: Path, tmp_path: Path, ctx: PassContext) -> None:
    stranger = str(tiny("roberta", TASK, tmp_path / "stranger"))
    for options in ({"student": stranger}, {"teacher": stranger}):
        with pytest.raises(ModelError, match=r"has another vocabulary than .*: \d+ tokens differ"):
            run_pass(Distill(**options), teacher, ctx)  # type: ignore[arg-type]
    tagger = str(tiny("bert", "token-classification", tmp_path / "tagger"))
    with pytest.raises(UserError, match="is a model for token-classification, and the student for text-classification"):
        run_pass(Distill(teacher=tagger), teacher, ctx)
    # Its hidden states are as good as any.
    assert report_of(run_pass(Distill(teacher=tagger, logits=0.0, hidden=1.0, **FAST), teacher, ctx))["weights"] == {
        "hidden": 1.0
    }
    labels = {"id2label": {0: "x", 1: "y", 2: "z"}, "label2id": {"x": 0, "y": 1, "z": 2}}
    strange = str(tiny("bert", TASK, tmp_path / "labels", **labels))
    with pytest.raises(UserError, match=r"has other labels than the student \(x, y, z\)"):
        run_pass(Distill(teacher=strange), teacher, ctx)


def test_states_that_do_not_fit(teacher: ModelState, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model is quantized already"):
        Distill(keep=1).requires(dataclasses.replace(teacher, quantization=Quantization("dynamic", {})))
    with pytest.raises(UserError, match="LoRA"):
        Distill(keep=1).requires(dataclasses.replace(teacher, lora={"r": 4}))
    sentences = load_model(tiny("bert", "feature-extraction", tmp_path / "a"))
    with pytest.raises(UserError, match="no logits to learn from"):
        Distill(keep=1, logits=1.0).requires(sentences)
    masks = load_model(tiny("bert", "fill-mask", tmp_path / "b"))
    with pytest.raises(UserError, match="no labels to train fill-mask on"):
        Distill(keep=1, labels=1.0).requires(masks)


def test_what_it_promises_is_checked(teacher: ModelState) -> None:
    broken = from_layers(teacher, (0,))
    with torch.no_grad():
        next(broken.parts["encoder"].parameters()).fill_(torch.nan)
    with pytest.raises(PassError, match="of the student is not finite"):
        Distill(keep=1).ensures(teacher, broken)
    with pytest.raises(PassError, match="should keep the model's labels"):
        Distill(keep=1).ensures(teacher, with_head(teacher, TASK, labels=("a",)))
