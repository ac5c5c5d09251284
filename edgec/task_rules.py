"""What a task can be asked for: told from the task's name, before the long work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgec.errors import RecipeError, UserError
from edgec.formats import SENTENCES, TABLES

if TYPE_CHECKING:
    from edgec.recipe import EvaluationData, LabelledData, Recipe

WINDOWED: Final = ("token-classification", "question-answering")
"""Tasks whose answer is a place in the text, so that a long text can be read in windows."""

METRICS: Final = {
    "text-classification": ("accuracy", "macro_f1", "micro_f1"),
    "token-classification": ("span_f1", "span_macro_f1", "accuracy", "macro_f1"),
    "question-answering": (*("f1", "exact_match", "f1_answerable", "exact_match_answerable", "f1_unanswerable"),),
    "feature-extraction": ("spearman", "pearson"),
}
"""What `evaluate` scores against labels; the first is the task's main figure (accuracy, where labels of tokens are no
parts of spans)."""

TAGGED: Final = {True: ("span_f1", "span_macro_f1", "accuracy"), False: ("accuracy", "macro_f1")}
"""Of those of token-classification, what labels give that are parts of spans, and what others give."""

FORMATS: Final = {
    "text-classification": TABLES,
    "token-classification": SENTENCES,
    "question-answering": ("squad",),
    "feature-extraction": TABLES,
}
"""The formats whose labels a task is scored on."""

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


def check_recipe(recipe: Recipe, task: str | None, *, max_length: int | None = None, dynamic: bool = False) -> None:
    """Whether `recipe` asks only for what a model of `task` can do; None: only what every task forbids.

    max_length: of the model. dynamic: it was quantized before with a scale for the whole batch. Raises RecipeError with
    every problem, naming the keys.
    """
    settings = recipe.export
    dynamic = dynamic or any(
        step.options.get("scheme") == "dynamic" and step.options.get("granularity") == "tensor"
        for step in recipe.passes
    )

    def schedule() -> None:
        if dynamic and settings.schedule == "batches":
            raise UserError(
                "export.schedule is batches, and with a scale a tensor an answer would depend on its batch-mates",
                "leave schedule out, or quantize with granularity: token or scheme: static",
            )

    def export() -> None:
        if task is not None:
            check_export(
                task,
                max_length=max_length,
                long_text=settings.long_text,
                stride=settings.stride,
                null_answers=settings.null_answers,
                max_answer_tokens=settings.max_answer_tokens,
            )

    def labelled(name: str, data: LabelledData | None) -> None:
        if task is not None and data is not None:
            _check_labelled(data, f"data.{name}", task)

    def evaluation() -> None:
        if task is not None and recipe.data.evaluate is not None:
            _check_evaluation(recipe.data.evaluate, task)

    data = recipe.data
    checks = (
        schedule,
        export,
        lambda: labelled("train", data.train),
        lambda: labelled("validation", data.validation),
        evaluation,
    )
    found: list[UserError] = []
    for check in checks:
        try:
            check()
        except UserError as error:
            found.append(error)
    if found:
        message = "\n  ".join(f"{recipe.source_path}: {error.message}" for error in found)
        raise RecipeError(message, "; ".join(dict.fromkeys(error.hint for error in found)))


def _check_labelled(data: LabelledData, place: str, task: str) -> None:
    """What passes train on: rows of the task, told from the format."""
    kind = data.known_format
    if task not in FORMATS:
        raise UserError(f"{place} is given, and there are no labels for {task}", "leave it out")
    if kind is not None and kind not in FORMATS[task]:
        raise UserError(
            f"{place} is of the format {kind}, and {task} has its labels in {', '.join(FORMATS[task])}",
            "give a file of such a format, or name the format where the ending misleads",
        )
    if task == "feature-extraction" and data.text_pair_column is None:
        raise UserError(
            f"{place} has no text_pair_column: embeddings are trained and scored on pairs of texts",
            "name the column of the second text",
        )
    _check_separator(data, place, task)


def _check_separator(data: LabelledData, place: str, task: str) -> None:
    if data.label_separator is not None and task != "text-classification":
        raise UserError(
            f"{place}.label_separator is given, and several labels a text are for text-classification, not for {task}",
            "leave it out",
        )


def _check_evaluation(data: EvaluationData, task: str) -> None:
    if not data.scored:
        return
    kind = data.known_format
    what = "data.evaluate.label_column is given" if data.label_column is not None else f"data.evaluate is {kind}"
    if task not in METRICS:
        raise UserError(
            f"{what}, and labels do not score {task}",
            f"leave it out: answers are then compared with the float model's; labels score {', '.join(METRICS)}",
        )
    if kind is not None and kind not in FORMATS[task]:
        raise UserError(
            f"{what}, and {task} is scored on {', '.join(FORMATS[task])}, not on {kind}",
            "give a file of such a format; or leave the labels out (metric: cosine), and answers are compared with "
            "the float model's",
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
    _check_separator(data, "data.evaluate", task)
