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
from edgec.task_rules import WINDOWED, check_recipe

LABELS = "text: rows.csv, text_column: a, label_column: c"
EMBEDDING, CLASSES, TOKENS = "feature-extraction", "text-classification", "token-classification"
ANSWERS, MASKS = "question-answering", "fill-mask"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.csv").write_text("a,b,c\nx,y,1\n")
    return tmp_path


def recipe(folder: Path, *, export: str = "", evaluate: str = "", passes: str = "quantize") -> Recipe:
    path = folder / "mine.yaml"
    data = f"data: {{evaluate: {{{evaluate}}}}}\n" if evaluate else ""
    path.write_text(
        f"edgec: 1\nmodel: {{source: a/b}}\ntargets: [arm64]\nexport: {{{export}}}\npasses: [{passes}]\n{data}"
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
    labels = recipe(folder, evaluate=LABELS)
    with pytest.raises(RecipeError, match="several labels at once"):
        check_recipe(labels, CLASSES, multi_label=True)
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
        (EMBEDDING, {"export": "schedule: streams", "passes": "{quantize: {scheme: dynamic}}"}),
    ],
)
def test_accepted(task: str, parts: dict[str, str], folder: Path) -> None:
    check_recipe(recipe(folder, **parts), task, max_length=64)


def test_the_tasks_that_window_are_the_runtimes() -> None:
    kinds = (EmbeddingModel, Classifier, Tagger, Reader, MaskFiller)
    assert {kind.task for kind in kinds if "window" in kind.long_text} == set(WINDOWED)
