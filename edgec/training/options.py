"""What every pass that trains can be told. No torch: options are checked before anything heavy is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MEANINGS = """
    learning_rate: the highest, after the warm-up. epochs: how often the training rows are gone through. steps: how many
    optimizer steps are taken, whatever the epochs; null: as the epochs say. batch_size: rows a step and process.
    accumulate: how many batches are summed up before a step. warmup: the share of the steps in which the learning rate
    rises from 0. schedule: how it goes on, to 0 along a line or a cosine, or constant. weight_decay: of AdamW, on
    matrices alone. clip: the largest norm of the gradient; 0: any. layer_decay: the learning rate of a layer is that of
    the one above it times this, the head's being learning_rate (Howard and Ruder 2018, discriminative fine-tuning).
    metric: what picks the best weights on data.validation; null: the task's main one. checks: about how often in all,
    at equal distances, the loss is noted, and the model scored where there is data.validation. patience: training ends
    after this many checks without a better score; null: never early.
"""
"""One sentence or two for each option: the docstring of a pass ends with them."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    __doc__ = f"""How a pass trains.
    {MEANINGS}"""

    learning_rate: float = 5e-5
    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    warmup: float = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.01
    clip: float = 1.0
    layer_decay: float = 1.0
    metric: str | None = None
    checks: int = 10
    patience: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, naming the option, for a value out of its range."""
        for name in ("learning_rate", "epochs"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} should be above 0, not {value}")
        for name in ("steps", "batch_size", "accumulate", "checks", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} should be at least 1, not {value}")
        for name in ("weight_decay", "clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} should not be below 0")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps, at least 0 and below 1, not {self.warmup}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay should be above 0 and at most 1, not {self.layer_decay}")

    @property
    def trains(self) -> TrainingOptions:
        """These options alone, without those of the pass that has them."""
        return TrainingOptions(**{name: getattr(self, name) for name in TrainingOptions.__dataclass_fields__})
