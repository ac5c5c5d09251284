"""Writes a store: passages are added at its end, and what was committed outlives every crash."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .append import Appender
from .disk import refusals, replace_file, sync_folder
from .errors import DuplicateId, PassageUnknown, StoreExists, StoreNotFound
from .header import HEADER_FILE, Header, read_header, require_header
from .lock import LOCK_FILE, WriteLock
from .passage import EncodedPassage, Passage, encode
from .reader import Store
from .state import STATE_FILE, State, read_state

_DATA: Final = ("index", "ids", "records", "embeddings", "deleted")


class StoreWriter:
    """Adds passages to a store, one writer at a time. What is in the files depends on the passages and their order
    alone, not on when they were committed or how often the writing was interrupted.

    Leaving a `with` block commits, unless by an exception. header: what all passages have in common.
    """

    def __init__(self, folder: Path, lock: WriteLock, header: Header | None = None) -> None:
        """Used by `create`, `open` and `resume`."""
        self.path, self._lock = folder, lock
        self.header, crc = read_header(folder)
        if header is not None:
            require_header(folder, self.header, header)
        with Store.open(folder, empty_ok=True) as store:
            self._rows = dict(zip(store.ids, store.live.tolist(), strict=True))
        state = read_state(folder, crc)
        _remove_leftovers(folder, state)
        self._appender = Appender(folder, self.header, state)

    @classmethod
    def create(cls, path: str | Path, header: Header) -> Self:
        """A new store in the folder `path`, which may be there if it is empty.

        Raises StoreExists, HeaderInvalid, StoreInUse, StoreFull and StoreInaccessible.
        """
        return cls._locked(Path(path), header, new=True)

    @classmethod
    def open(cls, path: str | Path, header: Header | None = None) -> Self:
        """The store in the folder `path`, to add to it or to delete from it.

        header: raises StoreMismatch where the store's differs. Raises StoreNotFound, StoreInUse, StoreDamaged.
        """
        with refusals(Path(path)):
            if not Path(path).is_dir():
                raise StoreNotFound(f"{path} is not a folder", "give the folder of a store")
            read_header(Path(path))
        return cls._locked(Path(path), header, new=False)

    @classmethod
    def resume(cls, path: str | Path, header: Header) -> Self:
        """The store in the folder `path`, as `open` gives it; or a new one, where its creation did not end."""
        with refusals(Path(path)):
            new = not (Path(path) / STATE_FILE).is_file()
        return cls._locked(Path(path), header, new=new)

    @classmethod
    def _locked(cls, folder: Path, header: Header | None, *, new: bool) -> Self:
        content = header.pack() if header is not None else b""
        if new:
            with refusals(folder):
                folder.mkdir(parents=True, exist_ok=True)
                sync_folder(folder.parent)
            require_free(folder)
        lock = WriteLock(folder)
        try:
            if new:
                require_free(folder)
                with refusals(folder):
                    replace_file(folder / HEADER_FILE, content)
                    State(read_header(folder)[1]).write(folder)
            with refusals(folder):
                return cls(folder, lock, header)
        except BaseException:
            lock.release()
            raise

    def __len__(self) -> int:
        """Passages that are not deleted, those not yet committed included."""
        return len(self._rows)

    def __contains__(self, id: object) -> bool:
        return id in self._rows

    @property
    def ids(self) -> list[str]:
        """Of the passages that are not deleted, in their order, those not yet committed included."""
        return list(self._rows)

    def add(self, passage: Passage) -> None:
        """Put a passage at the end. It is there for good after the next `commit`, which large input brings by itself.

        Raises PassageInvalid and DuplicateId; the store stays as it was. Where StoreFull comes, the passage is kept in
        memory, and `commit` may be called again.
        """
        if passage.id in self._rows:
            raise DuplicateId(
                f"passage {passage.id!r} is in {self.path} already", "give it another id, or delete the other one first"
            )
        self.add_encoded(encode(passage, self.header))

    def add_encoded(self, passage: EncodedPassage) -> None:
        """Put the bytes of a passage at the end, as a store of the same header has them."""
        self._rows[passage.id.decode()] = self._appender.rows
        if self._appender.append(passage):
            self.commit()

    def commit(self) -> None:
        """Make everything that was added stay, whatever happens. Raises StoreFull and StoreInaccessible."""
        self._appender.commit()

    def delete(self, ids: Iterable[str]) -> None:
        """Delete passages, all or none, and commit. Their bytes stay until the store is compacted.

        Raises PassageUnknown, StoreFull and StoreInaccessible.
        """
        names = list(dict.fromkeys(ids))
        unknown = [name for name in names if name not in self._rows]
        if unknown:
            raise PassageUnknown(
                f"{self.path} holds no passage {unknown[0]!r} ({len(unknown)} of {len(names)} are not there); "
                "nothing was deleted",
                "look at the store's ids",
            )
        if names:
            self._appender.delete([self._rows[name] for name in names])
        for name in names:
            del self._rows[name]

    def compact(self) -> None:
        """Commit, and write the passages that are not deleted anew, in new rows; see `edit.compact`.

        Raises StoreFull, StoreInaccessible and StoreDamaged; then the store is as it was, and the writer closed.
        """
        self.commit()
        state = self._appender.state
        if not state.deleted:
            return
        try:
            fresh = Appender(self.path, self.header, State(state.header_crc, state.generation + 1))
            self._appender.close()
            self._appender = fresh
            with Store.open(self.path, empty_ok=True) as store:
                for row in store.live.tolist():
                    fresh.append(store.encoded(row))
            fresh.commit(even_unchanged=True)
        except BaseException:
            self.close()
            raise
        finally:
            # What counts is what the file says: a commit may fail after its one step was done.
            with refusals(self.path):
                _remove_leftovers(self.path, read_state(self.path, state.header_crc))
        self._rows = {name: row for row, name in enumerate(self._rows)}

    def close(self) -> None:
        """Let others write, and leave what is not committed. Safe to call twice."""
        self._appender.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.close()


def require_free(folder: Path) -> None:
    """Raises StoreExists unless the folder is absent or empty, or holds what an interrupted creation left."""
    ours = {LOCK_FILE, HEADER_FILE, f"{HEADER_FILE}.new", f"{STATE_FILE}.new"}
    with refusals(folder):
        found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if STATE_FILE in found:
        raise StoreExists(f"{folder} holds a store", "add to it (append, resume), remove it, or choose another folder")
    if found - ours:
        raise StoreExists(f"{folder} is not empty: {min(found - ours)} is in it", "choose another folder")


def _remove_leftovers(folder: Path, state: State) -> None:
    """What a crash left of files that were about to be renamed, and of another generation."""
    present = {state.file(name) for name in _DATA}
    for path in folder.iterdir():
        name, _, number = path.stem.partition("-")
        other = path.suffix == ".bin" and name in _DATA and number.isdecimal() and path.name not in present
        if other or path.name in (f"{HEADER_FILE}.new", f"{STATE_FILE}.new"):
            path.unlink()
