"""Documents, and the pieces of them that fit a model."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgec_runtime.errors import TextInvalid
from edgec_runtime.store.errors import DuplicateId, PassageInvalid, PassageUnknown
from edgec_runtime.text import Encoder, starts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgec_runtime.text import Ids

_NUMBERED: Final = re.compile(r"(.*)#\d+", re.DOTALL)


@dataclass(frozen=True)
class Document:
    """A text to be indexed. id: unique in a store. title: what answers name it by; "": none."""

    id: str
    text: str
    title: str = ""


@dataclass(frozen=True)
class Splitting:
    """How documents become passages.

    tokens: at most so many of a passage, special tokens not counted. overlap: tokens that two neighbouring passages of
    a document share. split: False refuses a document that is longer than one passage.
    """

    tokens: int
    overlap: int
    split: bool = True


@dataclass(frozen=True, eq=False)
class Chunk:
    """A passage before it was read.

    id: that of the document, "#" and a number from 0 on. start: the character of the document at which `text` begins.
    ids: int32 (tokens,), as the passage stands in a row, special tokens included. offsets: int32 (tokens, 2) into
    `text`; those of a special token are empty.
    """

    id: str
    document: Document
    text: str
    start: int
    ids: Ids
    offsets: NDArray[np.int32]


def chunks(document: Document, encoder: Encoder, how: Splitting) -> list[Chunk]:
    """The passages of a document, in order. Raises PassageInvalid."""
    try:
        content = encoder.content(document.text)
    except TextInvalid as error:
        raise PassageInvalid(f"document {document.id!r}: {error.message}", error.hint) from None
    if not len(content):
        raise PassageInvalid(f"document {document.id!r}: its text has no token", "leave such documents out")
    if len(content) > how.tokens and not how.split:
        raise PassageInvalid(
            f"document {document.id!r}: its text has {len(content)} tokens; a passage has at most {how.tokens}",
            "let it be split, or split it yourself",
        )
    offsets = np.array(content.encoding.offsets, np.int32).reshape(-1, 2)
    return [
        _chunk(document, number, content.ids[first : first + how.tokens], offsets[first : first + how.tokens], encoder)
        for number, first in enumerate(starts(len(content), how.tokens, how.overlap))
    ]


def _chunk(document: Document, number: int, ids: Ids, offsets: NDArray[np.int32], encoder: Encoder) -> Chunk:
    begin, end = int(offsets[:, 0].min()), int(offsets[:, 1].max())
    row, place = encoder.side(1, ids)
    inside = np.zeros((len(row), 2), np.int32)
    inside[place] = offsets - begin
    inside[place.stop :] = end - begin
    return Chunk(passage_id(document.id, number), document, document.text[begin:end], begin, row, inside)


def passage_id(document: str, number: int) -> str:
    """The id of a document's passage, counted from 0."""
    return f"{document}#{number}"


def checked(documents: Iterable[Document], taken: Container[str] = ()) -> Iterator[Document]:
    """The documents, each looked at as it passes.

    taken: ids of passages that no document may have. Raises PassageInvalid for an id or a text that is empty, and
    DuplicateId.
    """
    seen: set[str] = set()
    for document in documents:
        if not document.id:
            raise PassageInvalid(f"document {len(seen)} has no id", "give every document an id of its own")
        if document.id in seen:
            raise DuplicateId(f"two documents have the id {document.id!r}", "give every document an id of its own")
        if passage_id(document.id, 0) in taken:
            raise DuplicateId(
                f"document {document.id!r} is in the store already",
                "give it another id, or delete the other one first; resuming passes over what is in the store",
            )
        if not document.text.strip():
            raise PassageInvalid(f"document {document.id!r}: its text is empty", "leave empty documents out")
        seen.add(document.id)
        yield document


def passages_of(names: Iterable[str], ids: Iterable[str]) -> list[str]:
    """Among the `ids` of a store those of all passages of the documents `names`. A name may also be that of a passage.

    Raises PassageUnknown.
    """
    documents: dict[str, list[str]] = {}
    for id in ids:
        numbered = _NUMBERED.fullmatch(id)
        documents.setdefault(numbered[1] if numbered else id, []).append(id)
    present = {id for found in documents.values() for id in found}
    chosen: list[str] = []
    for name in names:
        if name not in documents and name not in present:
            raise PassageUnknown(
                f"the store has neither a document nor a passage {name!r}; nothing was deleted",
                "look at the ids that answers name",
            )
        chosen += documents.get(name, [name])
    return list(dict.fromkeys(chosen))
