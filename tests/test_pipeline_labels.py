"""compress where quality is that of labels."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import LABELS, SENTENCES, tiny

import edgec
from edgec.emulation import load_as_target
from edgec.errors import RecipeError
from edgec.models import load_model
from edgec.report import Report
from edgec.target import Target

pytestmark = pytest.mark.filterwarnings("ignore::edgec_runtime.BundleWarning")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, foreign: Target) -> tuple[Path, Callable[..., Report]]:
    """A folder with a classifier and labels that it gets right two times in three, and how to compress it."""
    folder = tmp_path_factory.mktemp("labelled")
    state = load_model(tiny("distilbert", "text-classification", folder / "model"))
    texts = [f"{text} {word}" for text in SENTENCES for word in ("old", "new", "cold")]
    names = LABELS["text-classification"]
    with (folder / "rows.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["said", "mood"])
        for number, text in enumerate(texts):
            ids = state.tokenizer(text, return_tensors="pt")["input_ids"].to(torch.int32)
            with torch.inference_mode():
                best = int(state.parts["encoder"](ids, torch.ones_like(ids))[0].argmax())
            writer.writerow([text, names[best if number % 3 else (best + 1) % 3]])
    recipe = folder / "moods.yaml"
    recipe.write_text(
        "edgec: 1\n"
        "model: {source: ./model}\n"
        "data:\n"
        "  calibrate: {text: rows.csv, text_column: said, rows: 6}\n"
        "  evaluate: {text: rows.csv, text_column: said, label_column: mood}\n"
        "passes: [quantize]\n"
        f"targets: [{foreign.name}]\n"
    )
    return folder, lambda name, **options: edgec.compress(recipe, out=folder / name, **options)


def test_quality_by_labels(labelled: tuple[Path, Callable[..., Report]], foreign: Target) -> None:
    folder, compress = labelled
    report = compress("out")
    quality = report.bundles[foreign.name].quality
    assert quality is not None
    assert (quality.metric, quality.n) == ("accuracy", 18)
    assert quality.before == pytest.approx(2 / 3)
    with load_as_target(folder / "out" / "bundles" / foreign.name) as model, (folder / "rows.csv").open() as stream:
        hits = [model.classify([row["said"]])[0].label == row["mood"] for row in csv.DictReader(stream)]
    assert quality.after == pytest.approx(sum(hits) / 18)
    assert quality.drop == pytest.approx(quality.before - quality.after)
    assert report.bundles[foreign.name].passes[0].report["calibration_texts"] == 6
    with load_as_target(folder / "out" / "bundles" / foreign.name) as model:
        scored = edgec.evaluate(model, folder / "rows.csv", text="said", label="mood")
    assert scored.metrics["accuracy"] == quality.after
    label = edgec.run(folder / "out" / "bundles" / foreign.name, ["the old house"])[0]
    assert label["label"] in LABELS["text-classification"] and 0 < label["score"] <= 1


def test_a_metric_that_the_task_does_not_give(labelled: tuple[Path, Callable[..., Report]]) -> None:
    folder, compress = labelled
    for early in ([], ["model.task=text-classification"]):
        said: list[str] = []
        with pytest.raises(RecipeError, match="'spearman'; with labels text-classification gives accuracy, macro_f1"):
            compress("other", overrides=["data.evaluate.metric=spearman", *early], say=said.append)
        # The task is known from the recipe before the load, from the model right after it.
        assert [line.split()[0] for line in said] == ([] if early else ["load"])
    assert not (folder / "other").exists()
