"""`edgec ask`: questions about passages that were read before."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edgec.cli import console

if TYPE_CHECKING:
    from edgec_runtime import Answers, PassageAnswer
    from rich.text import Text

_AROUND: Final = 120
_SENTENCE_END: Final = re.compile(r"[.!?]\s+|[。！？\n]\s*")


class Search(StrEnum):
    dense = "dense"
    bm25 = "bm25"


def ask(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The folder of a decoupled question-answering bundle.")
    ],
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The folder that `edgec index` made.")],
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="Without it questions are read from stdin, one a line.")
    ] = None,
    k: Annotated[int, typer.Option("--k", metavar="N", min=1, help="Passages to read.")] = 5,
    search: Annotated[
        Search | None,
        typer.Option(
            "--search",
            help="How they are found: by meaning (dense), or by words (bm25). Default: dense where the model was "
            "trained for it, else bm25.",
        ),
    ] = None,
    threads: Annotated[int | None, console.threads_option("CPU threads to use.")] = None,
    json: Annotated[Path | None, console.json_option("Write the answers to a file; - is stdout.")] = None,
) -> None:
    """Answer questions from a store of passages.

    Every answer comes with its score, its passage and the sentence around it, the best first. Passages without an
    answer give none.
    """
    from edgec_runtime import PassageReader

    told = []
    with PassageReader.open(bundle, store, threads=threads) as reader:
        for one in _typed() if question is None else (question,):
            found = reader.ask(one, k, None if search is None else search.value)
            told.append(found.to_dict())
            if str(json) != "-":
                _show(found)
    if json is not None:
        console.write_json(json, told if question is None else told[0])


def _typed() -> Iterator[str]:
    """Questions from stdin, with a prompt where somebody sits before it."""
    if hasattr(sys.stdin, "reconfigure"):  # bytes that are no UTF-8 become a TextInvalid that names the place
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("question> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _show(found: Answers) -> None:
    if not found.passages:
        typer.echo(f"no match: no passage has to do with {found.question!r}")
    elif not found.answers:
        read = f"{found.passages} passage{'s' if found.passages > 1 else ''}"
        typer.echo(f"no answer in {read} (null score {found.null_score:.2f}) to {found.question!r}")
    else:
        rows = [
            (answer.text, f"{answer.score:.2f}", answer.title or answer.document, sentence(answer)) for answer in found
        ]
        console.table(found.question, ["answer", "score", "passage", "where"], rows)


def sentence(answer: PassageAnswer) -> Text:
    """The sentence around an answer, in which it is highlighted; cut where it is very long."""
    from rich.text import Text

    context, start, end = answer.context, answer.start, answer.end
    begins = [found.end() for found in _SENTENCE_END.finditer(context) if found.end() <= start]
    stops = [found.end() for found in _SENTENCE_END.finditer(context, max(start, end - 1)) if found.end() >= end]
    first = max(begins[-1] if begins else 0, start - _AROUND)
    last = min(stops[0] if stops else len(context), end + _AROUND)
    before, after = context[first:start], context[end:last].rstrip()
    cut = last < (stops[0] if stops else len(context))
    return Text.assemble(
        ("…" if first > (begins[-1] if begins else 0) else "") + before.lstrip(),
        (context[start:end], "bold reverse"),
        after + ("…" if cut else ""),
    )
