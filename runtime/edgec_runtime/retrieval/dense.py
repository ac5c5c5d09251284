"""Dense search: passages whose mean states point the way of the question's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgec_runtime.store import Store
from edgec_runtime.store.errors import StoreMismatch

from . import index_file
from .search import Match, Query, Search, live_matches

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXACT_ROWS: Final = 50_000
"""A store of at most so many passages is searched by comparing all of them: less work than reading a single passage."""

INDEX: Final = "dense.usearch"
_BLOCK: Final = 16_384


def open_dense(store: Store, exact_rows: int = EXACT_ROWS) -> Search:
    """Exact search in a small store, and where usearch is not installed; else usearch. Raises StoreMismatch."""
    if not store.header.embedding_dim:
        raise StoreMismatch(f"{store.path} keeps no embeddings", "search it with bm25, or index the passages again")
    if store.rows > exact_rows and _usearch() is not None:
        return Approximate(store)
    return Exact(store)


class Exact:
    """Compares the question with every passage."""

    def __init__(self, store: Store) -> None:
        """Raises StoreDamaged."""
        self.store = store
        self._embeddings = store.embeddings()
        self._lengths = np.concatenate([np.zeros(0, np.float32), *(_lengths(block) for block in self._blocks())])

    def find(self, query: Query, k: int) -> list[Match]:
        """By cosine similarity; of equal ones the first."""
        question = query.embedding / max(float(_lengths(query.embedding[None])[0]), _TINY)
        products = np.concatenate([block @ question for block in self._blocks()])
        scores = products / np.maximum(self._lengths, _TINY)
        live = self.store.live
        best = live[np.argsort(-scores[live], kind="stable")[:k]]
        return [Match(int(row), float(scores[row])) for row in best]

    def _blocks(self) -> Iterator[NDArray[np.float32]]:
        """The embeddings in pieces: float16 ones are never in float32 all together."""
        for at in range(0, len(self._embeddings), _BLOCK):
            yield self._embeddings[at : at + _BLOCK].astype(np.float32, copy=False)


class Approximate:
    """A graph of neighbours (HNSW), by usearch. It is kept in the store's folder and grows with the store.

    Vectors are in float16. Deleted passages stay in the graph, and are passed over, until the store is compacted.
    """

    def __init__(self, store: Store) -> None:
        """Makes, extends or opens the index. Raises StoreDamaged."""
        usearch = _usearch()
        assert usearch is not None
        self.store = store
        dim = store.header.embedding_dim
        self._index = usearch.Index(ndim=dim, metric="cos", dtype="f16")
        saved = index_file.read(store, INDEX, _kind(usearch, dim))
        done = 0
        if saved is not None:
            self._index.load(saved.content)
            done = saved.rows
        if done == store.rows:
            return
        embeddings = store.embeddings()
        for at in range(done, store.rows, _BLOCK):
            block = embeddings[at : at + _BLOCK].astype(np.float32, copy=False)
            # One thread: several insert in an order of their own, and every building would be another graph.
            self._index.add(np.arange(at, at + len(block), dtype=np.uint64), np.ascontiguousarray(block), threads=1)
        index_file.write(store, INDEX, _kind(usearch, dim), bytes(self._index.save()))

    def find(self, query: Query, k: int) -> list[Match]:
        """By cosine similarity, as far as the graph finds them."""

        def best(count: int) -> list[Match]:
            found = self._index.search(np.ascontiguousarray(query.embedding, np.float32), count)
            return [Match(int(key), 1 - float(far)) for key, far in zip(found.keys, found.distances, strict=True)]

        return live_matches(self.store, k, best)


_TINY: Final = 1e-12


def _lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths: NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return lengths


def _kind(usearch: Any, dim: int) -> str:
    return f"usearch {usearch.version} cos f16 {dim}"


def _usearch() -> Any:
    """usearch.index with the package's version, or None where it is not installed, or does not fit this machine."""
    try:
        import usearch
        import usearch.index
    except ImportError:
        return None

    class Namespace:
        Index = usearch.index.Index
        version = str(usearch.__version__)

    return Namespace
