"""What a decoupled model saves: multiply-accumulates by component, against the same layers on whole rows.

ElFadeel and Peshterliev, "Decoupled Transformer for Scalable Inference in Open-domain Question Answering", Table 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from edgec_runtime.decoupled import CROSS, INPUT

from edgec.auditing.graph import GraphAudit

QUESTION_SHARE: Final = 8
"""Of a row, an eighth is the question: 64 of 512 tokens, as in the paper's long inputs."""


@dataclass(frozen=True)
class Components:
    """Multiply-accumulates for one question and one passage.

    question, passage: of the input component on either; the passage's are spent once, when it is indexed. cross: of the
    cross component. standard: of a model whose every layer reads both together. cross_ratio: cross / standard, the
    paper's figure; answer_ratio: with the question's own share, (question + cross) / standard.
    """

    question_tokens: int
    passage_tokens: int
    question: int
    passage: int
    cross: int
    standard: int
    cross_ratio: float
    answer_ratio: float


def count(
    parts: Mapping[str, GraphAudit], run: Callable[[int], GraphAudit], question_tokens: int, tokens: int
) -> Components:
    """parts: the audits of `input` on the question's tokens and of `cross` on all. run: that of `input` on a row of so
    many tokens. tokens: of question and passage."""
    question, passage = parts[INPUT].macs.total, run(tokens - question_tokens).macs.total
    below, cross = run(tokens), parts[CROSS]
    # What a whole model has no need of: the layers that compress and undo it.
    seam = sum(
        layer.int8 + layer.float + layer.weight_only
        for one in (below, cross)
        for layer in one.layers
        if layer.layer.startswith("seam.")
    )
    standard = below.macs.total + cross.macs.total - seam
    return Components(
        question_tokens,
        tokens - question_tokens,
        question,
        passage,
        cross.macs.total,
        standard,
        round(cross.macs.total / standard, 4),
        round((question + cross.macs.total) / standard, 4),
    )
