"""What a recipe asks for that its task cannot do: one case a rule, and nothing loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgec_runtime.tasks.answer import Reader
from edgec_runtime.tasks.classify import Classifier
from edgec_runtime.tasks.embed import EmbeddingModel
from edgec_runtime.tasks.mask import MaskFiller
from edgec_runtime.tasks.tag import Tagger

from edgec.errors import RecipeError
from edgec.recipe import Recipe, load_recipe
from edgec.task_rules import FORMATS, METRICS, WINDOWED, check_recipe

LABELS = "text: rows.csv, text_column: a, label_column: c"
EMBEDDING, CLASSES, TOKENS = "feature-extraction", "text-classification", "token-classification"
ANSWERS, MASKS = "question-answering", "fill-mask"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.csv").write_text("a,b,c\nx,y,1\n")
    for name in ("a.conll", "a.conllu", "a.json"):
        (tmp_path / name).touch()
    return tmp_path


def recipe(folder: Path, *, export: str = "", passes: str = "quantize", **data: str) -> Recipe:
    path = folder / "mine.yaml"
    parts = ", ".join(f"{name}: {{{part}}}" for name, part in data.items())
    path.write_text(
        f"edgec: 1\nmodel: {{source: a/b}}\ntargets: [arm64]\nexport: {{{export}}}\npasses: [{passes}]\n"
        f"data: {{{parts}}}\n"
    )
    return load_recipe(path)


REFUSED = {
    "windows of an embedding": (EMBEDDING, {"export": "long_text: window"}, "export.long_text is window"),
    "windows of a class": (CLASSES, {"export": "long_text: window"}, f"which {CLASSES} cannot do: {TOKENS} and"),
    "windows of a mask": (MASKS, {"export": "long_text: window"}, f"and {ANSWERS} read a long text in windows"),
    "stride without windows": (CLASSES, {"export": "stride: 8"}, "export.stride is 8"),
    "stride of a row": (TOKENS, {"export": "stride: 64"}, "export.stride is 64, and a row has at most 64 tokens"),
    "null answers": (CLASSES, {"export": "null_answers: true"}, "export.null_answers is for question-answering"),
    "answer tokens": (MASKS, {"export": "max_answer_tokens: 9"}, "export.max_answer_tokens is for question-answering"),
    "labels of tokens": (TOKENS, {"evaluate": LABELS}, f"data.evaluate.label_column is given, .* {TOKENS}"),
    "labels of answers": (ANSWERS, {"evaluate": LABELS}, f"data.evaluate.label_column is given, .* {ANSWERS}"),
    "labels of masks": (MASKS, {"evaluate": LABELS}, f"data.evaluate.label_column is given, .* {MASKS}"),
    "labels of one text": (EMBEDDING, {"evaluate": LABELS}, "given without text_pair_column"),
    "spearman of classes": (CLASSES, {"evaluate": f"{LABELS}, metric: spearman"}, "is 'spearman'; .* accuracy, macro"),
    "cosine with labels": (CLASSES, {"evaluate": f"{LABELS}, metric: cosine"}, "data.evaluate.metric is 'cosine'"),
    "accuracy of pairs": (
        EMBEDDING,
        {"evaluate": f"{LABELS}, text_pair_column: b, metric: accuracy"},
        "data.evaluate.metric is 'accuracy'; with labels feature-extraction gives spearman",
    ),
    "tagged sentences of classes": (
        CLASSES,
        {"evaluate": "text: a.conll"},
        f"is conll, and {CLASSES} is scored on csv",
    ),
    "questions of tokens": (TOKENS, {"train": "text: a.json"}, f"data.train is of the format squad, and {TOKENS} has"),
    "training of masks": (MASKS, {"train": LABELS}, f"data.train is given, and there are no labels for {MASKS}"),
    "training on one text": (EMBEDDING, {"validation": LABELS}, "data.validation has no text_pair_column"),
    "several labels of tokens": (
        EMBEDDING,
        {"train": f'{LABELS}, text_pair_column: b, label_separator: "|"'},
        f"data.train.label_separator is given, .* not for {EMBEDDING}",
    ),
    "spans of answers": (ANSWERS, {"evaluate": "text: a.json, metric: span_f1"}, "is 'span_f1'; .* gives f1, exact"),
    "dynamic batches": (
        None,
        {"export": "schedule: batches", "passes": "{quantize: {scheme: dynamic, granularity: tensor}}"},
        "export.schedule is batches",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, folder: Path) -> None:
    task, parts, told = REFUSED[case]
    with pytest.raises(RecipeError, match=rf"mine\.yaml: .*{told}") as caught:
        check_recipe(recipe(folder, **parts), task, max_length=64)
    assert caught.value.hint


def test_what_only_the_loaded_model_tells(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"export\.schedule"):
        check_recipe(recipe(folder, export="schedule: batches", passes=""), CLASSES, dynamic=True)
    check_recipe(recipe(folder, export="stride: 64"), TOKENS)  # its row may have more


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        (TOKENS, {"export": "long_text: window, stride: 63"}),
        (ANSWERS, {"export": "null_answers: true, max_answer_tokens: 9"}),
        (CLASSES, {"evaluate": f"{LABELS}, metric: macro_f1", "export": "long_text: truncate, schedule: batches"}),
        (EMBEDDING, {"evaluate": f"{LABELS}, text_pair_column: b"}),
        (MASKS, {"evaluate": "text: rows.csv, text_column: a, metric: cosine"}),
        (
            TOKENS,
            {"train": "text: a.conll", "validation": "text: a.conllu", "evaluate": "text: a.conll, metric: accuracy"},
        ),
        (ANSWERS, {"train": "text: a.json", "evaluate": "text: a.json, metric: f1_answerable"}),
        (EMBEDDING, {"evaluate": "text: a.conll, metric: cosine", "calibrate": "text: a.json"}),
        (CLASSES, {"evaluate": f'{LABELS}, label_separator: "|", metric: micro_f1'}),
        (EMBEDDING, {"export": "schedule: streams", "passes": "{quantize: {scheme: dynamic}}"}),
    ],
)
def test_accepted(task: str, parts: dict[str, str], folder: Path) -> None:
    check_recipe(recipe(folder, **parts), task, max_length=64)


def test_all_problems_come_together(folder: Path) -> None:
    wrong = recipe(folder, export="stride: 8", train="text: a.json", evaluate="text: a.conll")
    with pytest.raises(RecipeError) as caught:
        check_recipe(wrong, CLASSES)
    problems = caught.value.message.splitlines()
    assert [part in line for part, line in zip(("stride", "train", "evaluate"), problems, strict=True)] == [True] * 3


def test_metrics_and_formats_are_of_the_same_tasks() -> None:
    assert set(METRICS) == set(FORMATS) and MASKS not in METRICS


def test_the_tasks_that_window_are_the_runtimes() -> None:
    kinds = (EmbeddingModel, Classifier, Tagger, Reader, MaskFiller)
    assert {kind.task for kind in kinds if "window" in kind.long_text} == set(WINDOWED)
