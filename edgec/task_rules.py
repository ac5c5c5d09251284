"""What a task can be asked for: told from the task's name, before the long work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgec.errors import RecipeError, UserError

if TYPE_CHECKING:
    from edgec.recipe import EvaluationData, Recipe

WINDOWED: Final = ("token-classification", "question-answering")
"""Tasks whose answer is a place in the text, so that a long text can be read in windows."""

METRICS: Final = {"text-classification": ("accuracy", "macro_f1"), "feature-extraction": ("spearman",)}
"""What `evaluate` scores against labels; the first is the task's main figure."""

MAX_ANSWER_TOKENS: Final = 30


def check_export(
    task: str,
    *,
    max_length: int | None,
    long_text: str | None,
    stride: int,
    null_answers: bool,
    max_answer_tokens: int,
) -> None:
    """The settings of `export`, in a recipe or an Exporter. max_length: of a row, None where it is not known yet.

    Raises UserError, naming the key, for one that the task or its rows have no use for.
    """
    windows = f"{' and '.join(WINDOWED)} read a long text in windows"
    if long_text == "window" and task not in WINDOWED:
        raise UserError(f"export.long_text is window, which {task} cannot do: {windows}", "leave long_text out")
    if stride and (task not in WINDOWED or long_text == "truncate"):
        raise UserError(f"export.stride is {stride}, and {task} has no windows here: {windows}", "leave stride out")
    if max_length is not None and stride >= max_length:
        raise UserError(
            f"export.stride is {stride}, and a row has at most {max_length} tokens",
            "windows share less than a row: give a stride far below max_length",
        )
    if task != "question-answering" and (null_answers or max_answer_tokens != MAX_ANSWER_TOKENS):
        key = "null_answers" if null_answers else "max_answer_tokens"
        raise UserError(f"export.{key} is for question-answering, not for {task}", f"leave {key} out")


def check_recipe(
    recipe: Recipe,
    task: str | None,
    *,
    max_length: int | None = None,
    multi_label: bool = False,
    dynamic: bool = False,
) -> None:
    """Whether `recipe` asks only for what a model of `task` can do; None: only what every task forbids.

    max_length: of the model. multi_label: it gives a text several labels at once. dynamic: it was quantized
    before with a scale for the whole batch. Raises RecipeError, naming the key.
    """
    settings = recipe.export
    dynamic = dynamic or any(
        step.options.get("scheme") == "dynamic" and step.options.get("granularity") == "tensor"
        for step in recipe.passes
    )
    try:
        if dynamic and settings.schedule == "batches":
            raise UserError(
                "export.schedule is batches, and with a scale a tensor an answer would depend on its batch-mates",
                "leave schedule out, or quantize with granularity: token or scheme: static",
            )
        if task is None:
            return
        check_export(
            task,
            max_length=max_length,
            long_text=settings.long_text,
            stride=settings.stride,
            null_answers=settings.null_answers,
            max_answer_tokens=settings.max_answer_tokens,
        )
        if recipe.data.evaluate is not None:
            _check_evaluation(recipe.data.evaluate, task, multi_label=multi_label)
    except UserError as error:
        raise RecipeError(f"{recipe.source_path}: {error.message}", error.hint) from None


def _check_evaluation(data: EvaluationData, task: str, *, multi_label: bool) -> None:
    if data.label_column is None:
        return
    if task not in METRICS or multi_label:
        what = "a model that gives a text several labels at once" if task in METRICS else task
        raise UserError(
            f"data.evaluate.label_column is given, and labels do not score {what}",
            f"leave it out: answers are then compared with the float model's; labels score {' and '.join(METRICS)}",
        )
    if task == "feature-extraction" and data.text_pair_column is None:
        raise UserError(
            "data.evaluate.label_column is given without text_pair_column: embeddings are scored on pairs of texts",
            "name the column of the second text, or leave label_column out",
        )
    if data.metric is not None and data.metric not in METRICS[task]:
        raise UserError(
            f"data.evaluate.metric is {data.metric!r}; with labels {task} gives {', '.join(METRICS[task])}",
            "choose one of those, or leave it out",
        )
