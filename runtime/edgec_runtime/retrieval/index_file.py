"""A search index in a store's folder: used only where it is whole and made of what the store holds now."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from pathlib import Path
from typing import NamedTuple

from edgec_runtime.store import Store

from .search import fingerprint


class Saved(NamedTuple):
    """The content of an index, and how many rows of the store it covers: the first ones."""

    content: bytes
    rows: int


def read(store: Store, name: str, kind: str) -> Saved | None:
    """The index `name`, or None where there is none that can be used: damaged, of other passages, or of another kind.

    kind: what the content is, version included. An index of fewer rows than the store has can be used, and extended.
    """
    try:
        facts = json.loads(_facts(store.path, name).read_text(encoding="utf-8"))
        content = (store.path / name).read_bytes()
        rows = facts["rows"]
        if type(rows) is not int or not 0 <= rows <= store.rows:
            return None
        expected = _describe(store, kind, rows, content)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Saved(content, rows) if facts == expected else None


def write(store: Store, name: str, kind: str, content: bytes) -> None:
    """Keep the index of all rows for the next time. Where the folder cannot be written, it is made again then."""
    facts = json.dumps(_describe(store, kind, store.rows, content)) + "\n"
    with contextlib.suppress(OSError):
        _replace(store.path / name, content)
        _replace(_facts(store.path, name), facts.encode())


def _describe(store: Store, kind: str, rows: int, content: bytes) -> dict[str, object]:
    return {
        "kind": kind,
        "rows": rows,
        "passages": fingerprint(store, rows),
        "bytes": len(content),
        "crc32": zlib.crc32(content),
    }


def _facts(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _replace(path: Path, content: bytes) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_bytes(content)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
