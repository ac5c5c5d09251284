"""A passage, as people use it and as bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import PassageInvalid
from .header import Header
from .quantize import dequantize, quantize

ALIGNMENT: Final = 64
_BYTES_LIMIT: Final = 1 << 32


@dataclass(frozen=True, eq=False)
class Passage:
    """A piece of text with what the input component computed of it.

    id: unique in the store. text: the passage.
    offsets: int32 (tokens, 2), first character and the one after the last of each content token, in `text`.
    states: float32 (tokens, width).
    embedding: (dimension,) for search, or None where the store keeps none.
    title, document: of what it is a piece; empty where that is not known.
    start: the character of the document at which `text` begins.
    """

    id: str
    text: str
    offsets: NDArray[np.int32]
    states: NDArray[np.float32]
    embedding: NDArray[np.floating[Any]] | None = None
    title: str = ""
    document: str = ""
    start: int = 0


@dataclass(frozen=True)
class EncodedPassage:
    """A passage as bytes: its record, and the lengths that tell the record's parts apart."""

    id: bytes
    title_bytes: int
    document_bytes: int
    text_bytes: int
    start: int
    tokens: int
    record: bytes = field(repr=False)
    embedding: bytes = field(repr=False)


def record_bytes(header: Header, tokens: int, texts: int) -> int:
    """Length of a record: offsets, states and `texts` bytes of text, filled up to a multiple of 64."""
    return -(-(tokens * (8 + header.token_bytes) + texts) // ALIGNMENT) * ALIGNMENT


def encode(passage: Passage, header: Header) -> EncodedPassage:
    """Raises PassageInvalid, naming passage and reason, for what the store cannot keep."""
    name = _utf8(passage.id, "id", passage.id)
    if not name:
        raise PassageInvalid("a passage has no id", "give every passage an id of its own")
    texts = [_utf8(passage.id, key, getattr(passage, key)) for key in ("title", "document", "text")]
    if not 0 <= passage.start < 1 << 64:
        raise _invalid(passage.id, f"start {passage.start} is no place in a document", "give a character, from 0 on")
    offsets = _offsets(passage)
    states = _states(passage, header, len(offsets))
    content = offsets.tobytes() + states + b"".join(texts)
    size = record_bytes(header, len(offsets), sum(map(len, texts)))
    if size >= _BYTES_LIMIT:
        raise _invalid(passage.id, f"it takes {size} bytes, {_BYTES_LIMIT} or more", "split it")
    record = content + bytes(size - len(content))
    title, document, text = map(len, texts)
    return EncodedPassage(name, title, document, text, passage.start, len(offsets), record, _embedding(passage, header))


def decode(encoded: EncodedPassage, header: Header) -> Passage:
    """What `encode` was given, with the states as they are kept."""
    offsets = np.frombuffer(encoded.record, "<i4", encoded.tokens * 2).reshape(-1, 2)
    place = encoded.tokens * (8 + header.token_bytes)
    texts = []
    for size in (encoded.title_bytes, encoded.document_bytes, encoded.text_bytes):
        texts.append(encoded.record[place : place + size].decode())
        place += size
    title, document, text = texts
    embedding = np.frombuffer(encoded.embedding, embedding_dtype(header)) if header.embedding_dim else None
    return Passage(
        encoded.id.decode(), text, offsets, decode_states(encoded, header), embedding, title, document, encoded.start
    )


def decode_states(encoded: EncodedPassage, header: Header) -> NDArray[np.float32]:
    """float32 (tokens, width), dequantised."""
    tokens, width, place = encoded.tokens, header.component.width, encoded.tokens * 8
    if header.states == "float16":
        values = np.frombuffer(encoded.record, "<f2", tokens * width, place)
        return values.astype(np.float32).reshape(tokens, width)
    scales = np.frombuffer(encoded.record, "<f2", tokens, place)
    integers = np.frombuffer(encoded.record, np.int8, tokens * width, place + tokens * 2)
    return dequantize(scales, integers.reshape(tokens, width))


def embedding_dtype(header: Header) -> np.dtype[Any]:
    """Of the file `embeddings`."""
    return np.dtype("<f2" if header.embedding == "float16" else "<f4")


def _offsets(passage: Passage) -> NDArray[np.int32]:
    offsets = np.asarray(passage.offsets)
    if offsets.size == 0:
        raise _invalid(passage.id, "it has no tokens", "leave empty texts out")
    if offsets.ndim != 2 or offsets.shape[1] != 2 or offsets.dtype.kind not in "iu":
        raise _invalid(passage.id, f"its offsets are {offsets.dtype} {offsets.shape}", "give whole numbers (tokens, 2)")
    begins, ends = offsets[:, 0], offsets[:, 1]
    wrong = (begins < 0) | (begins > ends) | (ends > len(passage.text))
    if wrong.any():
        token = int(wrong.argmax())
        raise _invalid(
            passage.id,
            f"token {token} is at characters {int(begins[token])} to {int(ends[token])} of {len(passage.text)}",
            "give offsets into the text of the passage itself",
        )
    return offsets.astype("<i4")


def _states(passage: Passage, header: Header, tokens: int) -> bytes:
    """float16 states, or float16 scales followed by int8 states."""
    width = header.component.width
    states = np.asarray(passage.states)
    if states.shape != (tokens, width) or states.dtype.kind != "f":
        raise _invalid(
            passage.id,
            f"its states are {states.dtype} {states.shape} for {tokens} tokens of width {width}",
            "give floats (tokens, width), one row for each row of offsets",
        )
    if not np.isfinite(states).all():
        raise _invalid(passage.id, "its states are not all finite", "look for the text that the model fails on")
    values = states.astype(np.float32)
    if header.states == "float16":
        with np.errstate(over="ignore"):
            halves = values.astype("<f2")
        kept, content = halves, halves.tobytes()
    else:
        scales, integers = quantize(values)
        kept, content = scales, scales.astype("<f2").tobytes() + integers.tobytes()
    if not np.isfinite(kept).all():
        raise _invalid(passage.id, "its states are too large for float16", "scale the states down in the model")
    return content


def _embedding(passage: Passage, header: Header) -> bytes:
    embedding = np.zeros(0, np.float32) if passage.embedding is None else np.asarray(passage.embedding)
    if embedding.shape != (header.embedding_dim,) or embedding.dtype.kind != "f":
        raise _invalid(
            passage.id,
            f"its embedding is {embedding.dtype} {embedding.shape}; the store keeps {header.embedding_dim} values",
            "give floats (dimension,), or None where the store keeps no embeddings",
        )
    with np.errstate(over="ignore"):
        kept = embedding.astype(embedding_dtype(header))
    if not np.isfinite(kept).all():
        raise _invalid(
            passage.id,
            f"its embedding is not finite in {header.embedding}",
            "look for the text that the model fails on",
        )
    return kept.tobytes()


def _utf8(name: str, key: str, value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise _invalid(name, f"its {key} has half of a surrogate pair", "read the text as UTF-8") from error


def _invalid(name: str, reason: str, hint: str) -> PassageInvalid:
    return PassageInvalid(f"passage {name!r}: {reason}", hint)
