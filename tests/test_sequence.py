"""All passes in one recipe: they compose, and a run that was killed at any of them ends with the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tiny_models import SENTENCES, tiny

from edgec.errors import DataError
from edgec.exporter import Exporter
from edgec.passes import PASSES
from edgec.passes.cache import PassCache
from edgec.recipe import Recipe, load_recipe
from edgec.sequence import final_task, read_data, run_passes
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


def run(
    recipe: Recipe, folder: Path, *, resume: bool = False, kill_at: str | None = None
) -> tuple[ModelState, list[str]]:
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        if kill_at is not None and message == f"pass {kill_at}":
            raise Killed

    data = read_data(recipe, say)
    (folder / "work").mkdir(parents=True, exist_ok=True)
    with PassCache(folder / "out", resume=resume) as cache:
        state = run_passes(recipe, data, cache, folder / "work", no_progress, say)
    return state, said


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    return run(recipe, tmp_path_factory.mktemp("whole"))[0]


def test_the_passes_compose(recipe: Recipe, whole: ModelState, here: Target, tmp_path: Path) -> None:
    assert [record.name for record in whole.history] == ["finetune", "distill", "prune", "align", "quantize"]
    assert final_task(recipe) == whole.spec.task == "text-classification"
    assert whole.spec.labels == LABELS
    part = whole.parts["encoder"]
    assert len(part.get_submodule("model.bert.encoder.layer")) == 3
    assert part.adapter is not None
    manifest = Exporter(whole, name="all").write(tmp_path / "bundle", here)
    assert manifest.parts[0].precision == "int8"


def test_a_run_killed_at_every_pass_ends_the_same(recipe: Recipe, whole: ModelState, tmp_path: Path) -> None:
    names = [record.name for record in whole.history]
    for place, name in enumerate(names):
        with pytest.raises(Killed):
            run(recipe, tmp_path, resume=place > 0, kill_at=name)
    state, said = run(recipe, tmp_path, resume=True)
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
