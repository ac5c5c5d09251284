"""Reads a store: its files are mapped into memory, and every passage is checked when it is first read."""

from __future__ import annotations

import mmap
import zlib
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from .disk import refusals
from .entry import EMBEDDING_CRC, ID_CRC, Entry
from .errors import PassageUnknown, StoreDamaged, StoreEmpty, StoreError, StoreNotFound
from .header import Header, InputComponent, read_header, require_component
from .passage import EncodedPassage, Passage, decode, decode_states, embedding_dtype
from .state import ENTRY_BYTES, State, read_state, require_sizes

_COPY: Final = "copy the store again from where it is whole, or index its passages again"
_DELETE: Final = "copy the store again from where it is whole; or delete the passage, compact, and index it again"
_NAMED: Final = 3


class Store:
    """A store as it was when it was opened; what is written later does not show. May be read by several threads.

    Passages have rows, from 0 on in the order in which they were added. A row keeps its number when others are
    deleted, until the store is compacted. `len` counts the passages that are not deleted.

    header: what all passages have in common. rows: passages, deleted ones included.
    """

    def __init__(self, folder: Path, header: Header, state: State) -> None:
        """Used by `open`."""
        self.path, self.header, self.rows = folder, header, state.passages
        self._state = state
        sizes = state.sizes(header)
        self._maps = {name: _map(folder / state.file(name), size) for name, size in sizes.items()}
        self._checked = np.zeros(state.passages, bool)
        deleted = bytes(self._maps["deleted"])
        rows = np.frombuffer(deleted, "<u8")
        if zlib.crc32(deleted) != state.deleted_crc or (rows >= state.passages).any():
            raise StoreDamaged(
                f"{folder / state.file('deleted')}: the checksum of its {len(deleted)} bytes differs",
                "copy the store again from where it is whole",
            )
        self._deleted: frozenset[int] = frozenset(rows.tolist())

    @classmethod
    def open(cls, path: str | Path, expect: InputComponent | None = None, *, empty_ok: bool = False) -> Self:
        """The store in the folder `path`; takes as long for a large one as for a small one.

        expect: the input component whose states the caller needs. Raises StoreNotFound, StoreTooNew, StoreDamaged for
        a file that is cut short, StoreMismatch for states of another input component, and, unless `empty_ok`,
        StoreEmpty.
        """
        folder = Path(path)
        with refusals(folder):
            if not folder.is_dir():
                raise StoreNotFound(f"{folder} is not a folder", "give the folder of a store")
            header, crc = read_header(folder)
            if expect is not None:
                require_component(folder, header.component, expect)
            store = cls._open_state(folder, header, crc)
        if not len(store) and not empty_ok:
            raise StoreEmpty(f"{folder} holds no passage", "index some passages into it first")
        return store

    @classmethod
    def _open_state(cls, folder: Path, header: Header, crc: int) -> Self:
        """Tries again where `compact` replaced the files between the reading of the state and of the files."""
        while True:
            state = read_state(folder, crc)
            try:
                require_sizes(folder, state, header)
                return cls(folder, header, state)
            except StoreError:
                if read_state(folder, crc).generation == state.generation:
                    raise

    def __len__(self) -> int:
        return self.rows - len(self._deleted)

    @property
    def tokens(self) -> int:
        """Of all passages, deleted ones included."""
        return self._state.tokens

    @property
    def generation(self) -> int:
        """How often the store was compacted."""
        return self._state.generation

    @cached_property
    def live(self) -> NDArray[np.int64]:
        """The rows that are not deleted, ascending."""
        kept = np.ones(self.rows, bool)
        kept[list(self._deleted)] = False
        return np.flatnonzero(kept)

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the passages that are not deleted, in the order of `live`. Reads and checks all of them."""
        return [self._id(row, self._entry(row)).decode() for row in self.live.tolist()]

    @cached_property
    def _rows_of_ids(self) -> dict[str, int]:
        return dict(zip(self.ids, self.live.tolist(), strict=True))

    def row(self, id: str) -> int:
        """The row of the passage `id`. Raises PassageUnknown."""
        if id not in self._rows_of_ids:
            raise PassageUnknown(f"{self.path} holds no passage {id!r}", "look at the store's ids")
        return self._rows_of_ids[id]

    def passage(self, row: int) -> Passage:
        """The passage of a row, its states dequantised. Raises PassageUnknown, and StoreDamaged."""
        return decode(self.encoded(row), self.header)

    def states(self, row: int) -> NDArray[np.float32]:
        """float32 (tokens, width), dequantised. Raises PassageUnknown, and StoreDamaged."""
        return decode_states(self.encoded(row), self.header)

    def embeddings(self) -> NDArray[Any]:
        """The embeddings of all rows, deleted ones included: (rows, dimension), mapped into memory, not writable.

        The first call reads and checks all of them. Raises StoreDamaged.
        """
        if self.header.embedding_dim:
            self._embeddings_checked  # noqa: B018 - for its check
        return self._embeddings

    def checksums(self, rows: int) -> NDArray[np.uint32]:
        """What the index says of the content of the first `rows` rows: crc32 of id, record and embedding, (rows, 3)."""
        entries = np.frombuffer(self._maps["index"], "<u4").reshape(self.rows, ENTRY_BYTES // 4)
        return entries[:rows, ID_CRC // 4 : EMBEDDING_CRC // 4 + 1].copy()

    def encoded(self, row: int) -> EncodedPassage:
        """The bytes of a row, checked when they are first read. Raises PassageUnknown, and StoreDamaged."""
        if not 0 <= row < self.rows or row in self._deleted:
            reason = "was deleted" if row in self._deleted else f"is none of its {self.rows}"
            raise PassageUnknown(f"{self.path}: row {row} {reason}", "take a row of `live`")
        return self._read(row)

    def verify(self) -> None:
        """Read and check every byte. Raises StoreDamaged, which names the first damaged passages, and how many."""
        self._checked[:] = False
        damages: list[StoreDamaged] = []
        end, end_of_ids = 0, 0
        for row in range(self.rows):
            try:
                entry = self._entry(row)
                if (entry.record, entry.id) != (end, end_of_ids) and not damages:
                    raise self._damaged("index", row, "it does not follow the one before")
                end, end_of_ids = entry.record + entry.record_bytes(self.header), entry.id + entry.id_bytes
                self._read(row)
            except StoreDamaged as error:
                damages.append(error)
        if not damages and (end, end_of_ids) != (self._state.record_bytes, self._state.id_bytes):
            damages.append(self._damaged("index", self.rows - 1, "bytes of no passage follow it"))
        if damages:
            more = f"; and {len(damages) - _NAMED} more" if len(damages) > _NAMED else ""
            raise StoreDamaged("; ".join(damage.message for damage in damages[:_NAMED]) + more, damages[0].hint)

    def close(self) -> None:
        """Let go of the files once nothing of them is in use any more."""
        self._maps.clear()
        self.__dict__.pop("_embeddings", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, row: int) -> EncodedPassage:
        entry = self._entry(row)
        record = self._slice("records", row, entry.record, entry.record_bytes(self.header))
        size = self.header.embedding_bytes
        embedding = self._slice("embeddings", row, row * size, size)
        if not self._checked[row]:
            if zlib.crc32(record) != entry.record_crc:
                raise self._damaged("records", row, "its checksum differs")
            if zlib.crc32(embedding) != entry.embedding_crc:
                raise self._damaged("embeddings", row, "its checksum differs")
        name = self._id(row, entry)
        self._checked[row] = True
        return EncodedPassage(
            name,
            entry.title_bytes,
            entry.document_bytes,
            entry.text_bytes,
            entry.start,
            entry.tokens,
            record,
            embedding,
        )

    def _entry(self, row: int) -> Entry:
        entry = Entry.unpack(bytes(self._maps["index"][row * ENTRY_BYTES : (row + 1) * ENTRY_BYTES]), row)
        if entry is None:
            raise self._damaged("index", row, "its checksum differs")
        return entry

    def _id(self, row: int, entry: Entry) -> bytes:
        name = self._slice("ids", row, entry.id, entry.id_bytes)
        if zlib.crc32(name) != entry.id_crc:
            raise self._damaged("ids", row, "its checksum differs")
        return name

    def _slice(self, name: str, row: int, begin: int, size: int) -> bytes:
        if begin + size > len(self._maps[name]):
            raise self._damaged(name, row, f"bytes {begin} to {begin + size} are beyond its end")
        return bytes(self._maps[name][begin : begin + size])

    @cached_property
    def _embeddings(self) -> NDArray[Any]:
        values = np.frombuffer(self._maps["embeddings"], embedding_dtype(self.header))
        return values.reshape(self.rows, self.header.embedding_dim)

    @cached_property
    def _embeddings_checked(self) -> bool:
        content, size = self._maps["embeddings"], self.header.embedding_bytes
        entries = np.frombuffer(self._maps["index"], "<u4").reshape(self.rows, ENTRY_BYTES // 4)
        for row, crc in enumerate(entries[:, EMBEDDING_CRC // 4].tolist()):
            if zlib.crc32(content[row * size : (row + 1) * size]) != crc:
                self._entry(row)
                raise self._damaged("embeddings", row, "its checksum differs")
        return True

    def _damaged(self, name: str, row: int, reason: str) -> StoreDamaged:
        hint = _DELETE if name in ("records", "embeddings") else _COPY
        return StoreDamaged(f"{self.path / self._state.file(name)}: passage of row {row}: {reason}", hint)


def _map(path: Path, size: int) -> memoryview:
    """The first `size` bytes of a file, mapped into memory, not writable."""
    if not size:
        return memoryview(b"")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
