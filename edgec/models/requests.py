"""Texts as the requests of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgec.data.examples import Text
from edgec.errors import DataError


def requests_for(task: str, texts: Sequence[Text], *, mask_token: str = "[MASK]") -> list[Any]:
    """Texts as the requests that a model of `task` takes.

    A pair is two texts where the task reads one at a time, and question and context for question-answering,
    where a single text is asked about itself. fill-mask hides a word of a text that has no mask.
    """
    if not texts:
        raise DataError("there is no text to compare the models on", "give at least one text")
    if task == "text-classification":
        return list(texts)
    if task == "question-answering":
        pairs = [text if isinstance(text, tuple) else (text, text) for text in texts]
        return [{"question": question, "context": context} for question, context in pairs]
    single = [part for text in texts for part in (text if isinstance(text, tuple) else (text,))]
    if task == "fill-mask":
        return [text if mask_token in text else _masked(text, mask_token) for text in single]
    return single


def _masked(text: str, mask_token: str) -> str:
    """One of the first ten words hidden: near enough to the start to be read whatever the model's length."""
    words = text.split(maxsplit=10)
    if not words:
        return mask_token
    hidden = min(len(words), 10) // 2
    return " ".join([*words[:hidden], mask_token, *words[hidden + 1 :]])
