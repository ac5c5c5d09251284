"""What the passes that train have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny

from edgec.errors import UserError
from edgec.models import load_model
from edgec.passes import Align, Decouple, Distill, Finetune, Lora

TASK = "question-answering"


@pytest.mark.parametrize(
    "step",
    [
        Finetune(task=TASK, max_length=33),
        Lora(task=TASK, max_length=33),
        Distill(keep=1, max_length=33),
        Decouple(split=1, max_length=33),
        Align(large="never/loaded", task=TASK, max_length=33),
    ],
    ids=lambda step: step.name,
)
def test_rows_longer_than_the_models_are_refused(step: Any, tmp_path: Path) -> None:
    """Cut without a word, they would train on less than was asked for."""
    tiny("bert", TASK, tmp_path / "m")
    state = load_model(str(tmp_path / "m"), task=TASK, max_length=32)
    with pytest.raises(UserError, match="max_length: 33 tokens are more than the 32 ") as refused:
        step.requires(state)
    assert "lower it" in (refused.value.hint or "")
