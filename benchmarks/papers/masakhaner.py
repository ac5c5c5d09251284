"""What the suites on MasakhaNER share: the joint model of five languages, and F1 by language."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgec.data.examples import Labelled
from edgec.models import load_model
from edgec.passes import Finetune
from edgec.state import ModelState

from .cells import over_seeds
from .data import LANGUAGES, Split, masakhaner
from .models import kept, large, scores, tagger, through

SENTENCES: Final = 1000
"""Training sentences of each language."""

STEPS: Final = 400
"""Of 16 sentences: 1.3 times through them."""

RATE: Final = 5e-4
"""The same for every model of these suites. After 160 steps, on the selection half of dev, it was better than 2e-4."""

BATCH: Final = 16


@cache
def split(data: Path) -> dict[str, Split]:
    return masakhaner(data, SENTENCES)


def rows(data: Path, languages: Sequence[str] = LANGUAGES) -> tuple[Labelled, ...]:
    """The training sentences of these languages."""
    return tuple(example for language in languages for example in split(data)[language].train)


def training(steps: int = STEPS, rate: float = RATE) -> Finetune:
    return tagger(steps, rate, batch_size=BATCH, labels=LABELS)


LABELS: Final = ("O", *(f"{prefix}-{kind}" for kind in ("DATE", "LOC", "ORG", "PER") for prefix in "BI"))


def dense_folder(data: Path, seed: int, languages: tuple[str, ...] = LANGUAGES) -> Path:
    """The build of the joint model, fine-tuned: what compression starts from. Trained where it is not there yet."""
    name = f"masakhaner-{'-'.join(languages)}-{SENTENCES}-{STEPS}-{RATE:g}-{seed}"
    return kept(name, lambda: through(large(), training(), seed=seed, train=rows(data, languages)))


@cache
def dense(data: Path, seed: int, languages: tuple[str, ...] = LANGUAGES) -> ModelState:
    return load_model(dense_folder(data, seed, languages))


def by_language(state: ModelState, data: Path, languages: Iterable[str] = LANGUAGES) -> dict[str, Any]:
    """Span F1 in per cent of each language on the reported half of its dev, and the mean."""
    found = {language: scores(state, split(data)[language].report)["span_f1"] for language in languages}
    return {"f1": float(np.mean(list(found.values()))), "languages": found}


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Markdown: name -> {"mean" or language -> {"mean", "std"}}."""
    columns = ["mean", *LANGUAGES]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, found in rows.items():
        values = (
            f"{found[column]['mean']:.1f}" + (f" ± {found[column]['std']:.1f}" if found[column]["std"] else "")
            for column in columns
        )
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def means(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Over the seeds: name -> {"mean" or language -> {"mean", "std", "seeds"}}."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, figures in over_seeds(found, "f1").items():
        result[name] = {"mean": figures}
    for language in LANGUAGES:
        known = [one for one in found if language in one["languages"]]
        flat = [{"name": one["name"], "f1": one["languages"][language]} for one in known]
        for name, figures in over_seeds(flat, "f1").items():
            result[name][language] = figures
    return result
