"""F1 that a decoupled all-MiniLM-L6-v2 keeps on SQuAD 2.0, over its splits, compressed, and with states in int8.

The teacher is trained once a seed, at the rate that is best on half of dev-a; every decoupled model learns from it for
as many steps. Told is the other half of dev-a. Every cell is kept in FILE.cells.jsonl: a run that is stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import matplotlib
import torch
from matplotlib.figure import Figure

from benchmarks.papers.cells import Cell, Kept, over_seeds, run
from benchmarks.papers.models import kept, through
from edgec.data.examples import Question
from edgec.data.load import read_rows
from edgec.models import load_model
from edgec.models.torch_model import torch_model
from edgec.passes import Decouple, Finetune
from edgec.scoring import score
from edgec.state import ModelState

from .models import TOKENIZER

LAYERS: Final = 6
RATES: Final = (1e-4, 2e-4, 4e-4)
COMPRESSION: Final = 4.0
COMPRESSED: Final = (2, 3)
CURVES: Final = {
    "": ("decoupled", "o-"),
    f", {COMPRESSION:g}x": ("its states compressed", "s"),
    f", {COMPRESSION:g}x, int8 states": ("and in int8", "x"),
}
PAPER: Final = "1.2 points of F1 lost at 5-7 of 12 layers, with 130,000 questions; 0.3 more by 4x compression"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder with squad2")
    parser.add_argument("--steps", type=int, default=2000, help="of the teacher, and of each decoupled model")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=256, help="tokens a training row")
    parser.add_argument("--rows", type=int, help="training questions; default all")
    parser.add_argument("--scored", type=int, help="questions of dev-a; default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="cells whose name has this in it")
    parser.add_argument("--finished", action="store_true", help="tell what is trained by now, and train nothing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    store = Kept(options.out.with_suffix(".cells.jsonl"))
    wanted = [cell for cell in cells(options) if options.only is None or options.only in cell.name]
    if options.finished:
        wanted = [cell for cell in wanted if cell.key in store.cells]
    found = run(wanted, store)
    names = ("has_answer_f1", "f1", "always_null_f1")
    return {
        "paper": PAPER,
        "settings": {name: getattr(options, name) for name in ("steps", "batch", "max_length", "rows", "threads")},
        "cells": found,
        "means": {name: over_seeds(found, name) for name in names},
    }


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for seed in range(options.seeds):
        yield Cell("standard", seed, partial(_told, options, partial(_teacher, options, seed)))
        for split in range(1, LAYERS):
            make = partial(_decoupled, options, seed, split, None)
            yield Cell(f"{split}-{LAYERS - split}", seed, partial(_told, options, make))
        for split in COMPRESSED:
            make = partial(_decoupled, options, seed, split, COMPRESSION)
            name = f"{split}-{LAYERS - split}, {COMPRESSION:g}x"
            yield Cell(name, seed, partial(_told, options, make))
            yield Cell(f"{name}, int8 states", seed, partial(_told, options, make, rounded=True))


@cache
def _rows(data: Path, rows: int | None) -> tuple[Any, ...]:
    """Without train-from-dev nobody learns that there may be no answer; its articles are not those of dev-a."""
    files = ("train-from-dev.json.gz", "train-orig-sub.json.gz", "train-v1-sub.json")
    found = [row for name in files for row in read_rows(data / "squad2" / name, format="squad").examples]
    return tuple(found if rows is None else found[:: max(1, len(found) // rows)][:rows])


@cache
def _dev(data: Path, half: int, rows: int | None) -> tuple[Any, ...]:
    return tuple(read_rows(data / "squad2" / "dev-a.json.gz", format="squad").examples[half::2])[:rows]


def _teacher(options: argparse.Namespace, seed: int) -> ModelState:
    chosen = _best(options)
    return load_model(kept(_name(options, f"teacher-{chosen:g}-{seed}"), lambda: _trained(options, chosen, seed)))


def _trained(options: argparse.Namespace, rate: float, seed: int) -> ModelState:
    step = Finetune(
        task="question-answering",
        steps=options.steps,
        batch_size=options.batch,
        learning_rate=rate,
        max_length=options.max_length,
        checks=4,
    )
    start = load_model(TOKENIZER, task="feature-extraction", max_length=256)
    return through(start, step, seed=seed, train=_rows(options.data, options.rows))


def _best(options: argparse.Namespace) -> float:
    """The teacher's rate, by its F1 on the half of dev-a that is not told, with seed 0."""
    found = {}
    for rate in RATES:
        state = load_model(kept(_name(options, f"teacher-{rate:g}-0"), partial(_trained, options, rate, 0)))
        found[rate] = _scores(state, _dev(options.data, 0, options.scored))["has_answer_f1"]
    return max(found, key=lambda rate: found[rate])


def _decoupled(options: argparse.Namespace, seed: int, split: int, compression: float | None) -> ModelState:
    name = f"split{split}-{compression or 1:g}x-{seed}"

    def make() -> ModelState:
        step = Decouple(
            split=split,
            compression=compression,
            steps=options.steps,
            compression_steps=None if compression is None else max(1, options.steps // 2),
            batch_size=options.batch,
            learning_rate=_best(options),
            max_length=options.max_length,
            checks=4,
        )
        return through(_teacher(options, seed), step, seed=seed, train=_rows(options.data, options.rows))

    return load_model(kept(_name(options, name), make))


def _name(options: argparse.Namespace, what: str) -> str:
    return f"decoupled-{options.steps}x{options.batch}-{options.max_length}-{options.rows or 'all'}-{what}"


def _told(options: argparse.Namespace, make: Callable[[], ModelState], *, rounded: bool = False) -> dict[str, Any]:
    state = make()
    with _int8_states(state) if rounded else _as_it_is():
        return _scores(state, _dev(options.data, 1, options.scored))


def _scores(state: ModelState, examples: Sequence[Question]) -> dict[str, float]:
    """In per cent. has_answer_f1: of the questions that have an answer, where one has to be given."""
    with torch_model(state) as model:
        found = score(model, examples, where="dev-a", null_answers=True)
        answerable = [row for row in examples if row.answers]
        forced = score(model, answerable, where="dev-a", null_answers=False)
    figures = {"f1": found["f1"], "always_null_f1": found["always_null_f1"], "has_answer_f1": forced["f1"]}
    return {name: round(100 * value, 2) for name, value in figures.items()}


@contextmanager
def _int8_states(state: ModelState) -> Iterator[None]:
    """Inside, the kept states of passages are rounded to int8 with a scale a token, as the passage store keeps them."""
    seam: Any = state.parts["encoder"].seam
    joined = seam.joined

    def rounding(states: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        scale = (states.abs().amax(-1, keepdim=True) / 127).to(torch.float16).float()
        rounded = (states / scale.clamp(min=1e-8)).round().clamp(-127, 127) * scale
        return joined(torch.where(types[..., None] == 1, rounded, states), types)

    seam.joined = rounding
    try:
        yield
    finally:
        del seam.joined


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def table(result: Mapping[str, Any]) -> str:
    means = result["means"]
    lines = ["| | F1, questions with an answer | F1, all | always null |", "|---|---|---|---|"]
    for name, one in means["has_answer_f1"].items():
        spread = f" ± {one['std']:.1f}" if one["seeds"] > 1 else ""
        lines.append(
            f"| {name} | {one['mean']:.1f}{spread} | {means['f1'][name]['mean']:.1f} | "
            f"{means['always_null_f1'][name]['mean']:.1f} |"
        )
    return "\n".join(lines)


def draw(result: Mapping[str, Any], file: Path) -> None:
    """F1 on questions with an answer over the splits."""
    means = result["means"]["has_answer_f1"]
    splits = [f"{split}-{LAYERS - split}" for split in range(1, LAYERS)]
    with matplotlib.rc_context({"svg.hashsalt": "edgec", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for ending, (label, style) in CURVES.items():
            shown = [(at, means[name + ending]) for at, name in enumerate(splits) if name + ending in means]
            if shown:
                places, values = zip(*shown, strict=True)
                axes.errorbar(places, [v["mean"] for v in values], [v["std"] for v in values], fmt=style, label=label)
        if "standard" in means:
            axes.axhline(means["standard"]["mean"], color="k", linestyle="--", label="standard")
        axes.set_xticks(range(len(splits)), splits)
        axes.set_xlabel("layers that read apart - together")
        axes.set_ylabel("F1, questions with an answer")
        axes.legend(frameon=False)
        axes.grid(axis="y", alpha=0.3)
        figure.savefig(file, metadata={"Date": None})
