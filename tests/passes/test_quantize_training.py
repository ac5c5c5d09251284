"""quantize with when: training: what follows the data, what is exported, and that a kill changes nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_models import FAMILIES, LABELS, SENTENCES, tiny
from torch import nn

import edgec.training.callbacks
import edgec.training.quantization
from edgec.data.examples import Example, Tagged
from edgec.errors import DataError, RecipeError, UserError
from edgec.exporter import Exporter
from edgec.models import load_build, load_model, save_build
from edgec.nn.fake_quantize import fake_quantized
from edgec.numerics.activations import activation_scale
from edgec.passes import PASSES, Finetune, Quantize, run_pass
from edgec.recipe import check_passes, load_recipe
from edgec.state import ModelState, PassContext, TrainingData
from edgec.target import load_target
from edgec.training.features import Featurizer
from edgec.training.options import TrainingOptions

LABEL_NAMES = LABELS["text-classification"]
ROWS = tuple(Example(text, label=LABEL_NAMES[i % 3]) for i, text in enumerate(SENTENCES))
DATA = TrainingData(train=ROWS)
SHORT = TrainingOptions(steps=4, batch_size=4, learning_rate=1e-3)
FULL: dict[str, Any] = {"scheme": "fully-quantized", "bits": 4}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    folder = tmp_path_factory.mktemp("training") / "model"
    return load_model(tiny("bert", "text-classification", folder, num_hidden_layers=1, **NO_DROPOUT))


@pytest.fixture
def ctx(tmp_path: Path) -> PassContext:
    return PassContext(tmp_path, SENTENCES, data=DATA)


def trained(options: dict[str, Any], state: ModelState, ctx: PassContext, **training: Any) -> ModelState:
    settings = {"training": dataclasses.replace(SHORT, **training)} | options
    return run_pass(Quantize(when="training", **settings), state, ctx)


def part_of(state: ModelState) -> Any:
    (part,) = state.parts.values()
    return part


def ranges_of(state: ModelState) -> dict[str, tuple[float, float]]:
    """Every fixed range of a decision, by "PART:PATH/NAME"."""
    decision = state.quantization
    assert decision is not None
    found = {f"{key}/input": one.input_range for key, one in decision.layers.items() if one.input_range is not None}
    found |= {f"{key}/{name}": ends for key, one in decision.points.items() for name, ends in one.ranges.items()}
    return found


# What is exported.


def test_what_is_exported_is_what_training_ended_with(
    classifier: ModelState, ctx: PassContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {**FULL, "layer_norms": "all", "clip": True, "smooth": ("*.query",), "average_checkpoints": 2}
    students: list[Any] = []

    def kept(*args: Any, **kwargs: Any) -> Any:
        students.append(fake_quantized(*args, **kwargs))
        return students[-1]

    monkeypatch.setattr("edgec.passes.quantize_training.fake_quantized", kept)
    after = trained(options, classifier, ctx)
    (student,) = students
    assert not student.training
    save_build(after, tmp_path / "build")
    again = load_build(tmp_path / "build")
    assert again.quantization == after.quantization
    # The exporter compares the graph with the same roundings in torch, and refuses what differs.
    Exporter(again, name="x").write(tmp_path / "bundle", load_target("x86_64-vnni"), min_cosine=-1.0)
    graph = onnx.load(tmp_path / "bundle" / "encoder.onnx")
    stored = {one.name: onnx.numpy_helper.to_array(one, str(tmp_path / "bundle")) for one in graph.graph.initializer}
    compared = 0
    for name, integers in stored.items():
        if name.endswith(".weight_int8") and "embeddings" not in name:
            module = student.get_submodule(name.removesuffix(".weight_int8"))
            np.testing.assert_array_equal(integers, module.integers.numpy())
            np.testing.assert_array_equal(stored[name.replace("_int8", "_scale")], module.scale.numpy())
            compared += 1
    assert compared == 6
    # Layers that read one tensor share its scale in the graph, under the name of one of them.
    learned = {activation_scale(*ends, 4)[0] for ends in ranges_of(after).values()}
    scales = [float(one) for name, one in stored.items() if name.endswith(".input_scale")]
    assert len(scales) >= 4 and {np.float32(one) for one in scales} <= learned
    with torch.inference_mode():
        ids = torch.arange(5, 25, dtype=torch.int32).reshape(2, 10)
        fake = fake_quantized(part_of(again), after.quantization.of_part("encoder"))  # type: ignore[union-attr]
        torch.testing.assert_close(student(ids, torch.ones_like(ids)), fake(ids, torch.ones_like(ids)), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    state = load_model(tiny(family, "token-classification", tmp_path / "m"))
    words = tuple(text.split() for text in SENTENCES[:3])
    rows = tuple(
        Tagged(tuple(one), tuple(LABELS["token-classification"][i % 5] for i in range(len(one)))) for one in words
    )
    after = trained(FULL, state, PassContext(tmp_path, SENTENCES[:3], data=TrainingData(train=rows)), steps=2)
    before = run_pass(Quantize(**FULL), state, PassContext(tmp_path, SENTENCES[:3]))
    assert after.quantization is not None and before.quantization is not None
    assert after.quantization.layers.keys() == before.quantization.layers.keys()
    moved, calibrated = ranges_of(after), ranges_of(before)
    assert moved.keys() == calibrated.keys()
    assert sum(moved[name] != pytest.approx(ends, abs=1e-6) for name, ends in calibrated.items()) > 0.9 * len(moved)
    new, old = part_of(after).state_dict(), part_of(state).state_dict()
    assert new.keys() == old.keys()
    changed = [name for name in old if not torch.equal(new[name], old[name])]
    assert set(changed) >= {name for name in old if "weight" in name and (".layer." in name or ".layers." in name)}
    assert not any(type(module).__name__.startswith("Fake") for module in part_of(after).modules())
    with torch.inference_mode():
        ids = torch.arange(5, 25, dtype=torch.int32).reshape(2, 10)
        for one in fake_quantized(part_of(after), after.quantization.of_part("encoder"))(ids, torch.ones_like(ids)):
            assert one.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "dynamic", "granularity": "tensor"},
        {"scheme": "llm-int8", "outlier_threshold": 2.0},
        {"scheme": "weight-only", "bits": 4, "embedding_bits": 4},
        {"scheme": "static", "bias_correction": True},
    ],
    ids=lambda options: options["scheme"],
)
def test_schemes_keep_what_was_decided(options: dict[str, Any], classifier: ModelState, ctx: PassContext) -> None:
    before = run_pass(Quantize(**options), classifier, ctx)
    after = trained(options, classifier, ctx)
    assert before.quantization is not None and after.quantization is not None
    assert after.quantization.layers.keys() == before.quantization.layers.keys()
    for key, layer in after.quantization.layers.items():
        decided = before.quantization.layers[key]
        assert dataclasses.replace(layer, input_range=decided.input_range) == decided
    report = after.history[0].report
    assert report["training"]["objective"] == "labels" and report["training"]["steps"] == 4
    assert report["training"]["ranges"] == (6 if options["scheme"] == "static" else 0)
    assert report.get("observer") == ("moving-average" if options["scheme"] == "static" else None)
    # A float export of these weights has gone through the pass as well.
    assert (before.quantization.passes_before, after.quantization.passes_before) == (0, 1)


# What is learned.


def test_training_makes_good_what_rounding_costs(tmp_path: Path) -> None:
    """Towards the float model's own embeddings, at 4 bits."""
    state = load_model(tiny("bert", "feature-extraction", tmp_path / "m", num_hidden_layers=1, **NO_DROPOUT))
    ctx = PassContext(tmp_path, SENTENCES)
    before = run_pass(Quantize(**FULL), state, ctx)
    after = trained(FULL, state, ctx, steps=40, learning_rate=2e-3)
    assert after.history[0].report["training"]["objective"] == "float outputs"

    def cosine(rounded: ModelState) -> float:
        assert rounded.quantization is not None
        fake, exact = fake_quantized(part_of(rounded), rounded.quantization.of_part("encoder")), part_of(state)
        found = []
        for text in SENTENCES:
            ids = state.tokenizer(text, return_tensors="pt")["input_ids"].to(torch.int32)
            with torch.inference_mode():
                pair = fake(ids, torch.ones_like(ids))[0], exact(ids, torch.ones_like(ids))[0]
            found.append(float(nn.functional.cosine_similarity(*pair)))
        return sum(found) / len(found)

    assert 1 - cosine(after) < 0.5 * (1 - cosine(before))


def test_before_start_step_the_model_learns_in_float(classifier: ModelState, ctx: PassContext) -> None:
    options = {"steps": 5, "checks": 5}
    plain = run_pass(Finetune(**{**vars(SHORT), **options}), classifier, ctx).history[0].report["losses"]
    late = trained({**FULL, "start_step": 3}, classifier, ctx, **options).history[0].report["training"]
    early = trained(FULL, classifier, ctx, **options).history[0].report["training"]
    assert (late["start_step"], early["start_step"]) == (3, 0)
    for step in (1, 2, 3):
        assert late["losses"][step] == pytest.approx(plain[step], abs=1e-5)
    assert abs(late["losses"][4] - plain[4]) > 1e-4 and abs(early["losses"][1] - plain[1]) > 1e-4


# Checkpoints.


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("options", "at"),
    [
        ({"scheme": "static", "start_step": 1}, 4),
        ({**FULL, "start_step": 3, "average_checkpoints": 2}, 2),
        ({**FULL, "average_checkpoints": 2}, 5),
    ],
    ids=["scales searched at step 3", "before start_step", "between averaged checkpoints"],
)
def test_a_killed_training_goes_on_to_the_same_weights_and_ranges(
    options: dict[str, Any], at: int, classifier: ModelState, ctx: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edgec.training.callbacks, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(edgec.training.quantization, "SEARCH_EVERY", 3)
    monkeypatch.setattr(edgec.training.quantization, "ADJUSTED", 2)

    def killing(label: str, total: int) -> Callable[[int], None]:
        def step(done: int) -> None:
            if label == "train with rounding" and done == at + 1:
                raise Killed

        return step

    whole = trained(options, classifier, dataclasses.replace(ctx, checkpoints=ctx.workdir / "a"), steps=6, checks=6)
    cut = dataclasses.replace(ctx, checkpoints=ctx.workdir / "b")
    with pytest.raises(Killed):
        trained(options, classifier, dataclasses.replace(cut, progress=killing), steps=6, checks=6)
    assert (ctx.workdir / "b" / f"checkpoint-{at}").is_dir()
    resumed = trained(options, classifier, cut, steps=6, checks=6)
    assert resumed.quantization == whole.quantization
    assert resumed.history == whole.history
    new, old = part_of(resumed).state_dict(), part_of(whole).state_dict()
    assert all(torch.equal(new[name], old[name]) for name in old)


def test_validation_scores_the_rounded_model_and_picks_weights(classifier: ModelState, ctx: PassContext) -> None:
    data = TrainingData(train=ROWS, validation=ROWS)
    after = trained(FULL, classifier, dataclasses.replace(ctx, data=data), steps=4, checks=2)
    report = after.history[0].report["training"]
    assert list(report["scores"]) == [2, 4] and report["best_step"] in (2, 4)
    assert after.quantization is not None
    # The best step's weights and ranges, scored again by hand.
    fake = fake_quantized(part_of(after), after.quantization.of_part("encoder"))
    right = 0
    for row in Featurizer(after).labelled(ROWS):
        ids = torch.from_numpy(row.ids)[None]
        with torch.inference_mode():
            right += int(fake(ids, torch.ones_like(ids))[0].argmax()) == row.targets["label"]
    assert report["scores"][report["best_step"]]["accuracy"] == pytest.approx(right / len(ROWS))


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training": SHORT}, "training is an option of when: training, not of after"),
        ({"start_step": 3}, "start_step is an option of when: training"),
        ({"average_checkpoints": 3}, "average_checkpoints is an option of when: training"),
        ({"when": "training", "start_step": -1}, "start_step should be at least 0, not -1"),
        ({"when": "training", "average_checkpoints": 0}, "average_checkpoints should be at least 1, not 0"),
        ({"when": "training", "training": SHORT, "start_step": 4}, r"start_step should be below training.steps \(4\)"),
        ({"when": "training", "average_checkpoints": 11}, r"should be at most training.checks \(10\), not 11"),
        (
            {"when": "training", "training": TrainingOptions(patience=2), "average_checkpoints": 2},
            "average_checkpoints is for a training of known length",
        ),
        ({"when": "training", "observer": "mse"}, "observer is for when: after"),
        ({"when": "training", "scheme": "weight-only", "rounding": "gptq"}, "rounding: gptq chooses integers"),
        ({"when": "training", "scheme": "dynamic", "momentum": 0.5}, "momentum is an option of scheme static or"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantize(**options)


def test_what_a_short_training_cannot_do(classifier: ModelState, ctx: PassContext) -> None:
    once: dict[str, Any] = {"steps": None, "epochs": 1.0, "batch_size": 3}
    with pytest.raises(UserError, match="start_step is 2, and training ends after 2 steps"):
        trained({**FULL, "start_step": 2}, classifier, ctx, **once)
    with pytest.raises(UserError, match="reaches back to step 1, and rounding begins at step 1"):
        trained({**FULL, "start_step": 1, "average_checkpoints": 2}, classifier, ctx, **once)


def test_rows_and_adapters(classifier: ModelState, tmp_path: Path) -> None:
    nothing, step = PassContext(tmp_path), Quantize(scheme="dynamic", when="training")
    with pytest.raises(DataError, match="needs rows to train on"):
        step.requires_data(nothing)
    step.requires_data(dataclasses.replace(nothing, data=TrainingData(unlabelled=SENTENCES)))
    with pytest.raises(UserError, match="LoRA adapters beside its weights"):
        step.requires(dataclasses.replace(classifier, lora={"r": 4}))


def test_a_recipe_says_how_it_trains(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    entry: dict[str, Any] = {"scheme": "fully-quantized", "bits": 4, "when": "training", "start_step": 100}
    recipe = {"edgec": 1, "model": {"source": "org/model"}, "targets": ["x86_64-vnni"]}

    def read(training: dict[str, Any]) -> Any:
        passes = [{"quantize": {**entry, "training": training}}]
        path.write_text(json.dumps({**recipe, "passes": passes}), encoding="utf-8")
        (step,) = check_passes(load_recipe(path), PASSES)
        return step

    step = read({"steps": 500, "learning_rate": 2e-5})
    assert step.training == TrainingOptions(steps=500, learning_rate=2e-5) and step.start_step == 100
    with pytest.raises(RecipeError, match=r"passes.0.quantize.training.stepz: unknown key"):
        read({"stepz": 500})
    with pytest.raises(RecipeError, match=r"start_step should be below training.steps \(50\), not 100"):
        read({"steps": 50})
