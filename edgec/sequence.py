"""All passes of a recipe, one after the other, on the data that it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgec.data.load import read_labelled, read_sample, read_unlabelled
from edgec.data.readers import Sample
from edgec.data.spans import of_spans
from edgec.errors import DataError, RecipeError, UserError
from edgec.passes import PASSES, run_pass
from edgec.passes.cache import PassCache
from edgec.recipe import PassConfig, Recipe, check_passes
from edgec.state import ModelState, PassContext, Progress, TrainingData
from edgec.task_rules import TAGGED, check_recipe
from edgec.yaml_tree import from_override, place_of

if TYPE_CHECKING:
    from edgec.data.examples import Labelled
    from edgec.recipe_data import LabelledData

Say = Callable[[str], None]

AFTER: Final = {
    "align": tuple(name for name in PASSES if name not in ("distill", "decouple")),
    "quantize": ("align",),
    "decouple": ("finetune", "fuse-adapters", "quantize"),
    "lora": ("align", "fuse-adapters", "trim-vocab"),
}
"""What can follow a pass whose model the others cannot work on; lora, until its adapters are merged."""

NEVER_AFTER: Final = {("quantize", "align"): ("mode", "joint"), ("align", "prune"): ("structure", "hidden")}
"""An option with which a pass cannot work on what the one before leaves."""

LEARNING: Final = ("finetune", "lora", "fuse-adapters")
"""Passes after which the model still is the one that is to be made small."""

FEW_TEXTS: Final = 16
"""Fewer leave ranges to chance."""


@dataclass(frozen=True)
class RecipeData:
    """What the recipe's files hold, read and checked before any model is loaded.

    counts: by name of the data, its rows, those skipped as malformed, and the tags that were repaired.
    """

    calibration: Sample
    evaluation: Sample
    training: TrainingData
    counts: dict[str, dict[str, int]]

    @property
    def facts(self) -> list[Any]:
        """All that a pass may depend on, for the name of its cached result."""
        return [self.calibration.texts, *(getattr(self.training, f.name) for f in dataclasses.fields(self.training))]


@dataclass(frozen=True)
class Passed:
    """The model after all passes. original: the model before the pass `before`, the first that makes it another one;
    None where all that happens to it is learning and rounding.
    """

    state: ModelState
    original: ModelState | None = None
    before: str = ""


def final_task(asked: Recipe) -> str | None:
    """The task of the model after all passes, as far as the recipe tells it."""
    named = [step.options["task"] for step in asked.passes if step.options.get("task") is not None]
    return str(named[-1]) if named else asked.model.task


def first_compressing(passes: Sequence[PassConfig]) -> int | None:
    """The index of the first pass whose result is another model. Rounding after training is not: fp32 tells of it."""
    for place, config in enumerate(passes):
        rounding = config.name == "quantize" and config.options.get("when") != "training"
        if config.name not in LEARNING and not rounding:
            return place
    return None


def check_asked(asked: Recipe) -> None:
    """What can be told of a whole recipe before anything is read or loaded.

    Raises RecipeError for what the task cannot do, a folder that is not there, and a pass that follows one whose model
    it cannot work on.
    """
    check_recipe(asked, final_task(asked))
    _require_folder(asked.model.source, f"{asked.source_path}: model.source")
    for place, (config, step) in enumerate(zip(asked.passes, check_passes(asked, PASSES), strict=True)):
        for name in (field.name for field in dataclasses.fields(step)):
            _require_folder(getattr(step, name), f"{_place(asked, place)}.{name}")
        for _, before in _still_there(asked.passes[:place]):
            option, value = NEVER_AFTER.get((before.name, config.name), ("", ""))
            never = bool(option) and config.options.get(option) == value
            if config.name not in AFTER.get(before.name, PASSES) or never:
                mode = f" with {option}: {value}" if never else ""
                raise RecipeError(
                    f"{_place(asked, place)}: cannot work{mode} on the model that {before.name} (line {before.line}) "
                    "leaves",
                    _remedy(before.name, config.name, joint=never and value == "joint"),
                )
            if config.name == "lora" and config.options.get("targets") is None and _zeros(before):
                raise RecipeError(
                    f"{_place(asked, place)}: its adapters, merged, would fill the zeros of prune (line {before.line})",
                    "prune after fuse-adapters, or give adapters to other layers: targets",
                )
    for place, config in _still_there(asked.passes):
        lora = any(one.name == "lora" for _, one in _still_there(asked.passes[:place]))
        if config.name == "fuse-adapters" and config.options.get("adapter") is not None and lora:
            raise RecipeError(
                f"{_place(asked, place)}.adapter: the model has adapters of its own, from lora",
                "leave adapter out: they are merged then",
            )
    for place, config in _still_there(asked.passes):
        if config.name == "lora":
            raise RecipeError(
                f"{_place(asked, place)}: nothing merges its adapters into the weights, and a graph has plain layers",
                "add fuse-adapters after it",
            )


def _still_there(passes: Sequence[PassConfig]) -> list[tuple[int, PassConfig]]:
    """Each with its index, without LoRA adapters that were merged."""
    own = [config.name == "fuse-adapters" and config.options.get("adapter") is None for config in passes]
    fused = max((place for place, merges in enumerate(own) if merges), default=-1)
    return [(place, config) for place, config in enumerate(passes) if config.name != "lora" or place > fused]


def _zeros(config: PassConfig) -> bool:
    """Whether it leaves zeros in all matrices of the encoder's layers, which are to stay."""
    return config.name == "prune" and config.options.get("structure", "none") == "none"


def _remedy(before: str, name: str, *, joint: bool) -> str:
    if before == "lora":
        return "put fuse-adapters between them"
    if joint:
        return f"put it before {before}, or align with mode: frozen"
    return f"keep one {before} pass" if name == before else f"put it before {before}"


def _require_folder(value: object, place: str) -> None:
    """Raises RecipeError for a text that is no hub id but a path, and leads nowhere."""
    if isinstance(value, str) and value.startswith(("./", "../", "/", "~")) and not Path(value).expanduser().exists():
        raise RecipeError(f"{place}: there is no folder {value}", "check the path: it starts at the recipe's folder")


def _place(asked: Recipe, place: int) -> str:
    config = asked.passes[place]
    where = str(asked.source_path)
    # Of the pass, not of its first option, which may stand below it.
    found = f"{where}:{config.line}" if config.line and not from_override(config.node) else place_of(config.node, where)
    return f"{found}: passes.{place}.{config.name}"


def read_data(asked: Recipe, say: Say) -> RecipeData:
    """Read every file that the recipe names, and ask each pass whether what it needs is there.

    Raises DataError for a file, RecipeError for options, and what the passes raise for data that is not there.
    """
    wanted = asked.data
    labelled: dict[str, tuple[Labelled, ...]] = {"train": (), "validation": ()}
    counts: dict[str, dict[str, int]] = {}
    for name in labelled:
        data: LabelledData | None = getattr(wanted, name)
        if data is not None:
            say(f"read data.{name}")
            rows = read_labelled(data)
            labelled[name] = rows.examples
            counts[name] = {"rows": len(rows.examples), "skipped": rows.skipped, "repaired": rows.repaired}
    unlabelled = () if wanted.unlabelled is None else read_unlabelled(wanted.unlabelled)
    if unlabelled:
        counts["unlabelled"] = {"rows": len(unlabelled), "skipped": 0, "repaired": 0}
    training = TrainingData(labelled["train"], labelled["validation"], unlabelled)
    calibration, evaluation = (
        Sample() if data is None else read_sample(data) for data in (wanted.calibrate, wanted.evaluate)
    )
    found = RecipeData(calibration, evaluation, training, counts)
    context = PassContext(Path(), found.calibration.texts, data=training)
    for place, step in enumerate(check_passes(asked, PASSES)):
        with _told_where(asked, place):
            step.requires_data(context)
    return found


@contextmanager
def _told_where(asked: Recipe, place: int) -> Iterator[None]:
    """Inside, what a pass refuses is told with the place of the pass in the recipe."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{_place(asked, place)}: {error.message}", error.hint) from error


def run_passes(asked: Recipe, data: RecipeData, cache: PassCache, work: Path, progress: Progress, say: Say) -> Passed:
    """The model of the recipe after all its passes; those that `cache` knows are not done again.

    Several processes that train together (edgec.processes) all come here, and each has the same model in the end.
    Raises ProcessLost where one of them has ended.
    """
    from edgec.models import load_model
    from edgec.training.together import agree, leave, with_others

    state = load_model(
        asked.model.source,
        task=asked.model.task,
        revision=asked.model.revision,
        sha256=asked.model.sha256,
        trust_remote_code=asked.model.trust_remote_code,
        max_length=asked.export.max_length,
    )
    changed = final_task(asked) not in (None, asked.model.task)
    _check(asked, state, None if changed else state.spec.task)
    _check_labels(asked, data, state)
    _check_adapters(asked, state)
    _tell_of_texts(asked, state, data.calibration.texts, say)
    loaded, original, before = state, None, ""
    compressing = first_compressing(asked.passes)
    done: list[dict[str, Any]] = []
    with with_others():
        for place, (config, step) in enumerate(zip(asked.passes, check_passes(asked, PASSES), strict=True)):
            if place == compressing:
                original, before = state, config.name
            done.append({config.name: dataclasses.asdict(step)})
            key = cache.key(loaded, done, data.facts, asked.seed)
            cached = cache.get(key)
            agree(cached is not None, "which passes of the interrupted run they find")
            if cached is not None:
                say(f"pass {config.name}: taken from the interrupted run")
                state = cached
                continue
            taken_up = ": its training goes on where it was interrupted" if cache.goes_on(key) else ""
            say(f"pass {config.name}{taken_up}")
            folder = cache.training_folder(key)
            context = PassContext(work, data.calibration.texts, asked.seed, progress, data.training, folder, say)
            with _told_where(asked, place):
                state = run_pass(step, state, context)
            cache.put(key, state)
        leave()
    _check(asked, state, state.spec.task)
    return Passed(state, original, before)


def _tell_of_texts(asked: Recipe, state: ModelState, texts: Sequence[Any], say: Say) -> None:
    """What of the calibration texts is not used, and where they are few."""
    if not texts or all(step.name != "quantize" for step in asked.passes):
        return
    limit = state.spec.max_length
    rows = [text if isinstance(text, tuple) else (text,) for text in texts]
    long = sum(len(state.tokenizer(*row, truncation=False, verbose=False)["input_ids"]) > limit for row in rows)
    if long:
        say(f"{long} of {len(rows)} calibration texts are longer than {limit} tokens: they are cut there")
    if len(rows) < FEW_TEXTS:
        say(f"{len(rows)} calibration texts are few: a hundred like those of use give ranges that hold")


def _check_labels(asked: Recipe, data: RecipeData, state: ModelState) -> None:
    """Raises DataError for a label of data.validation or data.evaluate that the model will not have: now, not after it
    was trained.
    """
    from edgec.scoring import labels_of, require_known

    evaluate = asked.data.evaluate
    task = final_task(asked) or state.spec.task
    if task not in ("text-classification", "token-classification"):
        return
    checked: list[tuple[Sequence[Labelled], str]] = []
    if _scored_while_trained(asked):
        checked.append((data.training.validation, "data.validation"))
    if evaluate is not None and evaluate.scored:
        checked.append((read_labelled(evaluate).examples, evaluate.shown))
    lists = [step.options.get("labels") for step in asked.passes]  # of distill it is a weight
    options = [str(label) for labels in lists if isinstance(labels, list) for label in labels]
    trained = [label for row in data.training.train for label in labels_of(row)]
    known = tuple(dict.fromkeys([*(state.spec.labels or ()), *options, *trained]))
    try:
        for examples, where in checked:
            require_known(examples, known, where=where)
    except DataError as error:
        trains = any(step.name in ("finetune", "lora", "align") for step in asked.passes)
        remedy = "; name it in the option labels of the pass that learns the task" if trains else ""
        raise DataError(error.message, error.hint + remedy) from None
    if task == "token-classification" and evaluate is not None and evaluate.scored and evaluate.metric is not None:
        given = TAGGED[of_spans(known)]
        if evaluate.metric not in given:
            raise RecipeError(
                f"{asked.source_path}: data.evaluate.metric is {evaluate.metric!r}; with the labels of this model "
                f"({', '.join(known[:4])}{' ...' * (len(known) > 4)}) tags are scored by {', '.join(given)}",
                "choose one of those",
            )


def _check_adapters(asked: Recipe, state: ModelState) -> None:
    """Raises what the first fuse-adapters refuses, where all its adapters are those that the loaded model has."""
    for place, (config, step) in enumerate(zip(asked.passes, check_passes(asked, PASSES), strict=True)):
        if config.name == "lora" or config.options.get("adapter") is not None:
            return
        if config.name == "fuse-adapters":
            with _told_where(asked, place):
                step.requires(state)
            return


def _scored_while_trained(asked: Recipe) -> bool:
    """Whether data.validation is scored, by the task and the labels of the recipe's end as far as they are known."""
    tasks = {step.options["task"] for step in asked.passes if step.options.get("task") is not None}
    theirs = any(step.name == "align" and step.options.get("head") == "large" for step in asked.passes)
    training = any(
        step.name in ("finetune", "lora", "distill", "decouple")
        or (step.name == "align" and 3 in step.options.get("phases", (3,)))
        or (step.name == "quantize" and step.options.get("when") == "training")
        for step in asked.passes
    )
    return training and not theirs and len(tasks) <= 1


def _check(asked: Recipe, state: ModelState, task: str | None) -> None:
    """Whether the recipe asks only for what this model can do."""
    spec = state.spec
    check_recipe(
        asked,
        task,
        max_length=spec.max_length,
        dynamic=state.quantization is not None and not state.quantization.batch_invariant,
    )
