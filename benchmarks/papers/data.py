"""The data sets, cut as the suites use them. Dev is halved: even rows select, odd rows are told and tune nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from edgec.data.examples import Labelled
from edgec.data.load import read_rows

LANGUAGES: Final = ("hau", "swa", "yor", "ibo", "kin")
T = TypeVar("T")


@dataclass(frozen=True)
class Split:
    """train: what models are trained on. select: what choices are made on. report: what is told."""

    train: tuple[Labelled, ...]
    select: tuple[Labelled, ...]
    report: tuple[Labelled, ...]


def pos_english(data: Path, rows: int) -> Split:
    folder = data / "ud_english_ewt"
    train, dev = (read_rows(folder / f"en_ewt-ud-{part}.conllu.gz").examples for part in ("train", "dev"))
    return _split(train, dev, rows)


def pos_german(data: Path, rows: int) -> Split:
    """GSD has no training file here: PUD and part of LIT train, GSD's dev is the dev."""
    train = (
        *read_rows(data / "ud_german_pud" / "de_pud-ud-train.conllu.gz").examples,
        *read_rows(data / "ud_german_lit" / "de_lit-ud-train.conllu.gz").examples,
    )
    dev = read_rows(data / "ud_german_gsd" / "de_gsd-ud-dev.conllu.gz").examples
    known = {tag for example in train for tag in example.tags}  # type: ignore[union-attr]
    dev = tuple(example for example in dev if set(example.tags) <= known)  # type: ignore[union-attr]
    return _split(train, dev, rows)


def ner_english(data: Path, rows: int) -> Split:
    folder = data / "multiconer2_en"
    train, dev = (read_rows(folder / name, format="conll").examples for name in ("train.conll.gz", "dev.conll"))
    return _split(train, dev, rows)


def questions(data: Path, rows: int) -> Split:
    dev = read_rows(data / "squad2" / "dev-a.json.gz", format="squad").examples
    return _split(train_questions(data), dev, rows)


def train_questions(data: Path) -> tuple[Labelled, ...]:
    files = ("train-from-dev.json.gz", "train-orig-sub.json.gz", "train-v1-sub.json")
    return tuple(row for name in files for row in read_rows(data / "squad2" / name, format="squad").examples)


def masakhaner(data: Path, rows: int, languages: Sequence[str] = LANGUAGES) -> dict[str, Split]:
    """By language, `rows` training sentences each."""
    folder = data / "masakhaner2"
    found = {}
    for language in languages:
        train = read_rows(folder / language / "train.conll.gz", format="conll").examples
        dev = read_rows(folder / language / "dev.conll", format="conll").examples
        found[language] = _split(train, dev, rows)
    return found


def drawn(rows: Sequence[T], count: int, seed: int = 0) -> tuple[T, ...]:
    """`count` of the rows in their order, the same whatever the suite: a fixed draw, so that nothing is sorted in."""
    if len(rows) <= count:
        return tuple(rows)
    chosen = np.random.default_rng(seed).choice(len(rows), count, replace=False)
    return tuple(rows[index] for index in sorted(chosen))


def _split(train: Sequence[Labelled], dev: Sequence[Labelled], rows: int) -> Split:
    return Split(drawn(train, rows), tuple(dev[0::2]), tuple(dev[1::2]))
