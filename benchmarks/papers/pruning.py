"""Magnitude pruning of a joint MasakhaNER model, before and after fine-tuning, by language; and on a language left out.

The paper prunes AfriBERTa. Every pruned model has a dense control that was trained for as many steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from edgec.passes import Prune

from . import masakhaner
from .cells import Cell
from .data import LANGUAGES
from .models import large, through

SPARSITIES: Final = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95)
RECOVERY: Final = 100
RECOVERED_WITHOUT: Final = (0.5, 0.7)
"""Sparsities whose recovery is trained where a language is left out: around where recovery begins to matter."""
SETTINGS: Final = {
    "model": "all-MiniLM-L6-v2",
    "languages": LANGUAGES,
    "sentences_a_language": masakhaner.SENTENCES,
    "steps": masakhaner.STEPS,
    "recovery_steps": RECOVERY,
    "batch": masakhaner.BATCH,
    "learning_rate": masakhaner.RATE,
    "scope": "global",
}
PAPER: Final = "competitive F1 up to 50 to 60 % sparsity; collapse beyond about 70 % where pruned after fine-tuning"


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    data: Path = options.data
    for seed in range(options.seeds):
        yield Cell("dense", seed, partial(_dense, data, seed))
        yield Cell("dense, recovery steps more", seed, partial(_control, data, seed))
        for sparsity in SPARSITIES:
            yield Cell(f"after, {sparsity:.0%}", seed, partial(_after, data, seed, sparsity, 0))
            yield Cell(f"after, {sparsity:.0%}, recovered", seed, partial(_after, data, seed, sparsity, RECOVERY))
            yield Cell(f"before, {sparsity:.0%}", seed, partial(_before, data, seed, sparsity))
    for language in LANGUAGES:
        yield Cell(f"without {language}: dense", 0, partial(_left_out, data, language, None, 0))
        for sparsity in SPARSITIES:
            yield Cell(f"without {language}: {sparsity:.0%}", 0, partial(_left_out, data, language, sparsity, 0))
        for sparsity in RECOVERED_WITHOUT:
            name = f"without {language}: {sparsity:.0%}, recovered"
            yield Cell(name, 0, partial(_left_out, data, language, sparsity, RECOVERY))


def _dense(data: Path, seed: int) -> dict[str, Any]:
    return masakhaner.by_language(masakhaner.dense(data, seed), data)


def _control(data: Path, seed: int) -> dict[str, Any]:
    further = through(
        masakhaner.dense(data, seed), masakhaner.training(RECOVERY), seed=seed, train=masakhaner.rows(data)
    )
    return masakhaner.by_language(further, data)


def _after(data: Path, seed: int, sparsity: float, recovery: int) -> dict[str, Any]:
    state = through(masakhaner.dense(data, seed), Prune(sparsity=sparsity), seed=seed)
    if recovery:
        state = through(state, masakhaner.training(recovery), seed=seed, train=masakhaner.rows(data))
    return {"sparsity": sparsity, **masakhaner.by_language(state, data)}


def _before(data: Path, seed: int, sparsity: float) -> dict[str, Any]:
    state = through(large(), Prune(sparsity=sparsity), masakhaner.training(), seed=seed, train=masakhaner.rows(data))
    return {"sparsity": sparsity, **masakhaner.by_language(state, data)}


def _left_out(data: Path, language: str, sparsity: float | None, recovery: int) -> dict[str, Any]:
    """F1 on a language that no step of the training saw."""
    others = tuple(other for other in LANGUAGES if other != language)
    state = masakhaner.dense(data, 0, others)
    if sparsity is not None:
        state = through(state, Prune(sparsity=sparsity), seed=0)
    if recovery:
        state = through(state, masakhaner.training(recovery), seed=0, train=masakhaner.rows(data, others))
    found = masakhaner.by_language(state, data, [language])
    return {"sparsity": sparsity, "recovered": recovery > 0, "left_out": language, **found}


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    joint = masakhaner.means([one for one in found if "left_out" not in one])
    zero_shot: dict[str, dict[str, float]] = {}
    for one in found:
        if "left_out" in one:
            _, _, name = one["name"].partition(": ")
            zero_shot.setdefault(name, {})[one["left_out"]] = one["f1"]
    return {"paper": PAPER, "means": joint, "zero_shot": zero_shot}


def table(result: dict[str, Any]) -> str:
    lines = [masakhaner.table(result["means"])]
    if result["zero_shot"]:
        lines += ["", f"| left out of training | {' | '.join(LANGUAGES)} |", "|---" * (len(LANGUAGES) + 1) + "|"]
        for name, figures in result["zero_shot"].items():
            lines.append(
                f"| {name} | {' | '.join(f'{figures[one]:.1f}' if one in figures else '' for one in LANGUAGES)} |"
            )
    return "\n".join(lines)
