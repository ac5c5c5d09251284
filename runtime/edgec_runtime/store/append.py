"""Puts encoded passages at the end of a store's data files, and commits them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from .disk import refusals, sync_folder, write_at
from .entry import Entry
from .errors import StoreInaccessible
from .header import Header
from .passage import EncodedPassage
from .state import TOMBSTONE_BYTES, State

BUFFER_BYTES: Final = 4 << 20
"""So much is kept in memory before it is written."""


class Appender:
    """Writes behind what `state` says, over what an interrupted writer may have left there.

    state: committed. written: what the files hold, committed or not. pending: not written yet. Where the file system
    refuses to write, all three stay as they are, and the same call can be made again. Where it refuses to say that what
    was written is on the disk, nothing is committed any more: such pages may be lost, and are not told of twice.
    """

    def __init__(self, folder: Path, header: Header, state: State) -> None:
        self._folder, self._header = folder, header
        self.state = self.written = state
        self.pending: list[EncodedPassage] = []
        self._pending_bytes = 0
        self._lost = False
        self._files: dict[str, int] = {}
        try:
            with refusals(folder):
                for name, size in state.sizes(header).items():
                    path = folder / state.file(name)
                    self._files[name] = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                    if os.fstat(self._files[name]).st_size > size:
                        os.ftruncate(self._files[name], size)
        except BaseException:
            self.close()
            raise

    @property
    def rows(self) -> int:
        """Passages, those that are pending included."""
        return self.written.passages + len(self.pending)

    def append(self, passage: EncodedPassage) -> bool:
        """Put a passage behind the others. Says whether it was time to write, and what was pending was written."""
        self.pending.append(passage)
        self._pending_bytes += len(passage.record) + len(passage.embedding)
        if self._pending_bytes < BUFFER_BYTES:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Write what is pending. It does not count before `commit`."""
        if not self.pending:
            return
        entries, state = [], self.written
        for passage in self.pending:
            entries.append(Entry.of(passage, state.passages, state.record_bytes, state.id_bytes).pack())
            state = replace(
                state,
                passages=state.passages + 1,
                tokens=state.tokens + passage.tokens,
                record_bytes=state.record_bytes + len(passage.record),
                id_bytes=state.id_bytes + len(passage.id),
            )
        self._write("records", b"".join(passage.record for passage in self.pending))
        self._write("ids", b"".join(passage.id for passage in self.pending))
        self._write("embeddings", b"".join(passage.embedding for passage in self.pending))
        self._write("index", b"".join(entries))
        self.pending, self._pending_bytes, self.written = [], 0, state

    def delete(self, rows: Sequence[int]) -> None:
        """Commit what is pending, then tombstones of `rows`: all of them or none."""
        self.commit()
        content = b"".join(row.to_bytes(TOMBSTONE_BYTES, "little") for row in rows)
        self._write("deleted", content)
        self.written = replace(
            self.state,
            deleted=self.state.deleted + len(rows),
            deleted_crc=zlib.crc32(content, self.state.deleted_crc),
        )
        try:
            self.commit()
        finally:
            self.written = self.state

    def commit(self, *, even_unchanged: bool = False) -> None:
        """Write what is pending, and make it count: after this it is there, whatever happens."""
        self.flush()
        if self.written == self.state and not even_unchanged:
            return
        if self._lost:
            raise StoreInaccessible(
                f"{self._folder}: the disk has refused to keep what was written; what was committed before is whole",
                "close the writer, see to the disk, and open the store again",
            )
        with refusals(self._folder):
            try:
                for file in self._files.values():
                    os.fsync(file)
                sync_folder(self._folder)
            except OSError as error:
                self._lost = True
                raise StoreInaccessible(
                    f"{self._folder}: {error.strerror}: what was written is not on the disk; what was committed before "
                    "is whole",
                    "close the writer, see to the disk, and open the store again",
                ) from error
            self.written.write(self._folder)
        self.state = self.written

    def close(self) -> None:
        """Leave what is not committed. Safe to call twice."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _write(self, name: str, content: bytes) -> None:
        path = self._folder / self.written.file(name)
        with refusals(path):
            write_at(self._files[name], content, self.written.sizes(self._header)[name])
