"""Which passages of a store a question is about: the one interface of dense search and BM25."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from edgec_runtime.store import Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Name = Literal["dense", "bm25"]
NAMES: Final[tuple[Name, ...]] = ("dense", "bm25")


class Query(NamedTuple):
    """A question: its text, and the mean of its states, float32 (dimension,)."""

    text: str
    embedding: NDArray[np.float32]


class Match(NamedTuple):
    """A row of the store, and how well it fits: the larger the better, comparable within one search only."""

    row: int
    score: float


class Search(Protocol):
    """Finds passages. Thread-safe."""

    def find(self, query: Query, k: int) -> list[Match]:
        """At most `k` passages that are not deleted, the best first; none where nothing matches."""
        ...


def open_search(store: Store, name: Name) -> Search:
    """A way to search `store`; its index is made where there is none, or none that fits. Raises a BundleError."""
    if name == "dense":
        from .dense import open_dense

        return open_dense(store)
    if name == "bm25":
        from .bm25 import BM25

        return BM25(store)
    raise ValueError(f"unknown search {name!r}; known are {', '.join(NAMES)}")


def live_matches(store: Store, k: int, best: Callable[[int], Sequence[Match]]) -> list[Match]:
    """The best `k` that are not deleted. best: the best so many of all rows, deleted ones included."""
    live = frozenset(store.live.tolist()) if len(store) < store.rows else None
    count = k
    while True:
        found = best(count)
        kept = [match for match in found if live is None or match.row in live][:k]
        if len(kept) == k or len(found) < count or count >= store.rows:
            return kept
        count = min(count * 4, store.rows)


def fingerprint(store: Store, rows: int | None = None) -> str:
    """Names the content of the first `rows` rows (None: all) of a store: what an index of them was made of."""
    rows = store.rows if rows is None else rows
    checksums = store.checksums(rows)
    return f"{store.generation}-{rows}-{zlib.crc32(checksums.tobytes()):08x}"
