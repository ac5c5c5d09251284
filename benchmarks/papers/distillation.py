"""Distillation of a joint MasakhaNER model into encoders that are about a quarter smaller, by language.

The size is that of the encoder's layers: the vocabulary is left as it is. Beside each student stands the same smaller
encoder trained on the labels alone, for as many steps, and the teacher with as many steps more; one student learns from
that.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from edgec.models import load_model
from edgec.passes import Distill, Prune
from edgec.state import ModelState

from . import masakhaner
from .cells import Cell
from .models import kept, parameters, through

STEPS: Final = masakhaner.STEPS
STUDENTS: Final[dict[str, tuple[Prune, ...]]] = {
    "5 layers, FFN 1280": (Prune(structure="layers", keep=5), Prune(structure="ffn", keep=1280, scope="layer")),
    "6 layers, FFN 960": (Prune(structure="ffn", keep=960, scope="layer"),),
}
LONGER: Final = f"teacher, {STEPS} steps more"
SETTINGS: Final = {
    "model": "all-MiniLM-L6-v2",
    "languages": masakhaner.LANGUAGES,
    "sentences_a_language": masakhaner.SENTENCES,
    "teacher_steps": masakhaner.STEPS,
    "steps": STEPS,
    "learning_rate": masakhaner.RATE,
    "loss": "0.5 labels + 1.0 logits at temperature 2 + 1.0 hidden states",
}
PAPER: Final = "22 to 31 % smaller at 1 to 2 % of average F1"


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    data: Path = options.data
    for seed in range(options.seeds):
        yield Cell("teacher", seed, partial(_teacher, data, seed, False))
        yield Cell(LONGER, seed, partial(_teacher, data, seed, True))
        for name in STUDENTS:
            yield Cell(f"{name}, distilled", seed, partial(_student, data, seed, name))
            yield Cell(f"{name}, labels alone", seed, partial(_student, data, seed, name, distilled=False))
        name = next(iter(STUDENTS))
        yield Cell(f"{name}, distilled from {LONGER}", seed, partial(_student, data, seed, name, longer=True))


def _folder(data: Path, seed: int, longer: bool) -> Path:
    """Of the teacher, trained where no cell before needed it."""
    folder = masakhaner.dense_folder(data, seed)
    if not longer:
        return folder
    train = masakhaner.rows(data)
    more = masakhaner.training(STEPS)
    return kept(f"{folder.name}-and-{STEPS}", lambda: through(load_model(folder), more, seed=seed, train=train))


def _teacher(data: Path, seed: int, longer: bool) -> dict[str, Any]:
    state = load_model(_folder(data, seed, longer))
    return {"smaller": 0.0, **parameters(state), **masakhaner.by_language(state, data)}


def _student(data: Path, seed: int, name: str, distilled: bool = True, longer: bool = False) -> dict[str, Any]:
    folder = _folder(data, seed, longer)
    teacher = load_model(folder)
    train = masakhaner.rows(data)
    cut = through(teacher, *STUDENTS[name], seed=seed, train=train)
    state: ModelState
    if distilled:
        step = Distill(
            teacher=str(folder),
            steps=STEPS,
            learning_rate=masakhaner.RATE,
            batch_size=masakhaner.BATCH,
            labels=0.5,
            logits=1.0,
            hidden=1.0,
            checks=4,
        )
        state = through(cut, step, seed=seed, train=train)
    else:
        state = through(cut, masakhaner.training(STEPS), seed=seed, train=train)
    sizes = parameters(state)
    smaller = 1 - sizes["encoder_parameters"] / parameters(teacher)["encoder_parameters"]
    return {"smaller": round(smaller, 4), **sizes, **masakhaner.by_language(state, data)}


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "paper": PAPER,
        "means": masakhaner.means(found),
        "encoder_smaller": {one["name"]: one["smaller"] for one in found},
    }


def table(result: dict[str, Any]) -> str:
    smaller = result["encoder_smaller"]
    return masakhaner.table({f"{name} (-{smaller[name]:.0%})": row for name, row in result["means"].items()})
