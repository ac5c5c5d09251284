"""`edgec run`: the answers of a bundle, by the runtime's own command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgec.cli import console


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.")],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT", help="Texts; - reads texts from stdin, one a line.")],
    pair: Annotated[
        str | None, typer.Option("--pair", metavar="TEXT", help="text-classification: the second text.")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option("--context", metavar="TEXT", help="question-answering: the text that holds the answer."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="NAME", help='feature-extraction: a named prompt; "" is none.'),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, metavar="N", help="fill-mask: candidates a mask (5).")
    ] = None,
    threads: Annotated[int | None, console.threads_option("CPU threads to use.")] = None,
) -> None:
    """Answer inputs, one JSON object a line."""
    from edgec_runtime.__main__ import main

    options = {
        "--pair": pair,
        "--context": context,
        "--prompt": prompt,
        "--top-k": top_k,
        "--threads": threads,
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    # "--" keeps a text that begins with a dash from being taken for an option.
    raise typer.Exit(main(["run", *given, "--", str(bundle), *inputs]))
