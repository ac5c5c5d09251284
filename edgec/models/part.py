"""The Part of a loaded model."""

from __future__ import annotations

from typing import Any

from edgec.models.families import FAMILIES
from edgec.nn.parts import Part
from edgec.state import ModelSpec


def make_part(model: Any, spec: ModelSpec) -> Part:
    """`model` (transformers) as the graph of spec.task.

    Tasks of single texts get no token_type_ids: they would be zero, which is what the model takes without
    them.
    """
    family = FAMILIES[spec.family]
    may_be_pairs = spec.task in ("text-classification", "question-answering")
    return Part(
        model,
        spec.task,
        token_types=family.token_types and may_be_pairs and model.config.type_vocab_size > 1,
        boolean_mask=family.boolean_mask,
        pooling=spec.pooling,
        normalize=spec.normalize,
    )
