"""A standard model cut in two (edgec.nn.seam): the seam's first weights, and a tokenizer that tells the texts apart."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from tokenizers import Tokenizer, processors

from edgec.errors import ModelError
from edgec.nn.seam import Seam
from edgec.state import ModelState

_PROBE: Final = "a"


def decoupled(state: ModelState, split: int) -> ModelState:
    """`state`, whose part is changed in place, cut above its first `split` layers.

    The global embeddings begin as the model's own (section 3.3); a model without segments begins with zeros there.
    """
    part: Any = state.parts["encoder"]
    table = part.model.base_model.embeddings
    positions = table.position_embeddings.weight
    first = int(state.tokenizer.pad_token_id) + 1 if hasattr(table, "create_position_ids_from_input_ids") else 0
    seam = Seam(split, part.hidden_size, len(positions), first=first)
    segments = getattr(table, "token_type_embeddings", None)
    project = getattr(part.model.base_model, "embeddings_project", None)
    with torch.no_grad():
        seam.positions.weight.copy_(_projected(positions, project))
        seam.segments.weight.zero_()
        if segments is not None:
            own = _projected(segments.weight, project)
            seam.segments.weight.copy_(own[:2] if len(own) > 1 else own.expand(2, -1))
    part.decouple(seam)
    return dataclasses.replace(state, tokenizer=telling_apart(state.tokenizer))


def _projected(table: torch.Tensor, project: Any) -> torch.Tensor:
    """ELECTRA's tables are narrower than its layers."""
    return table if project is None else table @ project.weight.T


def telling_apart(tokenizer: Any) -> Any:
    """A copy of `tokenizer` whose pairs have type 0 in the first text and 1 in the second, special tokens included.

    Families without segments give 0 everywhere. Of the special tokens between the texts the first ends the first text.
    Raises ModelError where the tokenizer does not keep a text in one piece.
    """
    copied = copy.deepcopy(tokenizer)
    backend: Tokenizer = copied.backend_tokenizer
    single, pair = backend.encode(_PROBE), backend.encode(_PROBE, _PROBE)
    texts = [place for place, text in enumerate(pair.sequence_ids) if text == 1]
    if not texts or texts != list(range(texts[0], texts[-1] + 1)):
        raise ModelError("the tokenizer does not keep the second text of a pair in one piece")
    ends = max(place for place, text in enumerate(pair.sequence_ids) if text == 0) + 1
    second = min(ends + 1, texts[0])  # the special token after the first text is its own
    wanted = [int(place >= second) for place in range(len(pair.ids))]
    if pair.type_ids == wanted:
        return copied
    special = {token: id for encoding in (single, pair) for token, id, is_special in _specials(encoding) if is_special}
    template = processors.TemplateProcessing(
        single=_template(single, [0] * len(single.ids)),
        pair=_template(pair, wanted),
        special_tokens=list(special.items()),
    )
    # A byte-level tokenizer may leave the blank before a word out of its offsets, in its post-processor.
    trims = '"trim_offsets":true' in json.dumps(json.loads(backend.to_str())["post_processor"], separators=(",", ":"))
    backend.post_processor = (
        processors.Sequence([processors.ByteLevel(trim_offsets=True), template]) if trims else template
    )
    return copied


def _specials(encoding: Any) -> Iterator[tuple[str, int, bool]]:
    for token, id, special in zip(encoding.tokens, encoding.ids, encoding.special_tokens_mask, strict=True):
        yield token, id, bool(special)


def _template(encoding: Any, types: Sequence[int]) -> list[str]:
    """Pieces such as "[CLS]:0" and "$A:0"."""
    pieces: list[str] = []
    for token, text, type_id in zip(encoding.tokens, encoding.sequence_ids, types, strict=True):
        piece = f"{token}:{type_id}" if text is None else f"${'AB'[text]}:{type_id}"
        if text is None or piece not in pieces:
            pieces.append(piece)
    return pieces
