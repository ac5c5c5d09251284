"""state.bin: how much of the other files counts. Replacing it is the one step that commits something."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .disk import replace_file
from .errors import StoreDamaged, StoreNotFound
from .header import Header

STATE_FILE: Final = "state.bin"
ENTRY_BYTES: Final = 64
TOMBSTONE_BYTES: Final = 8
_MAGIC: Final = b"EDGECSTA"
_FIELDS: Final = struct.Struct("<8sIIQQQQQII")


@dataclass(frozen=True)
class State:
    """What is committed. Everything behind it in the files is what an interrupted writer left.

    header_crc: crc32 of the header.bin that it belongs to.
    generation: in the names of the data files; `compact` writes the next one beside the present one.
    passages: rows, deleted ones included. tokens: of all of them.
    record_bytes, id_bytes: of the files `records` and `ids`.
    deleted: tombstones. deleted_crc: crc32 of all of them.
    """

    header_crc: int
    generation: int = 0
    passages: int = 0
    tokens: int = 0
    record_bytes: int = 0
    id_bytes: int = 0
    deleted: int = 0
    deleted_crc: int = 0

    def file(self, name: str) -> str:
        """The name of a data file: of index, ids, records, embeddings or deleted."""
        return f"{name}-{self.generation}.bin"

    def sizes(self, header: Header) -> dict[str, int]:
        """Committed bytes of each data file."""
        return {
            "index": self.passages * ENTRY_BYTES,
            "ids": self.id_bytes,
            "records": self.record_bytes,
            "embeddings": self.passages * header.embedding_bytes,
            "deleted": self.deleted * TOMBSTONE_BYTES,
        }

    def write(self, folder: Path) -> None:
        """Commit. The data files have to be on the disk before."""
        content = _FIELDS.pack(
            _MAGIC,
            self.header_crc,
            self.generation,
            self.passages,
            self.tokens,
            self.record_bytes,
            self.id_bytes,
            self.deleted,
            self.deleted_crc,
            0,
        )[:-4]
        replace_file(folder / STATE_FILE, content + struct.pack("<I", zlib.crc32(content)))


def read_state(folder: Path, header_crc: int) -> State:
    """The state of the store in `folder`. Raises StoreNotFound where none was committed, and StoreDamaged."""
    path = folder / STATE_FILE
    if not path.is_file():
        raise StoreNotFound(
            f"{folder} holds no whole store: it has no {STATE_FILE}", "its creation was interrupted; create it again"
        )
    content = path.read_bytes()
    if len(content) != _FIELDS.size or _FIELDS.unpack(content)[-1] != zlib.crc32(content[:-4]):
        raise StoreDamaged(
            f"{path}: the checksum of its {_FIELDS.size} bytes differs", "copy the store again from where it is whole"
        )
    magic, found_crc, generation, passages, tokens, records, ids, deleted, deleted_crc, _ = _FIELDS.unpack(content)
    if magic != _MAGIC or found_crc != header_crc:
        raise StoreDamaged(
            f"{path} belongs to another header.bin", "copy the store again, all files of it from one place"
        )
    return State(header_crc, generation, passages, tokens, records, ids, deleted, deleted_crc)


def require_sizes(folder: Path, state: State, header: Header) -> None:
    """Raises StoreDamaged for a data file that is absent or shorter than what was committed."""
    for name, size in state.sizes(header).items():
        path = folder / state.file(name)
        found = path.stat().st_size if path.is_file() else 0
        if found < size:
            raise StoreDamaged(
                f"{path} is cut short: {found} bytes of {size}", "copy the store again from where it is whole"
            )
