"""The model families that edgec knows, and what is true of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

TASKS: Final = (
    "feature-extraction",
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
)


@dataclass(frozen=True)
class Family:
    """What export and loading need to know about one `model_type` of transformers.

    opset: the ONNX opset of its float graph; 23 has a native Attention operator. attention: transformers'
    attention implementation. boolean_mask: see edgec.nn.parts.Part. token_types: takes token_type_ids where
    its configuration has more than one type. pad_positions: position ids are counted from the padding id,
    which therefore must be the tokenizer's, and which takes `pad_id + 1` rows of the position table away. decouples:
    positions come from a table below the first layer alone, so that its layers can be cut in two (edgec.nn.seam).
    """

    name: str
    opset: int
    attention: str = "sdpa"
    boolean_mask: bool = True
    token_types: bool = False
    pad_positions: bool = False
    decouples: bool = False


# DeBERTa and MPNet have relative positions inside their attention, which transformers runs without SDPA.
# ModernBERT alternates full and sliding-window layers, so that one mask for all layers would be wrong; at
# opset 23 torch writes its rotary embedding as an ONNX RotaryEmbedding that onnxruntime 1.31 refuses.
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family("bert", 23, token_types=True, decouples=True),
            Family("distilbert", 23, decouples=True),
            Family("roberta", 23, pad_positions=True, decouples=True),
            Family("xlm-roberta", 23, pad_positions=True, decouples=True),
            Family("electra", 23, token_types=True, decouples=True),
            Family("deberta-v2", 23, attention="eager", boolean_mask=False, token_types=True),
            Family("mpnet", 23, attention="eager", boolean_mask=False, pad_positions=True),
            Family("modernbert", 18, boolean_mask=False),
        )
    }
)
