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
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="FILE",
            help="Labelled rows; .gz is read as it is. Several files: NAME=FILE for each; rows then have the column "
            "file with that name.",
        ),
    ],
    revision: Annotated[str | None, typer.Option(help="Of a hub id: a commit, tag or branch.")] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="csv, tsv, jsonl, parquet, conll, conllu or squad; without it the suffix tells."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="COL", help='Column of the text, default "text"; of conll that of the word.'),
    ] = None,
    text_pair: Annotated[
        str | None, typer.Option("--text-pair", metavar="COL", help="Column of the second text.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--label",
            metavar="COL",
            help='Column of the label or score, default "label" or "score"; of conll a number, of conllu upos or xpos.',
        ),
    ] = None,
    label_separator: Annotated[
        str | None, typer.Option("--label-separator", metavar="TEXT", help="What parts several labels of one text.")
    ] = None,
    group_by: Annotated[
        list[str] | None,
        typer.Option("--group-by", metavar="COL", help="Score every value of this column by itself, too."),
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", metavar="N", min=1, help="Rows to score, from the start; default all.")
    ] = None,
    first_row: Annotated[
        int, typer.Option("--first-row", metavar="N", min=0, help="Rows to pass over before that, in each file.")
    ] = 0,
    null_answers: Annotated[
        bool, typer.Option("--null-answers", help='question-answering: "there is no answer" may win.')
    ] = False,
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Count malformed rows instead of stopping at the first.")
    ] = False,
    json: Annotated[Path | None, console.json_option("Write the figures to a file as well.")] = None,
) -> None:
    """Score a bundle or a model on labelled data.

    Prints {metrics, groups, n, skipped, repaired} as JSON; the first metric is the task's main one.
    text-classification: accuracy, macro and micro F1. token-classification: F1 over spans, or accuracy and macro F1
    over words. question-answering: F1 and exact match, with answer and without. feature-extraction, on pairs with a
    score: the correlation of the cosine similarity.
    """
    from edgec.evaluation import evaluate as score

    result = score(
        model,
        _files(data),
        revision=revision,
        format=format,
        text=text,
        text_pair=text_pair,
        label=label,
        label_separator=label_separator,
        group_by=group_by or (),
        rows=rows,
        first_row=first_row,
        null_answers=null_answers,
        on_error="skip" if skip_malformed else "raise",
        progress=console.progress,
    ).to_dict()
    console.write_json(Path("-"), result)
    if json is not None and str(json) != "-":
        console.write_json(json, result)


def _files(given: list[str]) -> str | dict[str, str]:
    """One path, or several by name. A path that is there is no NAME=FILE, whatever its name."""
    from edgec.errors import UserError

    if len(given) == 1 and ("=" not in given[0] or Path(given[0]).is_file()):
        return given[0]
    files: dict[str, str] = {}
    for one in given:
        name, equals, file = one.partition("=")
        if not (name and equals and file):
            raise UserError(f"--data {one}: several files need names", "write --data NAME=FILE for each")
        if name in files:
            raise UserError(f"--data {one}: the name {name!r} comes twice", "give every file a name of its own")
        files[name] = file
    return files
