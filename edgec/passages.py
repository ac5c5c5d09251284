"""What the commands index and ask do: passages that a decoupled bundle reads once, and questions about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from edgec_runtime import PassageReader
from edgec_runtime import index as index_documents

from edgec.data.documents import Columns, Documents
from edgec.data.files import OnError
from edgec.errors import UserError
from edgec.sharding import index_with_ray, interrupted

Progress = Callable[[str, int], Callable[[int], None]]
Say = Callable[[str], None]


def index(
    bundle: str | Path,
    passages: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    format: str | None = None,
    text: str | None = None,
    id: str | None = None,
    title: str | None = None,
    states: Literal["float16", "int8"] | None = None,
    overlap: int | None = None,
    question_tokens: int | None = None,
    passage_tokens: int | None = None,
    split: bool = True,
    append: bool = False,
    resume: bool = False,
    on_error: OnError = "raise",
    threads: int | None = None,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    address: str | None = None,
    progress: Progress = lambda label, total: lambda done: None,
    say: Say = lambda message: None,
) -> dict[str, Any]:
    """Let a decoupled bundle read passages, and keep what it makes of them in the store `out`.

    passages: files and folders, as docs/ask.md describes them. format, text, id, title: of a table. append: add to a
    store, and refuse documents that it has; resume: add what it does not have yet, after an interruption or when files
    were added. engine: "ray" reads shards of the passages on at most `workers` workers of the Ray cluster at `address`,
    or of one that is started on this machine, and gives the same bytes; threads are then those of a worker. The other
    options are those of edgec_runtime.index. Gives its figures as JSON values, the store's path, and how many malformed
    rows were skipped. Raises EdgecError or BundleError.
    """
    if append and resume:
        raise UserError("append and resume exclude each other", "resume adds to a store, too: leave append out")
    if engine == "local" and (workers is not None or address is not None):
        raise UserError("workers and address are options of the engine ray", "give the engine, or leave them out")
    if engine == "ray" and append:
        raise UserError("the engine ray makes new stores", "make one of the new documents; edgec_runtime.store.merge")
    given = [passages] if isinstance(passages, str | Path) else list(passages)
    documents = Documents(given, format=format, columns=Columns(text, id, title), on_error=on_error)
    if documents.left_out:
        first, more = documents.left_out[0], len(documents.left_out) - 1
        say(f"left out, as no text file: {first}" + (f" and {more} more" if more else ""))
    move: Callable[[int], None] | None = None

    def moved(done: int, total: int | None) -> None:
        nonlocal move
        if move is None:
            move = progress("read passages", total or 0)
        move(done)

    options: dict[str, Any] = {
        "states": states,
        "overlap": overlap,
        "question_tokens": question_tokens,
        "passage_tokens": passage_tokens,
        "split": split,
        "threads": threads,
        "progress": moved,
    }
    if engine == "ray" and resume and Path(out).exists() and not interrupted(Path(out)):
        say(f"{out} is there, and no shard is left to take up: what is new is read by this process alone")
        engine, options["threads"] = "local", None
    if engine == "ray":
        cluster: dict[str, Any] = {"workers": workers, "address": address}
        done = index_with_ray(Path(bundle), documents, Path(out), resume=resume, **options, **cluster)
    else:
        mode: Literal["append", "resume", "create"] = "append" if append else "resume" if resume else "create"
        done = index_documents(bundle, documents, out, mode=mode, **options)
    return {"store": str(out), **asdict(done), "malformed": documents.skipped}


def ask(
    bundle: str | Path,
    store: str | Path,
    *,
    question: str,
    k: int = 5,
    search: Literal["dense", "bm25"] | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Answer a question from the `k` passages of a store that fit it best: edgec_runtime.Answers as JSON values.

    search: as of edgec_runtime.PassageReader.ask. To ask more than one question, open such a reader once. Raises
    BundleError.
    """
    with PassageReader.open(bundle, store, threads=threads) as reader:
        return reader.ask(question, k, search).to_dict()
