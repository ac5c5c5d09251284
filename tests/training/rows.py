"""Tiny models with labelled rows of every task, for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import SENTENCES, tiny

from edgec.data.examples import Answer, Example, Labelled, Question, Tagged
from edgec.models import load_model
from edgec.state import ModelState

CONTEXT = "Ada walked to the old house near the river and Cara wrote a long letter in the garden."
EXAMPLES: dict[str, tuple[Labelled, ...]] = {
    "text-classification": tuple(
        Example(text, label=("negative", "neutral", "positive")[i % 3]) for i, text in enumerate(SENTENCES)
    ),
    "token-classification": (
        Tagged(("Ada", "walked", "to", "Bern", "."), ("B-PER", "O", "O", "B-LOC", "O")),
        Tagged(("Cara", "works", "in", "old", "Denmark"), ("B-PER", "O", "O", "B-LOC", "I-LOC")),
        Tagged(("Coffee", "in", "the", "morning", "!"), ("O", "O", "O", "O", "O")),
    ),
    "question-answering": (
        Question("1", "Where was Cara?", CONTEXT, (Answer("the garden", CONTEXT.index("the garden")),)),
        Question("2", "Who walked?", CONTEXT, (Answer("Ada", 0),)),
        Question("3", "What was cold?", CONTEXT),
    ),
    "feature-extraction": tuple(Example(text, SENTENCES[-1 - i], str(float(i))) for i, text in enumerate(SENTENCES)),
}


def still(family: str) -> dict[str, Any]:
    """Settings without dropout: training is then a function of the rows alone."""
    if family == "distilbert":
        return {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "qa_dropout": 0.0}
    return {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}


def model(task: str, folder: Path, family: str = "bert", seed: int = 0, **config: Any) -> ModelState:
    """A tiny model without dropout."""
    return load_model(tiny(family, task, folder, seed, **{**still(family), **config}))
