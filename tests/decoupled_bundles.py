"""Tiny decoupled models and their bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import SENTENCES, tiny

from edgec.data.examples import Answer, Labelled, Question
from edgec.exporter import Exporter
from edgec.models import load_model
from edgec.passes import Decouple, Quantize, run_pass
from edgec.state import ModelState, PassContext, TrainingData
from edgec.target import Target

QUESTIONS: tuple[Labelled, ...] = (
    Question("1", "Who works?", "Ada works in Bern", (Answer("Ada", 0),)),
    Question("2", "Who reads?", "The river is cold . Ada works in Bern"),
)


def decoupled_state(folder: Path, family: str = "bert", *, scheme: str | None = "static", **options: Any) -> ModelState:
    """3 layers, of which 2 read apart (of other families than bert 2 and 1: tracing takes most of the time), states
    compressed to 16 channels; trained for two steps."""
    layers = 3 if family == "bert" else 2
    depth = {"n_layers" if family == "distilbert" else "num_hidden_layers": layers}
    source = tiny(family, "question-answering", folder / f"{family}-source", intermediate_size=64, **depth)
    ctx = PassContext(folder / "work", SENTENCES, data=TrainingData(train=QUESTIONS))
    settings: dict[str, Any] = {
        "split": layers - 1,
        "steps": 2,
        "batch_size": 2,
        "checks": 1,
        "compression": 2,
        **options,
    }
    state = run_pass(Decouple(**settings), load_model(source), ctx)
    return state if scheme is None else run_pass(Quantize(scheme=scheme), state, ctx)  # type: ignore[arg-type]


def write(state: ModelState, folder: Path, target: Target) -> dict[str, Path]:
    """Its bundles, by precision."""
    exporter = Exporter(state, name="decoupled")
    found = {precision: folder / precision for precision in ("fp32", "int8")}
    for precision, path in found.items():
        if precision == "fp32" or state.quantization is not None:
            exporter.write(path, target, precision=precision)
    return found
