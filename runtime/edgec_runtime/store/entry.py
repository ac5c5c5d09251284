"""The index: 64 bytes a passage, which tell where its bytes are and what their checksums are."""

from __future__ import annotations

import struct
import zlib
from dataclasses import astuple, dataclass
from typing import Final, Self

from .header import Header
from .passage import EncodedPassage, record_bytes
from .state import ENTRY_BYTES

_FIELDS: Final = struct.Struct("<QQIIIIQIIIII")
ID_CRC: Final = 44
EMBEDDING_CRC: Final = 52
"""Where in an entry the crc32 of the id and that of the embedding are; that of the record is between them."""

ROW_MASK: Final = 0xFFFFFFFF


@dataclass(frozen=True)
class Entry:
    """One passage in the index; `pack` appends the crc32 of these fields.

    record, id: where they begin in their files. start: character of the document at which the text begins.
    """

    record: int
    id: int
    id_bytes: int
    title_bytes: int
    document_bytes: int
    text_bytes: int
    start: int
    tokens: int
    id_crc: int
    record_crc: int
    embedding_crc: int
    row: int

    @classmethod
    def of(cls, passage: EncodedPassage, row: int, record: int, id: int) -> Self:
        """The entry of the passage that becomes row `row`, its record and id at these bytes of their files."""
        return cls(
            record,
            id,
            len(passage.id),
            passage.title_bytes,
            passage.document_bytes,
            passage.text_bytes,
            passage.start,
            passage.tokens,
            zlib.crc32(passage.id),
            zlib.crc32(passage.record),
            zlib.crc32(passage.embedding),
            row & ROW_MASK,
        )

    def pack(self) -> bytes:
        """64 bytes."""
        content = _FIELDS.pack(*astuple(self))
        return content + struct.pack("<I", zlib.crc32(content))

    @classmethod
    def unpack(cls, content: bytes, row: int) -> Self | None:
        """The entry of row `row`; None where its checksum differs or it is another row's."""
        (crc,) = struct.unpack_from("<I", content, ENTRY_BYTES - 4)
        if crc != zlib.crc32(content[: ENTRY_BYTES - 4]):
            return None
        entry = cls(*_FIELDS.unpack_from(content))
        return entry if entry.row == row & ROW_MASK else None

    def record_bytes(self, header: Header) -> int:
        """Length of the passage's record."""
        return record_bytes(header, self.tokens, self.title_bytes + self.document_bytes + self.text_bytes)
