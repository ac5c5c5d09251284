"""A decoupled transformer: two parts, of which the lower one reads the two texts of a row apart.

ElFadeel and Peshterliev, "Decoupled Transformer for Scalable Inference in Open-domain Question Answering", section 3.
The part `input` makes `states` of one text, the part `cross` makes the task's outputs of the states of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .errors import PartMissing
from .manifest import Part

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .engine import Engine

INPUT: Final = "input"
CROSS: Final = "cross"


def whole(parts: Sequence[Part], where: str = "the manifest") -> Part:
    """What the parts are together: one that takes ids and gives the task's outputs. Raises PartMissing."""
    if len(parts) == 1:
        return parts[0]
    names = [part.name for part in parts]
    if names != [INPUT, CROSS]:
        raise PartMissing(
            f"{where} has the parts {', '.join(names) or 'none'}; a model is one part, or {INPUT} and {CROSS}",
            "export the bundle again",
        )
    return replace(parts[1], inputs=parts[0].inputs)


def together(engines: Sequence[Engine]) -> Engine:
    """The engine of a model whose parts these run, in the manifest's order."""
    return engines[0] if len(engines) == 1 else Components(*engines)


class Components:
    """An Engine of both parts: rows of ids in, the task's outputs out, the texts of a row apart below the seam."""

    def __init__(self, input: Engine, cross: Engine) -> None:
        self.input, self.cross = input, cross

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """input_ids, attention_mask, token_type_ids: (batch, tokens). Raises EngineFailed."""
        ids, mask, types = (feeds[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
        states: NDArray[Any] | None = None
        for side in (0, 1):
            places = [np.flatnonzero(row & (kind == side)) for row, kind in zip(mask != 0, types, strict=True)]
            if not any(len(found) for found in places):
                continue
            kept = self.encode([row[found] for row, found in zip(ids, places, strict=True)], side, mask.dtype)["states"]
            if states is None:
                states = np.zeros((*ids.shape, kept.shape[-1]), np.float32)
            for row, found in enumerate(places):
                states[row, found] = kept[row, : len(found)]
        assert states is not None  # a row has a token
        return self.cross.run({"states": states, "attention_mask": mask, "token_type_ids": types})

    def encode(self, texts: Sequence[NDArray[Any]], side: int, dtype: Any = np.int32) -> dict[str, NDArray[Any]]:
        """What the part `input` gives of texts, ids without padding: states (texts, tokens, width), text_embedding.

        side: 0 the first text of a row, 1 the second. Raises EngineFailed.
        """
        shape = len(texts), max(1, *(len(text) for text in texts))
        ids, mask = np.zeros(shape, dtype), np.zeros(shape, dtype)
        for row, text in enumerate(texts):
            # A row of nothing but padding has no softmax.
            ids[row, : len(text)], mask[row, : max(1, len(text))] = text, 1
        return self.input.run({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.full_like(ids, side)})
