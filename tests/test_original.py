"""What passes cost in float: the fp32 bundle after them against the model before them, on the recipe's own data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tiny_models import LABELS, SENTENCES, tiny

from edgec.data.readers import Sample
from edgec.evaluation import evaluate
from edgec.evaluation.original import Original, against_original
from edgec.exporter import FP32, Exporter
from edgec.models import load_model
from edgec.passes import Prune, TrimVocab, run_pass
from edgec.recipe import EvaluationData
from edgec.state import ModelState, PassContext
from edgec.target import Target

TASK = "text-classification"
ROWS = SENTENCES * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    return load_model(tiny("bert", TASK, tmp_path_factory.mktemp("model") / "m", num_hidden_layers=3))


@pytest.fixture(scope="module")
def halved(model: ModelState, tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    step = Prune(structure="layers", keep=1, select="first")
    return run_pass(step, model, PassContext(tmp_path_factory.mktemp("work"), SENTENCES))


@pytest.fixture(scope="module")
def baseline(halved: ModelState, here: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baseline") / "bundle"
    Exporter(halved, name="halved").write(folder, here, precision=FP32)
    return folder


def plain(folder: Path) -> EvaluationData:
    return EvaluationData("plain.txt", path=folder / "plain.txt")


def compare(
    original: ModelState, after: ModelState, baseline: Path, data: EvaluationData | None, **more: Any
) -> Original:
    return against_original(original, "prune", after, baseline, data, Sample(ROWS), reading={}, **more)


def test_by_labels_it_is_what_evaluate_says_of_both(
    model: ModelState, halved: ModelState, baseline: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    lines = [f"{text.replace(',', '')},{LABELS[TASK][i % 3]},{'de' if i % 2 else 'en'}" for i, text in enumerate(ROWS)]
    rows.write_text("text,label,language\n" + "\n".join(lines) + "\n")
    data = EvaluationData(str(rows), path=rows, label_column="label", group_column="language")
    found = compare(model, halved, baseline, data)
    was, now = (evaluate(one, rows, group_by=["language"]) for one in (model, baseline))
    assert found.quality is not None and found.reason == ""
    assert (found.quality.before, found.quality.after) == (was.metrics["accuracy"], now.metrics["accuracy"])
    assert found.quality.groups["de"].before == was.groups["language"]["de"]["accuracy"]
    assert found.quality.drop == max(group.drop for group in found.quality.groups.values())
    whole, small = (sum(p.numel() for p in state.parts["encoder"].parameters()) for state in (model, halved))
    assert (found.before, found.parameters, found.bytes) == ("prune", (whole, small), 4 * whole)
    assert whole > small


def test_without_labels_it_is_the_cosine_of_their_outputs(
    model: ModelState, halved: ModelState, baseline: Path, tmp_path: Path
) -> None:
    (tmp_path / "plain.txt").write_text("\n".join(ROWS))
    data = plain(tmp_path)
    lost = compare(model, halved, baseline, data).quality
    none = compare(halved, halved, baseline, data).quality
    assert lost is not None and none is not None
    assert lost.metric == none.metric == "cosine" and lost.n == len(ROWS)
    assert none.after > 0.999999 > lost.after


@pytest.mark.parametrize(
    ("was", "reason"),
    [
        ({"task": "feature-extraction"}, "the model was made for feature-extraction then, not for text-classification"),
        ({"labels": ("a", "b", "c")}, "the model had other labels then"),
    ],
)
def test_models_of_other_tasks_and_labels_do_not_compare(
    model: ModelState, halved: ModelState, baseline: Path, tmp_path: Path, was: dict[str, Any], reason: str
) -> None:
    original = dataclasses.replace(model, spec=dataclasses.replace(model.spec, **was))
    found = compare(original, halved, baseline, plain(tmp_path))
    assert (found.quality, found.reason) == (None, reason)


def test_without_data_there_are_sizes_alone(model: ModelState, halved: ModelState, baseline: Path) -> None:
    found = compare(model, halved, baseline, None)
    assert found.quality is None and found.reason == "the recipe names no data.evaluate"
    assert found.to_dict()["parameters_after"] < found.to_dict()["parameters"]


def test_outputs_a_token_of_another_vocabulary_do_not_compare(tmp_path: Path) -> None:
    state = load_model(tiny("bert", "token-classification", tmp_path / "m", num_hidden_layers=1))
    trimmed = run_pass(TrimVocab(), state, PassContext(tmp_path, SENTENCES[:2]))
    found = compare(state, trimmed, tmp_path / "no-bundle", plain(tmp_path))
    assert found.quality is None and found.reason.startswith("the vocabulary is another one")


def test_embeddings_of_another_width_do_not_compare(tmp_path: Path) -> None:
    wide, narrow = (
        load_model(
            tiny("bert", "feature-extraction", tmp_path / str(width), num_hidden_layers=1, hidden_size=width),
            task="feature-extraction",
        )
        for width in (64, 32)
    )
    found = compare(wide, narrow, tmp_path / "no-bundle", plain(tmp_path))
    assert found.reason == "embeddings of 64 and 32 numbers do not compare"


@pytest.mark.parametrize(
    ("change", "task", "reason"),
    [
        ({"multi_label": True}, "text-classification", "one of the two gives a text several labels, the other one"),
        ({"max_length": 20}, "token-classification", "the model took 20 tokens then and 64 now"),
    ],
)
def test_answers_of_another_kind_do_not_compare(change: dict[str, Any], task: str, reason: str, tmp_path: Path) -> None:
    state = load_model(tiny("bert", task, tmp_path / "m", num_hidden_layers=1))
    other = dataclasses.replace(state, spec=dataclasses.replace(state.spec, **change))
    found = compare(other, state, tmp_path / "no-bundle", plain(tmp_path))
    assert found.quality is None and found.reason.startswith(reason)


def test_what_cannot_be_told_of_the_original_ends_nothing(
    model: ModelState, halved: ModelState, baseline: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\na,purple\n")
    found = compare(model, halved, baseline, EvaluationData(str(rows), path=rows, label_column="label"))
    assert found.quality is None and "purple" in found.reason
