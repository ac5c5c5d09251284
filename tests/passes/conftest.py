"""A tiny model to quantize, and what its layers are given, seen by hooks of the tests' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import SENTENCES, tiny
from torch import nn

from edgec.data.examples import Example
from edgec.models import load_model
from edgec.passes import Lora, run_pass
from edgec.state import ModelState, PassContext, TrainingData


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    """Input channel 5 of what the first layer's attention reads is far larger than the others."""
    folder = tmp_path_factory.mktemp("quantize") / "model"
    state = load_model(tiny("bert", "feature-extraction", folder, intermediate_size=32))
    with torch.no_grad():
        state.parts["encoder"].model.embeddings.LayerNorm.weight[5] = 30.0
    return state


@pytest.fixture
def ctx(tmp_path: Path) -> PassContext:
    return PassContext(tmp_path, SENTENCES)


@pytest.fixture(scope="session")
def inputs(bert: ModelState) -> dict[str, list[np.ndarray]]:
    """By layer, what it was given for each of SENTENCES, (tokens, channels)."""
    part = bert.parts["encoder"]
    seen: dict[str, list[np.ndarray]] = {}

    def keep(key: str) -> object:
        return lambda module, args, out: seen.setdefault(key, []).append(args[0].numpy().reshape(-1, args[0].shape[-1]))

    handles = [
        module.register_forward_hook(keep(f"encoder:{path}"))
        for path, module in part.named_modules()
        if isinstance(module, nn.Linear)
    ]
    for text in SENTENCES:
        ids = bert.tokenizer(text, return_tensors="pt")["input_ids"].to(torch.int32)
        with torch.inference_mode():
            part(ids, torch.ones_like(ids))
    for handle in handles:
        handle.remove()
    return seen


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> PassContext:
    """Sentences of two classes to train on."""
    rows = tuple(Example(text, label=str(place % 2)) for place, text in enumerate(SENTENCES))
    return PassContext(tmp_path_factory.mktemp("classes"), SENTENCES, data=TrainingData(rows))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> ModelState:
    """A tiny sentence encoder."""
    return load_model(tiny("bert", "feature-extraction", tmp_path_factory.mktemp("encoder") / "model"))


@pytest.fixture(scope="session")
def adapted(encoder: ModelState, classes: PassContext) -> ModelState:
    """The encoder as a classifier, with LoRA adapters of rank 4 and alpha 6, trained far enough that they count."""
    step = Lora(task="text-classification", r=4, alpha=6.0, steps=2, batch_size=3, learning_rate=1e-2)
    return run_pass(step, encoder, classes)
