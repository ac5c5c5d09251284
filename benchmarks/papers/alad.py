"""The Alignment Adapter (Rai, Dhaka, Awekar): compressed models of all-MiniLM-L6-v2 with and without it, on five tasks.

Supervised training of a task has the same number of steps in every row; where an adapter joins what has learnt already
(LoRA, an int8 model) it has as many once more, and so has a row beside it without the adapter. Beside the paper's rows
stands what the gain has to be told apart from: a linear head on the frozen model, and a plain model of as many
parameters.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, Literal

from edgec.data.examples import Question, Tagged
from edgec.models import load_model
from edgec.passes import Align, Distill, Finetune, Lora, Prune, Quantize
from edgec.state import ModelState

from . import data as sets
from .cells import Cell, over_seeds
from .models import SOURCE, WORK, kept, large, parameters, scores, through

RATES: Final = (5e-5, 2e-4, 5e-4)
"""5e-5 is the paper's for whole models; the best of them is chosen on the selection half of dev, with seed 0."""

Window = Literal[1, 3, 5]
WINDOWS: Final[tuple[Window, ...]] = (1, 3, 5)

PAPER: Final = {
    "large, fine-tuned": {"pos": 93, "ner": 63, "qa": 80},
    "plain": {"pos": 89, "ner": 40, "qa": 60},
    "frozen W-1": {"pos": 90, "ner": 43, "qa": 20},
    "frozen W-3": {"pos": 90, "ner": 48, "qa": 26},
    "frozen W-5": {"pos": 91, "ner": 49, "qa": 29},
    "joint W-1": {"pos": 92, "ner": 47, "qa": 62},
    "joint W-3": {"pos": 93, "ner": 49, "qa": 64},
    "joint W-5": {"pos": 93, "ner": 50, "qa": 65},
    "LoRA": {"pos": 76, "ner": 24, "qa": 13},
    "LoRA + W-1": {"pos": 90, "ner": 43, "qa": 58},
    "LoRA + W-3": {"pos": 90, "ner": 48, "qa": 59},
    "LoRA + W-5": {"pos": 91, "ner": 49, "qa": 60},
}
"""Table 1, the ASC rows: accuracy of German POS, overall F1 of MultiCoNER v2 and of all of SQuAD 2.0, with BERT-base as
the large model."""


@dataclass(frozen=True)
class Task:
    """read: (data, rows) -> Split. figure: of edgec.scoring, reported; steps of batch 16 for every model. compress: the
    small model. full: whether the whole grid is trained, or the plain model, frozen W-5 and joint W-5 alone.
    phase2_epochs: the paper has 10; rows of questions are ten times as long as sentences.
    """

    name: str
    kind: str
    read: Callable[[Path, int], sets.Split]
    rows: int
    figure: str
    steps: int
    compress: Callable[[Path, Task], ModelState]
    full: bool = False
    phase2_epochs: float = 10.0

    @property
    def head(self) -> str:
        return "question-answering" if self.kind == "qa" else "token-classification"


def _first_layers(data: Path, task: Task, keep: int) -> ModelState:
    """Application-Specific Compression: the layers whose output differs most from their input on the task's texts."""
    step = Prune(structure="layers", keep=keep, select="similarity")
    return through(large(), step, seed=0, train=_split(data, task.name).train)


def _narrow(data: Path, task: Task) -> ModelState:
    """Half the width and 4 layers, distilled from the large model on plain text: what BERT-mini is to BERT-base."""
    step = Distill(
        config={"hidden_size": 192, "num_attention_heads": 6, "intermediate_size": 768, "num_hidden_layers": 4},
        on="unlabelled",
        hidden=1.0,
        steps=1500,
        batch_size=32,
        learning_rate=5e-4,
        checks=4,
    )
    return through(large(), step, seed=0, unlabelled=_plain_texts(data))


TASKS: Final = {
    task.name: task
    for task in (
        Task("POS en, 2 layers", "pos", sets.pos_english, 2000, "accuracy", 375, partial(_first_layers, keep=2), True),
        Task("POS en, 3 layers", "pos", sets.pos_english, 2000, "accuracy", 375, partial(_first_layers, keep=3)),
        Task("POS en, narrow", "pos", sets.pos_english, 2000, "accuracy", 375, _narrow),
        Task("POS de, 2 layers", "pos", sets.pos_german, 2000, "accuracy", 375, partial(_first_layers, keep=2)),
        Task("NER en, 2 layers", "ner", sets.ner_english, 4000, "span_f1", 500, partial(_first_layers, keep=2)),
        Task(
            "QA en, 3 layers",
            "qa",
            sets.questions,
            4000,
            "f1_answered",
            250,
            partial(_first_layers, keep=3),
            phase2_epochs=2.0,
        ),
    )
}
PLAIN_TEXTS: Final = 4000
SETTINGS: Final = {
    "large": "all-MiniLM-L6-v2",
    "tasks": {
        task.name: {
            "rows": task.rows,
            "steps": task.steps,
            "figure": task.figure,
            "phase_2_epochs": task.phase2_epochs,
        }
        for task in TASKS.values()
    },
    "phase_1_texts": PLAIN_TEXTS,
    "units": 1280,
    "batch": 16,
    "rates": RATES,
}


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Choices of a learning rate first: the cells after them ask for the best."""
    data: Path = options.data
    for seed in range(options.seeds):
        for task in TASKS.values():
            for row, make in _rows(task).items():
                yield Cell(f"{task.name}: {row}", seed, partial(_trained, data, task, seed, make))


def _rows(task: Task) -> dict[str, Callable[[Path, Task, int], ModelState]]:
    rows: dict[str, Callable[[Path, Task, int], ModelState]] = {
        "plain, 5e-5": partial(_plain, rate=5e-5),
        "plain, best rate": partial(_plain, rate=None),
        "frozen W-5": partial(_aligned, window=5, mode="frozen", rate=1e-4),
        "joint W-5": partial(_aligned, window=5, mode="joint", rate=5e-5),
        "joint W-5, best rate": partial(_aligned, window=5, mode="joint", rate=None),
        "joint W-5 without phases 1 and 2": partial(_unaligned, window=5),
    }
    if not task.full:
        return rows
    rows |= {
        "joint W-5 without phases 1 and 2, best rate": partial(_unaligned, window=5, rate=None),
        "large, fine-tuned": _large,
        "linear head on the frozen model": _linear,
        "plain, as many parameters (4 layers), best rate": partial(_plain, rate=None, keep=4),
        "LoRA": _lora,
        "LoRA, twice the steps": _lora_longer,
    }
    for window in WINDOWS:
        rows |= {
            f"frozen W-{window}": partial(_aligned, window=window, mode="frozen", rate=1e-4),
            f"joint W-{window}": partial(_aligned, window=window, mode="joint", rate=5e-5),
            f"LoRA + W-{window}": partial(_with_lora, window=window),
        }
    rows["int8, plain"] = _int8
    rows["int8, plain, twice the steps"] = _int8_longer
    rows["int8, plain, frozen W-5 on it"] = _aligned_int8
    return rows


def _trained(data: Path, task: Task, seed: int, make: Callable[[Path, Task, int], ModelState]) -> dict[str, Any]:
    state = make(data, task, seed)
    found = scores(state, _split(data, task.name).report)
    rates = [record.options.get("learning_rate") for record in state.history]
    learnt = [rate for rate in rates if rate is not None]
    return {"figure": found[task.figure], "scores": found, "rate": learnt[-1] if learnt else None, **parameters(state)}


@cache
def _split(data: Path, name: str) -> sets.Split:
    task = TASKS[name]
    return task.read(data, task.rows)


@cache
def _plain_texts(data: Path) -> tuple[str, ...]:
    """Sentences of other sets than the tasks': English tweets and German news, three to two, the same for all tasks."""
    texts: list[str] = []
    for folder, file in (("wnut17", "train.conll.gz"), ("germeval14", "train.tsv.gz")):
        columns = {"text": "1", "label": "2"} if folder == "germeval14" else {}
        examples = sets.read_rows(data / folder / file, format="conll", **columns).examples
        texts += [example.text for example in examples if isinstance(example, Tagged)]
    return sets.drawn(texts, PLAIN_TEXTS)


@cache
def _compressed(data: Path, name: str) -> ModelState:
    task = TASKS[name]
    return _once(task, "compressed", lambda: task.compress(data, task))


def _plain(data: Path, task: Task, seed: int, *, rate: float | None, keep: int | None = None) -> ModelState:
    start = _compressed(data, task.name) if keep is None else _first_layers(data, task, keep)
    what = "plain" if keep is None else f"plain-{keep}"
    return _at_rate(data, task, seed, what, rate, lambda seed, chosen: _finetuned(data, task, seed, start, chosen))


def _finetuned(data: Path, task: Task, seed: int, start: ModelState, rate: float, **more: Any) -> ModelState:
    step = Finetune(task=task.head, steps=task.steps, learning_rate=rate, checks=2, **more)
    return through(start, step, seed=seed, train=_split(data, task.name).train)


def _large(data: Path, task: Task, seed: int) -> ModelState:
    return _finetuned(data, task, seed, large(), 1e-4)


def _linear(data: Path, task: Task, seed: int) -> ModelState:
    return _finetuned(data, task, seed, _compressed(data, task.name), 1e-3, train="head")


def _lora(data: Path, task: Task, seed: int) -> ModelState:
    step = Lora(task=task.head, steps=task.steps, checks=2)
    train = _split(data, task.name).train
    return _once(task, f"lora-{seed}", lambda: through(_compressed(data, task.name), step, seed=seed, train=train))


def _lora_longer(data: Path, task: Task, seed: int) -> ModelState:
    """LoRA for as many steps as LoRA with the adapter."""
    step = Lora(task=task.head, steps=2 * task.steps, checks=2)
    return through(_compressed(data, task.name), step, seed=seed, train=_split(data, task.name).train)


def _with_lora(data: Path, task: Task, seed: int, *, window: Window) -> ModelState:
    start = _lora(data, task, seed)
    return _third(data, task, seed, start, window=window, mode="joint", rate=1e-4, phases=(1, 2, 3))


def _aligned(data: Path, task: Task, seed: int, *, window: Window, mode: str, rate: float | None) -> ModelState:
    """Phases 1 and 2 are the same for every mode and rate, so they are trained once a window and seed."""

    def make(seed: int, chosen: float) -> ModelState:
        start = _once(task, f"w{window}-{seed}", partial(_first_phases, data, task, window, seed))
        return _third(data, task, seed, start, window=window, mode=mode, rate=chosen)

    return _at_rate(data, task, seed, f"{mode}-w{window}", rate, make)


def _first_phases(data: Path, task: Task, window: Window, seed: int) -> ModelState:
    step = Align(large=SOURCE, window=window, phases=(1, 2), phase2_epochs=task.phase2_epochs, checks=2)
    train = _split(data, task.name).train
    return through(_compressed(data, task.name), step, seed=seed, train=train, unlabelled=_plain_texts(data))


def _third(
    data: Path,
    task: Task,
    seed: int,
    start: ModelState,
    *,
    window: Window,
    mode: Any,
    rate: float,
    phases: tuple[int, ...] = (3,),
) -> ModelState:
    step = Align(
        large=SOURCE,
        window=window,
        phases=phases,
        phase2_epochs=task.phase2_epochs,
        mode=mode,
        task=task.head,  # type: ignore[arg-type]
        steps=task.steps,
        learning_rate=rate,
        checks=2,
    )
    train = _split(data, task.name).train
    return through(start, step, seed=seed, train=train, unlabelled=_plain_texts(data))


def _unaligned(data: Path, task: Task, seed: int, *, window: Window, rate: float | None = 5e-5) -> ModelState:
    def make(seed: int, chosen: float) -> ModelState:
        return _third(data, task, seed, _compressed(data, task.name), window=window, mode="joint", rate=chosen)

    return _at_rate(data, task, seed, f"joint-w{window}-alone", rate, make)


def _int8(data: Path, task: Task, seed: int) -> ModelState:
    """The plain model at its best rate, in static int8."""
    return _in_int8(data, task, seed, _plain(data, task, seed, rate=None))


def _int8_longer(data: Path, task: Task, seed: int) -> ModelState:
    """The same after as many steps in float as the adapter on the int8 model has."""
    at = partial(_finetuned, data, task, seed, rate=1e-4)
    return _in_int8(data, task, seed, at(_plain(data, task, seed, rate=None)))


def _in_int8(data: Path, task: Task, seed: int, state: ModelState) -> ModelState:
    return through(state, Quantize(scheme="static"), seed=seed, texts=_texts(data, task)[:256])


def _aligned_int8(data: Path, task: Task, seed: int) -> ModelState:
    train = _split(data, task.name).train
    step = Align(large=SOURCE, phases=(1, 2, 3), mode="frozen", steps=task.steps, checks=2)
    return through(
        _int8(data, task, seed),
        step,
        seed=seed,
        train=train,
        unlabelled=_plain_texts(data),
        texts=_texts(data, task)[:256],
    )


def _texts(data: Path, task: Task) -> list[Any]:
    train = _split(data, task.name).train
    return [(one.question, one.context) if isinstance(one, Question) else one.text for one in train]


def _once(task: Task, what: str, make: Callable[[], ModelState]) -> ModelState:
    """The model of that name, trained where no cell before needed it."""
    return load_model(kept(f"alad-{_slug(task.name)}-{what}", make))


def _at_rate(
    data: Path, task: Task, seed: int, what: str, rate: float | None, make: Callable[[int, float], ModelState]
) -> ModelState:
    """The model that make(seed, rate) trains, kept by that name; rate None: at its best one."""

    def at(chosen: float, seed: int) -> ModelState:
        return _once(task, f"{what}-{chosen:g}-{seed}", lambda: make(seed, chosen))

    return at(rate or _best(data, task, what, at), seed)


def _best(data: Path, task: Task, what: str, make: Callable[[float, int], ModelState]) -> float:
    """The rate whose model, with seed 0, scores best on the selection half of dev. Chosen once, and kept."""
    file = WORK / f"alad-{_slug(task.name)}-{what}.rate"
    if not file.is_file():
        found = {rate: scores(make(rate, 0), _split(data, task.name).select)[task.figure] for rate in RATES}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(repr(max(found, key=lambda rate: found[rate])), encoding="utf-8")
    return float(file.read_text(encoding="utf-8"))


def _slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-").lower()


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    means: dict[str, dict[str, dict[str, float]]] = {}
    for name, figures in over_seeds(found, "figure").items():
        task, _, row = name.partition(": ")
        means.setdefault(row, {})[task] = figures
    sizes = {one["name"]: one["parameters"] for one in found}
    return {
        "paper": PAPER,
        "means": means,
        "columns": [name for name in TASKS if any(name in row for row in means.values())],
        "parameters": sizes,
    }


def table(result: dict[str, Any]) -> str:
    columns = result["columns"]
    lines = [
        f"| | {' | '.join(columns)} | paper: POS de (accuracy) / NER (F1) / QA (F1) |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for row, found in result["means"].items():
        values = []
        for column in columns:
            one = found.get(column)
            spread = f" ± {one['std']:.1f}" if one and one["seeds"] > 1 else ""
            values.append(f"{one['mean']:.1f}{spread}" if one else "")
        published = result["paper"].get(row.replace("plain, 5e-5", "plain"))
        told = " / ".join(str(published[kind]) for kind in ("pos", "ner", "qa")) if published else ""
        lines.append(f"| {row} | {' | '.join(values)} | {told} |")
    return "\n".join(lines)
