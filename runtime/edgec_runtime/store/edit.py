"""What is done to whole stores: delete from one, write one anew without what was deleted, merge several into one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import DuplicateId, StoreEmpty, StoreExists
from .header import Header, require_header
from .reader import Store
from .writer import StoreWriter


def delete(path: str | Path, ids: Iterable[str]) -> None:
    """Delete passages from the store in the folder `path`, all or none. Raises PassageUnknown, StoreInUse, StoreFull.

    Their bytes stay until `compact`. A deleted id may be added again.
    """
    with StoreWriter.open(path) as writer:
        writer.delete(ids)


def compact(path: str | Path) -> None:
    """Give back the bytes of deleted passages; the others get new rows, in the same order. Needs room for a copy.

    The new files are written beside the present ones, and one step makes them count: before it the store is the old
    one, after it the new one, whenever it is interrupted. Stores that are open meanwhile stay as they are.
    """
    with StoreWriter.open(path) as writer:
        writer.compact()


def merge(paths: Sequence[str | Path], out: str | Path) -> None:
    """Make the store `out` of the passages of several, one after the other: byte for byte what one writer would have
    written in this order. Deleted passages are left out.

    Interrupted, the same call goes on where it was. Raises StoreMismatch, DuplicateId, StoreEmpty, StoreDamaged, and
    StoreExists where `out` holds something else; all but StoreDamaged before anything is written.
    """
    if not paths:
        raise StoreEmpty("no store to merge", "give one store at least")
    stores = [Store.open(path, empty_ok=True) for path in paths]
    header = stores[0].header
    _require_apart(stores, header)
    with StoreWriter.resume(out, header) as writer:
        ids = [name for store in stores for name in store.ids]
        done = writer.ids
        if done != ids[: len(done)]:
            raise StoreExists(f"{out} holds other passages", "remove it, or choose another folder")
        with Store.open(out, empty_ok=True) as written:
            if len(written) != written.rows:
                raise StoreExists(f"{out} has deleted passages", "compact it, or choose another folder")
            passages = (store.encoded(row) for store in stores for row in store.live.tolist())
            for number, passage in enumerate(passages):
                if number >= len(done):
                    writer.add_encoded(passage)
                elif written.encoded(number) != passage:
                    raise StoreExists(
                        f"{out} holds another passage {ids[number]!r}", "remove it, or choose another folder"
                    )


def _require_apart(stores: Sequence[Store], header: Header) -> None:
    """Raises StoreMismatch, StoreEmpty, or DuplicateId with both places."""
    places: dict[str, Path] = {}
    for store in stores:
        require_header(store.path, store.header, header)
        for name in store.ids:
            if name in places:
                raise DuplicateId(
                    f"passage {name!r} is in {places[name]} and in {store.path}", "delete it from one of them"
                )
            places[name] = store.path
    if not places:
        raise StoreEmpty(f"no passage in {', '.join(str(store.path) for store in stores)}", "index some passages first")
