"""`edgec index`: passages are read once by a decoupled bundle, and kept in a store."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from edgec.cli import console


class Engine(StrEnum):
    local = "local"
    ray = "ray"


class States(StrEnum):
    int8 = "int8"
    float16 = "float16"


def index(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="The folder of a decoupled question-answering bundle.")
    ] = None,
    passages: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PASSAGES",
            help="Text files, folders of text files, csv, tsv, jsonl or parquet files, SQuAD files.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="STORE", help="The folder of the store.")] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="text, csv, tsv, jsonl, parquet or squad; without it the suffix tells."),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="COL", help='Column of the text, default "text".')
    ] = None,
    id: Annotated[
        str | None, typer.Option("--id", metavar="COL", help='Column of the id, default "id", else file and line.')
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="COL", help='Column of the title, default "title".')
    ] = None,
    states: Annotated[
        States | None, typer.Option("--states", help="How states are kept; default int8, half of float16.")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option("--overlap", metavar="N", min=0, help="Tokens that neighbouring passages share; default 32."),
    ] = None,
    passage_tokens: Annotated[
        int | None,
        typer.Option("--passage-tokens", metavar="N", min=1, help="Tokens of a passage; default as many as fit."),
    ] = None,
    question_tokens: Annotated[
        int | None,
        typer.Option("--question-tokens", metavar="N", min=1, help="Tokens kept free for a question; default 64."),
    ] = None,
    split: Annotated[
        bool, typer.Option("--split/--no-split", help="Split what is longer than a passage, or refuse it.")
    ] = True,
    append: Annotated[bool, typer.Option("--append", help="Add to a store that is there.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Add what is not in the store yet, as after an interruption.")
    ] = False,
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Count malformed rows instead of stopping at the first.")
    ] = False,
    delete: Annotated[
        list[str] | None,
        typer.Option("--delete", metavar="ID", help="Delete a document of STORE instead. May be repeated."),
    ] = None,
    verify: Annotated[
        Path | None, typer.Option("--verify", metavar="STORE", help="Read and check every byte of a store instead.")
    ] = None,
    threads: Annotated[
        int | None, console.threads_option("CPU threads to use; of each worker, default 1 there.")
    ] = None,
    engine: Annotated[
        Engine, typer.Option("--engine", help="What reads: this process, or the workers of a Ray cluster.")
    ] = Engine.local,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="Ray workers at a time; default one for each CPU."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="HOST:PORT", help="Of a Ray cluster; without it one is started here."),
    ] = None,
    json: Annotated[Path | None, console.json_option("Write the figures to a file; - is stdout.")] = None,
) -> None:
    """Read passages once, so that `edgec ask` answers questions about them.

    A document that is longer than the model reads is split into passages that overlap. What was committed outlives
    every interruption; --resume takes it up.
    """
    if verify is not None:
        _require(bundle is None and out is None and not delete, "--verify STORE stands alone")
        _tell(_verified(verify), json)
    elif delete:
        _require(bundle is None and out is not None, "--delete ID goes with --out STORE, and without BUNDLE")
        assert out is not None
        _tell(_deleted(out, delete), json)
    else:
        _require(bundle is not None and bool(passages) and out is not None, "give BUNDLE, PASSAGES and --out STORE")
        assert bundle is not None and passages and out is not None
        from edgec import passages as commands

        found = commands.index(
            bundle,
            passages,
            out=out,
            format=format,
            text=text,
            id=id,
            title=title,
            states=None if states is None else states.value,
            overlap=overlap,
            question_tokens=question_tokens,
            passage_tokens=passage_tokens,
            split=split,
            append=append,
            resume=resume,
            on_error="skip" if skip_malformed else "raise",
            threads=threads,
            engine=engine.value,
            workers=workers,
            address=address,
            progress=console.progress,
            say=console.say,
        )
        _tell(found, json)


def _verified(store: Path) -> dict[str, Any]:
    from edgec_runtime.store import Store

    with Store.open(store, empty_ok=True) as opened:
        opened.verify()
        return {"store": str(store), "passages": len(opened), "tokens": opened.tokens, "ok": True}


def _deleted(store: Path, ids: list[str]) -> dict[str, Any]:
    from edgec_runtime.retrieval.indexing import delete

    return {"store": str(store), "deleted": delete(store, ids)}


def _tell(found: dict[str, Any], json: Path | None) -> None:
    if str(json) != "-":
        rows = [(key, ", ".join(value) if isinstance(value, list) else str(value)) for key, value in found.items()]
        console.table("", ["figure", "value"], rows)
    if json is not None:
        console.write_json(json, found)


def _require(holds: bool, what: str) -> None:
    from edgec.errors import UserError

    if not holds:
        raise UserError(what, "`edgec index --help` explains the command")
