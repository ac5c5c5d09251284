"""quantize with when: training: what follows the data, what is exported, and that a kill changes nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from tiny_models import FAMILIES, LABELS, SENTENCES, tiny
from torch import nn

import edgec.training.callbacks
import edgec.training.quantization
from edgec.data.examples import Example, Tagged
from edgec.errors import DataError, RecipeError, UserError
from edgec.exporter import Exporter
from edgec.models import load_build, load_model, save_build
from edgec.nn.fake_points import apply_points
from edgec.nn.fake_quantize import fake_quantized
from edgec.numerics.activations import activation_scale
from edgec.passes import PASSES, Finetune, Quantize, run_pass
from edgec.passes.learn import copied, fit
from edgec.recipe import check_passes, load_recipe
from edgec.state import ModelState, PassContext, TrainingData
from edgec.target import load_target
from edgec.training.features import Featurizer, collate
from edgec.training.objectives import Supervised
from edgec.training.options import TrainingOptions
from edgec.training.quantization import Average, Rounding

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


# Ranges.


@contextmanager
def watched(part: nn.Module, seen: dict[str, tuple[float, float]]) -> Iterator[None]:
    """Inside, `seen` has the extremes of what linear layers and layer norms of `part` read and write."""

    def note(name: str, x: torch.Tensor) -> None:
        low, high = seen.get(name, (np.inf, -np.inf))
        seen[name] = min(low, float(x.min())), max(high, float(x.max()))

    def hook(path: str) -> Callable[..., None]:
        def run(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            note(f"{path}/input", inputs[0])
            note(f"{path}/output", output)

        return run

    kinds = nn.Linear | nn.LayerNorm
    handles = [one.register_forward_hook(hook(path)) for path, one in part.named_modules() if isinstance(one, kinds)]
    yield
    for handle in handles:
        handle.remove()


def extremes_alone(part: nn.Module, rows: list[Any]) -> dict[str, tuple[float, float]]:
    """Of rows that run one by one, so that nothing is padded."""
    seen: dict[str, tuple[float, float]] = {}
    with watched(part, seen), torch.inference_mode():
        for row in rows:
            part(torch.from_numpy(row.ids)[None], torch.ones(1, len(row.ids), dtype=torch.int32))
    return seen


def reference_name(path: str, name: str) -> str:
    """Where `watched` sees the tensor of a range: queries, keys and values are what their layers write."""
    return f"{path}.{name}/output" if name in ("query", "key", "value") else f"{path}/{name}"


def rounding_of(state: ModelState, momentum: float = 0.9) -> tuple[Any, Rounding]:
    calibrated = run_pass(
        Quantize(**FULL, layer_norms="all", layer_norm_smoothing=False), state, PassContext(Path(), SENTENCES)
    )
    assert calibrated.quantization is not None
    decision = calibrated.quantization.of_part("encoder")
    student = fake_quantized(part_of(state), dataclasses.replace(decision, points={}))
    return student, Rounding(Supervised(), student, apply_points(student, decision.points), momentum=momentum)


def test_ranges_are_moving_averages_of_each_steps_extremes(classifier: ModelState) -> None:
    """Bie et al. 2020, section 3.1, each row a batch, by a loop over rows that run alone: padding takes no part."""
    student, rounding = rounding_of(classifier)
    rows = Featurizer(classifier).labelled(ROWS)
    expected = rounding.by_name()
    rounding.round(False)
    student.train()
    with rounding.following(student):
        for step, chosen in enumerate(([0, 3, 4], [1, 5], [2, 0]), start=1):
            halves = (chosen[:1], chosen[1:])  # two batches are summed up before the step
            for half in halves:
                rounding(student, collate([rows[i] for i in half], 0)).backward()
            rounding.follow(step)
            alone = [extremes_alone(part_of(classifier), [rows[i]]) for i in chosen]
            for path, name in expected:
                if name in ("scores", "probabilities"):
                    continue
                mean = np.mean([one[reference_name(path, name)] for one in alone], axis=0)
                expected[path, name] = tuple(0.9 * np.array(expected[path, name]) + 0.1 * mean)
        # What is only evaluated is not followed.
        student.eval()
        rounding(student, collate(rows[:1], 0))
        rounding.follow(4)
    found = rounding.by_name()
    assert len(found) == 7 - 1 + 5 + 3 * 2
    for (path, name), ends in expected.items():
        if name not in ("scores", "probabilities"):
            assert found[path, name] == pytest.approx(ends, abs=1e-5), f"{path} {name}"
    assert all(layer.note is None for layer in student.modules() if hasattr(layer, "note"))


def test_scores_and_probabilities_of_real_tokens_count(classifier: ModelState) -> None:
    student, rounding = rounding_of(classifier, momentum=0.0)
    rounding.round(False)
    student.train()
    rows = Featurizer(classifier).labelled(ROWS)
    with rounding.following(student):
        rounding(student, collate(rows, 0))
        rounding.follow(1)
    attention = "model.bert.encoder.layer.0.attention.self"
    lows, highs, most = [], [], []
    for row in rows:
        ids = torch.from_numpy(row.ids)[None]
        seen: dict[str, torch.Tensor] = {}
        part = part_of(classifier)

        def keep(name: str, seen: dict[str, torch.Tensor] = seen) -> Any:
            return lambda module, inputs, output: seen.__setitem__(name, output)

        handles = [part.get_submodule(f"{attention}.{n}").register_forward_hook(keep(n)) for n in ("query", "key")]
        with torch.inference_mode():
            part(ids, torch.ones_like(ids))
        for handle in handles:
            handle.remove()
        scores, weights = [], []
        for head in range(4):
            q, k = (seen[name][0, :, 8 * head : 8 * head + 8].numpy() for name in ("query", "key"))
            products = q @ k.T / np.sqrt(8)
            exponentials = np.exp(products - products.max(axis=1, keepdims=True))
            weights.append((exponentials / exponentials.sum(axis=1, keepdims=True)).max())
            scores += [products.min(), products.max()]
        lows.append(min(scores))
        highs.append(max(scores))
        most.append(max(weights))
    found = rounding.by_name()
    assert found[attention, "scores"] == pytest.approx((np.mean(lows), np.mean(highs)), abs=1e-5)
    assert found[attention, "probabilities"] == pytest.approx((0.0, np.mean(most)), abs=1e-5)


def test_ranges_are_adjusted_to_averaged_weights(classifier: ModelState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edgec.training.quantization, "ADJUSTED", 3)
    student, rounding = rounding_of(classifier, momentum=0.5)
    rows = Featurizer(classifier).labelled(ROWS)[:4]
    before, weights = rounding.by_name(), {k: v.clone() for k, v in student.state_dict().items()}
    first = "model.bert.encoder.layer.0.attention.self.query", "input"
    (read,) = {extremes_alone(part_of(classifier), [row])["/".join(first)] for row in rows[:1]}
    done = rounding.adjust(
        student, rows[:1], batch_size=2, pad_id=0, seed=0, progress=lambda label, total: lambda step: None
    )
    assert done == 3
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())
    after = rounding.by_name()
    assert all(after[name] != before[name] for name in before)
    # What the first layer reads is a rounded layer norm, whose own range moves: a step of four bits.
    step = (
        before["model.bert.embeddings.LayerNorm", "output"][1] - before["model.bert.embeddings.LayerNorm", "output"][0]
    ) / 15
    for end in (0, 1):
        assert after[first][end] == pytest.approx(before[first][end] / 8 + read[end] * 7 / 8, abs=step)
    assert student.get_submodule(first[0]).quantization.input_range == after[first]


# Checkpoints.


class Recorded(transformers.TrainerCallback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.weights.append({name: value.detach().clone() for name, value in model.state_dict().items()})


def test_the_mean_is_that_of_the_last_checks(classifier: ModelState, ctx: PassContext) -> None:
    state, average, recorded = copied(classifier), Average(3, checks=4, start_step=2), Recorded()
    rows = Featurizer(state).labelled(ROWS)
    options = dataclasses.replace(SHORT, steps=9, checks=4)
    fit(state, rows, Supervised(), options, ctx, label="x", callbacks=[average, recorded])
    assert average.steps(9) == [9, 7, 5] and average.taken == 3
    for name, value in average.mean.items():
        expected = sum(recorded.weights[step - 1][name].double() for step in (9, 7, 5)) / 3
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


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
    ids=str,
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
