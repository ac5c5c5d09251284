"""All passes in one recipe: they compose, and a run that was killed at any of them ends with the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tiny_models import SENTENCES, tiny

from edgec.errors import DataError, RecipeError, UserError
from edgec.exporter import Exporter
from edgec.passes import PASSES
from edgec.passes.cache import PassCache
from edgec.recipe import Recipe, load_recipe
from edgec.sequence import (
    Passed,
    _scored_while_trained,
    check_asked,
    final_task,
    first_compressing,
    read_data,
    run_passes,
)
from edgec.state import ModelState, no_progress
from edgec.target import Target

STEPS = {"steps": 4, "batch_size": 4, "checks": 1}
LABELS = ("calm", "glad")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("sequence")
    tiny("bert", "feature-extraction", folder / "model", num_hidden_layers=4)
    rows = [f"{text.replace(',', '')},{LABELS[len(text) % 2]}" for text in SENTENCES * 3]
    (folder / "train.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (folder / "plain.txt").write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    values = {
        "edgec": 1,
        "model": {"source": "./model"},
        "data": {
            "train": {"text": "train.csv", "label_column": "label"},
            "unlabelled": {"text": "plain.txt"},
            "calibrate": {"text": "plain.txt"},
        },
        "passes": [
            {"finetune": {"task": "text-classification", **STEPS}},
            {"distill": {"keep": 3, "labels": 0.5, "hidden": 1.0, **STEPS}},
            {"prune": {"structure": "ffn", "ratio": 0.5, "multiple": 8}},
            {"align": {"large": str(folder / "model"), "units": 16, "phase1_steps": 2, "phase2_steps": 2, **STEPS}},
            {"quantize": {"scheme": "static"}},
        ],
        "targets": ["x86_64-avx2"],
    }
    file = folder / "all.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return load_recipe(file, passes=PASSES)


class Killed(BaseException):
    """What no handler of an error takes for one, like a kill."""


def run(recipe: Recipe, folder: Path, *, resume: bool = False, kill_at: str | None = None) -> tuple[Passed, list[str]]:
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        if kill_at is not None and message == f"pass {kill_at}":
            raise Killed

    data = read_data(recipe, say)
    (folder / "work").mkdir(parents=True, exist_ok=True)
    with PassCache(folder / "out", resume=resume) as cache:
        cache.begin()
        passed = run_passes(recipe, data, cache, folder / "work", no_progress, say)
    return passed, said


@pytest.fixture(scope="module")
def passed(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Passed:
    return run(recipe, tmp_path_factory.mktemp("whole"))[0]


@pytest.fixture(scope="module")
def whole(passed: Passed) -> ModelState:
    return passed.state


def test_the_passes_compose(recipe: Recipe, whole: ModelState, here: Target, tmp_path: Path) -> None:
    assert [record.name for record in whole.history] == ["finetune", "distill", "prune", "align", "quantize"]
    assert final_task(recipe) == whole.spec.task == "text-classification"
    assert whole.spec.labels == LABELS
    part = whole.parts["encoder"]
    assert len(part.get_submodule("model.bert.encoder.layer")) == 3
    assert part.adapter is not None
    manifest = Exporter(whole, name="all").write(tmp_path / "bundle", here)
    assert manifest.parts[0].precision == "int8"


def test_what_only_the_model_tells_is_told_with_the_pass(recipe: Recipe, tmp_path: Path) -> None:
    passes = "[{finetune: {task: text-classification, steps: 1}}, {prune: {structure: layers, keep: 9}}]"
    asked = load_recipe(recipe.source_path, overrides=[f"passes={passes}"])
    with pytest.raises(UserError, match=r"^--set .*: passes\.1\.prune: keep is 9, and there are only "):
        run(asked, tmp_path)


def test_a_run_killed_at_every_pass_ends_the_same(recipe: Recipe, whole: ModelState, tmp_path: Path) -> None:
    names = [record.name for record in whole.history]
    for place, name in enumerate(names):
        with pytest.raises(Killed):
            run(recipe, tmp_path, resume=place > 0, kill_at=name)
    resumed, said = run(recipe, tmp_path, resume=True)
    state = resumed.state
    assert [line for line in said if line.startswith("pass ")] == [
        *(f"pass {name}: taken from the interrupted run" for name in names[:-1]),
        f"pass {names[-1]}",
    ]
    expected, found = (one.parts["encoder"].state_dict() for one in (whole, state))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert state.quantization == whole.quantization
    assert not (tmp_path / ".out.passes").exists()


def test_what_passes_need_is_told_before_a_model_is_loaded(recipe: Recipe) -> None:
    lacking = load_recipe(recipe.source_path, passes=PASSES, overrides=["data.train=null"])
    with pytest.raises(DataError, match="finetune needs labelled rows"):
        read_data(lacking, lambda message: None)


def test_a_label_that_the_model_will_not_have_is_told_before_it_is_trained(recipe: Recipe, tmp_path: Path) -> None:
    rows = tmp_path / "evaluate.csv"
    rows.write_text("text,label\nYes.,glad\nNo.,gloomy\n")
    lacking = load_recipe(
        recipe.source_path,
        passes=PASSES,
        overrides=[f"data.evaluate={{text: {rows}, text_column: text, label_column: label}}"],
    )
    with pytest.raises(DataError, match=r"evaluate\.csv:3: the model has no label 'gloomy'"):
        run(lacking, tmp_path, kill_at="finetune")
    rows.write_text("text,label\nYes.,glad\nNo.,calm\n")
    with pytest.raises(Killed):
        run(lacking, tmp_path, kill_at="finetune")
    (tmp_path / "validation.csv").write_text("text,label\nYes.,glad\nNo.,gloomy\n")
    scored = f"data.validation={{text: {tmp_path / 'validation.csv'}, text_column: text, label_column: label}}"
    with pytest.raises(DataError, match=r"validation\.csv:3: the model has no label 'gloomy'"):
        run(load_recipe(recipe.source_path, overrides=[scored]), tmp_path, kill_at="finetune")


@pytest.mark.parametrize(
    ("passes", "scored"),
    [
        ("[trim-vocab, quantize]", False),
        ("[{align: {large: ./model, phases: [1, 2]}}]", False),
        ("[{align: {large: ./model, head: large}}]", False),
        ("[{finetune: {task: text-classification}}, {align: {large: ./model, task: token-classification}}]", False),
        ("[{align: {large: ./model}}]", True),
        ("[{distill: {keep: 1}}]", True),
        ("[{quantize: {scheme: fully-quantized, when: training}}]", True),
    ],
)
def test_which_passes_score_the_validation_rows(recipe: Recipe, passes: str, scored: bool) -> None:
    """By the labels that the recipe ends with: trim-vocab reads their texts alone, a large model brings its own."""
    assert _scored_while_trained(load_recipe(recipe.source_path, overrides=[f"passes={passes}"])) == scored


def test_calibration_texts_that_are_cut_or_few_are_told(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("Ada walked.\n" + "river " * 500 + "\n")
    few = load_recipe(
        recipe.source_path,
        passes=PASSES,
        overrides=["passes=[quantize]", f"data={{calibrate: {{text: {tmp_path / 'few.txt'}}}}}"],
    )
    _, said = run(few, tmp_path)
    assert "1 of 2 calibration texts are longer than 64 tokens: they are cut there" in said
    assert any(line.startswith("2 calibration texts are few") for line in said)


def test_the_original_is_what_the_compressing_passes_start_from(passed: Passed) -> None:
    assert passed.before == "distill" and passed.original is not None
    assert [record.name for record in passed.original.history] == ["finetune"]
    assert passed.original.spec.labels == LABELS


@pytest.mark.parametrize(
    ("passes", "place"),
    [
        ("[]", None),
        ("[finetune, {lora: {}}, fuse-adapters, quantize]", None),
        ("[{lora: {}}, trim-vocab, fuse-adapters]", 1),
        ("[finetune, {prune: {sparsity: 0.5}}, {prune: {sparsity: 0.9}}]", 1),
        ("[{quantize: {scheme: fully-quantized, when: training}}]", 0),
        ("[quantize, {align: {large: ./model}}]", 1),
    ],
)
def test_which_pass_makes_it_another_model(recipe: Recipe, passes: str, place: int | None) -> None:
    asked = load_recipe(recipe.source_path, overrides=[f"passes={passes}"])
    assert first_compressing(asked.passes) == place


@pytest.mark.parametrize(
    ("passes", "message", "hint"),
    [
        ("[{lora: {}}, quantize]", "quantize: cannot work on the model that lora", "put fuse-adapters between them"),
        (
            "[{lora: {}}, {fuse-adapters: {adapter: a/b}}]",
            r"fuse-adapters\.adapter: the model has",
            "leave adapter out",
        ),
        ("[{lora: {}}, {lora: {}}]", "lora: cannot work on the model that lora", "put fuse-adapters between them"),
        ("[{lora: {}}]", "lora: nothing merges its adapters", "add fuse-adapters after it"),
        ("[{lora: {}}, fuse-adapters, {lora: {}}]", r"passes\.2\.lora: nothing merges", "add fuse-adapters after it"),
        (
            "[quantize, {align: {large: MODEL, mode: joint}}]",
            "align: cannot work with mode: joint on the model that quantize",
            "mode: frozen",
        ),
        (
            "[{align: {large: MODEL}}, {prune: {structure: hidden, ratio: 0.5}}]",
            "prune: cannot work with structure: hidden on the model that align",
            "put it before align",
        ),
        (
            "[{align: {large: MODEL}}, {distill: {keep: 1}}]",
            "distill: cannot work on the model that align",
            "put it before align",
        ),
        (
            "[{prune: {sparsity: 0.5}}, {finetune: {task: text-classification}}, {lora: {}}, fuse-adapters]",
            r"passes\.2\.lora: its adapters, merged, would fill the zeros of prune",
            "prune after fuse-adapters",
        ),
        ("[quantize, finetune]", "finetune: cannot work on the model that quantize", "put it before quantize"),
        ("[{align: {large: ./nowhere}}]", r"passes\.0\.align\.large: there is no folder ./nowhere", "check the path"),
        ("[{distill: {teacher: /nowhere}}]", r"distill\.teacher: there is no folder /nowhere", "check the path"),
    ],
)
def test_orders_that_end_late_are_refused_early(recipe: Recipe, passes: str, message: str, hint: str) -> None:
    passes = passes.replace("MODEL", str(recipe.source_path.parent / "model"))
    asked = load_recipe(recipe.source_path, overrides=[f"passes={passes}"])
    with pytest.raises(RecipeError, match=message) as caught:
        check_asked(asked)
    assert hint in caught.value.hint
    # What came from the command line has no line in the file.
    assert caught.value.message.startswith(f"--set passes={passes}: passes.")


def test_adapters_that_are_merged_are_in_nobodys_way(recipe: Recipe) -> None:
    asked = (
        "passes=[{lora: {}}, trim-vocab, {align: {large: MODEL, mode: joint}}, fuse-adapters, {lora: {}}, "
        "fuse-adapters, quantize]"
    )
    model = str(recipe.source_path.parent / "model")
    check_asked(load_recipe(recipe.source_path, overrides=[asked.replace("MODEL", model)]))


def test_nothing_to_fuse_is_told_before_a_pass_runs(recipe: Recipe, tmp_path: Path) -> None:
    passes = "[{prune: {structure: ffn, ratio: 0.5, multiple: 8}}, fuse-adapters]"
    asked = load_recipe(recipe.source_path, overrides=[f"passes={passes}", "data.train=null"])
    with pytest.raises(UserError, match=r"passes\.1\.fuse-adapters: the model has no adapters to fuse"):
        run(asked, tmp_path, kill_at="prune")
    # Adapters on chosen layers may leave the zeros alone: the pass looks itself.
    targets = '["*.pooler.dense"]'
    passes = (
        f"[{{prune: {{sparsity: 0.5}}}}, {{lora: {{targets: {targets}, task: text-classification}}}}, fuse-adapters]"
    )
    check_asked(load_recipe(recipe.source_path, overrides=[f"passes={passes}"]))


@pytest.mark.parametrize(
    ("tags", "metric", "given"),
    [
        (("NOUN", "VERB"), "span_f1", "accuracy, macro_f1"),
        (("B-PER", "O"), "macro_f1", "span_f1, span_macro_f1, accuracy"),
    ],
)
def test_a_metric_that_the_labels_do_not_give_is_told_before_training(
    recipe: Recipe, tmp_path: Path, tags: tuple[str, str], metric: str, given: str
) -> None:
    rows = tmp_path / "rows.conll"
    rows.write_text(f"it {tags[0]}\nis {tags[1]}\n")
    overrides = [
        "passes=[{finetune: {task: token-classification, steps: 1}}]",
        f"data={{train: {{text: {rows}}}, evaluate: {{text: {rows}, metric: {metric}}}}}",
    ]
    with pytest.raises(RecipeError, match=f"tags are scored by {given}"):
        run(load_recipe(recipe.source_path, overrides=overrides), tmp_path, kill_at="finetune")


def test_a_model_that_is_not_there_is_told_at_once(recipe: Recipe) -> None:
    asked = load_recipe(recipe.source_path, overrides=["model.source=./nowhere"])
    with pytest.raises(RecipeError, match=r"model\.source: there is no folder ./nowhere"):
        check_asked(asked)


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ("passes.0.metric=f1", UserError, "metric is about the scores on data.validation, which is not given"),
        ("passes.0.patience=2", UserError, "patience is about the scores"),
        ("passes.1.metric=accuracy", UserError, r"distill: metric is about the scores"),
        ("passes.0.labels=[calm, sad]", DataError, "data.train has the label 'glad', which `labels` does not name"),
    ],
)
def test_options_that_the_data_does_not_fit_are_told_before_training(
    recipe: Recipe, setting: str, error: type[UserError], message: str
) -> None:
    asked = load_recipe(recipe.source_path, overrides=[setting], passes=PASSES)
    with pytest.raises(error, match=message):
        read_data(asked, lambda line: None)


def test_a_metric_that_the_task_does_not_have_is_told_before_training(recipe: Recipe) -> None:
    train = recipe.source_path.parent / "train.csv"
    settings = ["passes.0.metric=f1", f"data.validation={{text: {train}, label_column: label}}"]
    asked = load_recipe(recipe.source_path, overrides=settings, passes=PASSES)
    with pytest.raises(UserError, match="metric: text-classification has no 'f1'") as caught:
        read_data(asked, lambda line: None)
    assert caught.value.hint == "it has accuracy, macro_f1, micro_f1"
