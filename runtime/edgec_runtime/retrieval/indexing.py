"""Reads documents with the input component and puts what it makes of them into a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, Literal

from edgec_runtime.errors import TextInvalid
from edgec_runtime.store import Header, Passage, Store, StoreWriter
from edgec_runtime.store.errors import StoreEmpty, StoreMismatch
from edgec_runtime.store.header import require_component
from edgec_runtime.store.state import STATE_FILE
from edgec_runtime.store.writer import require_free

from .component import Decoupled, Reading, open_decoupled
from .documents import Chunk, Document, Splitting, checked, chunks, passage_id, passages_of

QUESTION_TOKENS: Final = 64
OVERLAP: Final = 32
_AHEAD: Final = 16
"""Passages for each thread that are sorted by length and read together."""

_COMMIT_SECONDS: Final = 10.0

Mode = Literal["create", "append", "resume"]
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Indexed:
    """What `index` did.

    documents: that were given. passages, tokens: added to the store. skipped: passages that were in the store already.
    total: passages that the store has now. bytes: of its files. seconds: that it took, loading the bundle left out.
    """

    documents: int
    passages: int
    tokens: int
    skipped: int
    total: int
    bytes: int
    seconds: float


def index(
    bundle: str | Path,
    documents: Iterable[Document],
    store: str | Path,
    *,
    mode: Mode = "create",
    states: Literal["float16", "int8"] | None = None,
    overlap: int | None = None,
    question_tokens: int | None = None,
    passage_tokens: int | None = None,
    split: bool = True,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Indexed:
    """Read documents once, so that a PassageReader can answer questions about them.

    documents: gone through twice, to find what is wrong with them before the long work; an iterator once.
    mode: "create" refuses a store that is there; "append" adds to one, and refuses documents that it has; "resume" adds
    what it does not have yet, as after an interruption, and makes it where it is not there. states: how they are kept,
    default int8. overlap: tokens that two neighbouring passages of a document share, default 32; of a store that is
    there, both default to its own. question_tokens: kept free for a question in the model's max_length, default 64 or
    a quarter of it. passage_tokens: at most so many of a passage, default all that is left. split: whether a document
    that is longer may be split. progress: called with documents done, and their number where it is known.

    Each passage runs alone, several at a time on a thread each: the store's bytes depend on the documents and their
    order, not on interruptions, threads or batches. Raises StoreError (PassageInvalid names the document), TextInvalid
    for options that leave no room, BundleError.
    """
    folder = Path(store)
    if mode == "create":
        require_free(folder)
    with ExitStack() as stack:
        model = open_decoupled(bundle, threads=threads, schedule="streams")
        stack.callback(model.reader.close)
        found = _existing(folder, model, mode)
        if found is not None:
            stack.enter_context(found)
        kept = None if found is None else found.header
        how = splitting(model, kept, overlap, question_tokens, passage_tokens, split)
        total = None
        taken = frozenset(found.ids) if found is not None and mode == "append" else frozenset()
        if iter(documents) is not documents:
            total = 0
            for document in checked(documents, taken):
                total += 1
                if not split:  # what is too long is refused before a store is made
                    chunks(document, model.encoder, how)
        some = _at_least_one(checked(documents, taken))
        header = Header(
            model.component,
            states=states or (kept.states if kept else "int8"),
            embedding_dim=model.embedding_dim,
            overlap=how.overlap,
        )
        opened = {"create": StoreWriter.create, "append": StoreWriter.open, "resume": StoreWriter.resume}[mode]
        writer = stack.enter_context(opened(folder, header))
        if mode != "create":  # what was committed by another writer meanwhile counts, too
            found = stack.enter_context(Store.open(folder, empty_ok=True))
        return _Indexing(model, how, writer, found, progress).run(some, total)


def delete(store: str | Path, names: Iterable[str]) -> list[str]:
    """Delete documents, or single passages, by their ids, all or none. Gives the ids of the deleted passages.

    Raises PassageUnknown, StoreInUse, StoreNotFound, StoreFull.
    """
    with StoreWriter.open(store) as writer:
        ids = passages_of(names, writer.ids)
        writer.delete(ids)
    return ids


class _Indexing:
    """One call of `index`, once everything is open."""

    def __init__(
        self, model: Decoupled, how: Splitting, writer: StoreWriter, found: Store | None, progress: Progress
    ) -> None:
        self.model, self.how, self.writer, self.found, self.progress = model, how, writer, found, progress
        self.threads = model.reader.runner.threads
        self.documents = self.passages = self.tokens = self.skipped = 0

    def run(self, documents: Iterable[Document], total: int | None) -> Indexed:
        began = committed = time.monotonic()
        waiting: list[Chunk] = []
        self.progress(0, total)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="edgec-index") as pool:
            for document in documents:
                waiting += self._new(chunks(document, self.model.encoder, self.how))
                self.documents += 1
                while len(waiting) >= self.threads * _AHEAD:
                    self._add(waiting[: self.threads * _AHEAD], pool)
                    del waiting[: self.threads * _AHEAD]
                    self.progress(self.documents, total)
                    if time.monotonic() - committed > _COMMIT_SECONDS:
                        self.writer.commit()
                        committed = time.monotonic()
            self._add(waiting, pool)
        self.writer.commit()
        self.progress(self.documents, total)
        size = sum(path.stat().st_size for path in self.writer.path.iterdir() if path.is_file())
        return Indexed(
            self.documents,
            self.passages,
            self.tokens,
            self.skipped,
            len(self.writer),
            size,
            round(time.monotonic() - began, 3),
        )

    def _new(self, found: list[Chunk]) -> list[Chunk]:
        """Those that are not in the store. Raises StoreMismatch where the store has the document in another form."""
        if self.found is None:
            return found
        new = [chunk for chunk in found if chunk.id not in self.writer]
        known = [chunk for chunk in found if chunk.id in self.writer]
        same = all(self.found.passage(self.found.row(chunk.id)).text == chunk.text for chunk in known)
        if not same or passage_id(found[0].document.id, len(found)) in self.writer:
            raise StoreMismatch(
                f"{self.writer.path} has another text of document {found[0].document.id!r}, or other passages of it",
                "delete the document first, or give the options that the store was made with",
            )
        self.skipped += len(known)
        return new

    def _add(self, waiting: list[Chunk], pool: ThreadPoolExecutor) -> None:
        """Read passages, the longest first, so that no long one is left alone at the end; add them in their order."""
        futures = {
            place: pool.submit(self.model.read, waiting[place].ids, 1)
            for place in sorted(range(len(waiting)), key=lambda i: -len(waiting[i].ids))
        }
        try:
            for place, chunk in enumerate(waiting):
                self.writer.add(_passage(chunk, futures[place].result()))
                self.passages += 1
                self.tokens += len(chunk.ids)
        finally:
            for future in futures.values():
                future.cancel()  # after a failure or Ctrl-C nothing is left in the queue


def _passage(chunk: Chunk, reading: Reading) -> Passage:
    return Passage(
        chunk.id,
        chunk.text,
        chunk.offsets,
        reading.states,
        reading.embedding,
        chunk.document.title,
        chunk.document.id,
        chunk.start,
    )


def _existing(folder: Path, model: Decoupled, mode: Mode) -> Store | None:
    """The store that is to be added to, where there is one."""
    if mode == "create" or (mode == "resume" and not (folder / STATE_FILE).is_file()):
        return None
    store = Store.open(folder, empty_ok=True)
    require_component(folder, store.header.component, model.component)
    return store


def _at_least_one(documents: Iterator[Document]) -> Iterator[Document]:
    first = next(documents, None)
    if first is None:
        raise StoreEmpty("there is no document to index", "give one document at least")
    return chain([first], documents)


def splitting(
    model: Decoupled,
    kept: Header | None,
    overlap: int | None,
    question_tokens: int | None,
    passage_tokens: int | None,
    split: bool,
) -> Splitting:
    """How documents become passages of this model. kept: of a store that is there.

    Raises TextInvalid for options that leave no room.
    """
    limit = model.manifest.preprocessing.max_length
    special = sum(len(model.encoder.side(side, model.encoder.content("").ids)[0]) for side in (0, 1))
    reserved = min(QUESTION_TOKENS, limit // 4) if question_tokens is None else question_tokens
    room = limit - special - reserved
    if reserved < 1 or room < 1:
        raise TextInvalid(
            f"{reserved} tokens for a question leave {max(0, room)} of {limit} for a passage ({special} are special)",
            f"keep 1 to {limit - special - 1} tokens for questions",
        )
    tokens = room if passage_tokens is None else passage_tokens
    if not 1 <= tokens <= room:
        raise TextInvalid(
            f"a passage of {tokens} tokens does not fit: {room} of {limit} are left beside a question of {reserved}",
            f"give 1 to {room} tokens, or keep fewer for questions",
        )
    if overlap is None:
        overlap = kept.overlap if kept is not None else min(OVERLAP, tokens // 4)
    if not 0 <= overlap < tokens:
        raise TextInvalid(
            f"passages of {tokens} tokens cannot share {overlap} with the next", f"give an overlap of 0 to {tokens - 1}"
        )
    return Splitting(tokens, overlap, split)
