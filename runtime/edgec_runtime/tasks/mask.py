"""fill-mask: the likeliest tokens for the mask tokens of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec_runtime.errors import ManifestInvalid, TextInvalid
from edgec_runtime.manifest import Manifest
from edgec_runtime.runner import Runner
from edgec_runtime.text import Encoded, Encoder, Row

from .base import TextModel, require_outputs, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgec_runtime.runner import Outputs

INTERPRETED = 5  # candidates a mask that golden vectors keep


@dataclass(frozen=True)
class MaskFill:
    """A candidate for one mask. token: as the vocabulary spells it; text: the whole text with this mask
    filled; start: the mask's place in the text, in characters; score: probability."""

    token: str
    score: float
    text: str
    start: int


class MaskFiller(TextModel):
    task = "fill-mask"

    def __init__(self, manifest: Manifest, encoder: Encoder, runner: Runner) -> None:
        super().__init__(manifest, encoder, runner)
        require_outputs(manifest, "logits")
        token, mask_id = manifest.postprocessing.mask_token, manifest.postprocessing.mask_id
        if token is None or mask_id is None or encoder.tokenizer.token_to_id(token) != mask_id:
            raise ManifestInvalid(
                f"postprocessing: mask_token {token!r} is not the tokenizer's token {mask_id}", "export again"
            )
        self.mask_token, self.mask_id = token, mask_id

    def fill_mask(self, text: str, top_k: int = 5) -> list[MaskFill]:
        """The `top_k` candidates for every mask of the text, mask by mask, best first.

        Raises TextInvalid where there is no mask within the tokens that the model reads, or EngineFailed.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        encoded = self.encode_all([text])
        return self._fills(text, encoded[0], self.outputs(encoded)[0], top_k)

    def encode(self, request: Any) -> Encoded:
        encoded = self.encoder.single(request)
        masks = int((encoded.content.ids == self.mask_id).sum())
        if not masks:
            raise TextInvalid(f"the text has no {self.mask_token}", f"put {self.mask_token} where a word is asked for")
        if masks != len(self._positions(encoded.rows[0])):
            raise TextInvalid(
                f"a {self.mask_token} stands beyond the {self.manifest.preprocessing.max_length} tokens "
                "that the model reads",
                "shorten the text before it",
            )
        return encoded

    def keep(self, row: Row, outputs: Outputs) -> Outputs:
        """Only the masks' rows: (masks, vocabulary). The rest of a long text's logits would fill the
        memory."""
        return {"logits": outputs["logits"][self._positions(row)]}

    def interpret(self, request: Any, encoded: Encoded, outputs: Sequence[Outputs]) -> list[dict[str, Any]]:
        return [asdict(fill) for fill in self._fills(request, encoded, outputs, INTERPRETED)]

    def _positions(self, row: Row) -> NDArray[np.intp]:
        inside = np.arange(len(row.ids))
        content = (inside >= row.start) & (inside < row.start + row.count)
        return np.flatnonzero(content & (row.ids == self.mask_id))

    def _fills(self, text: str, encoded: Encoded, outputs: Sequence[Outputs], top_k: int) -> list[MaskFill]:
        tokenizer = self.encoder.tokenizer
        offsets = encoded.content.encoding.offsets
        row = encoded.rows[0]
        fills: list[MaskFill] = []
        for position, logits in zip(self._positions(row), outputs[0]["logits"], strict=True):
            start, end = offsets[int(position) - row.start]
            # A mask token may take the space before it along (lstrip, as RoBERTa's does).
            start += len(text[start:end]) - len(text[start:end].lstrip())
            probabilities = softmax(logits)
            for best in np.argsort(-probabilities, kind="stable")[:top_k]:
                token = tokenizer.id_to_token(int(best)) or ""
                word = tokenizer.decode([int(best)]).strip()
                filled = text[:start] + word + text[end:]
                fills.append(MaskFill(token, float(probabilities[best]), filled, start))
        return fills
