"""`edgec evaluate`: the score of a bundle or a model on a data file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgec.cli import console


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE|MODEL", help="A bundle, a build, a model folder, pkg://package/path or a hub id."
        ),
    ],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Labelled rows; .gz is read as it is.")],
    revision: Annotated[str | None, typer.Option(help="Of a hub id: a commit, tag or branch.")] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="csv, tsv, jsonl or text; without it the suffix tells.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="COL", help='Column of the text; default "text".')
    ] = None,
    text_pair: Annotated[
        str | None, typer.Option("--text-pair", metavar="COL", help="Column of the second text.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="COL", help='Column of the label or score; default "label" or "score".'),
    ] = None,
    group_by: Annotated[
        list[str] | None,
        typer.Option("--group-by", metavar="COL", help="Score every value of this column by itself, too."),
    ] = None,
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Count malformed rows instead of stopping at the first.")
    ] = False,
    json: Annotated[Path | None, console.json_option("Write the figures to a file as well.")] = None,
) -> None:
    """Score a bundle or a model on labelled data.

    Prints {metrics, groups, n, skipped} as JSON. text-classification: accuracy and macro F1. feature-extraction, on
    pairs with a score: Spearman's rank correlation of the cosine similarity.
    """
    from edgec.evaluation import evaluate as score

    result = score(
        model,
        data,
        revision=revision,
        format=format,
        text=text,
        text_pair=text_pair,
        label=label,
        group_by=group_by or (),
        on_error="skip" if skip_malformed else "raise",
        progress=console.progress,
    ).to_dict()
    console.write_json(Path("-"), result)
    if json is not None and str(json) != "-":
        console.write_json(json, result)
