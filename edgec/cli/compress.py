"""`edgec compress`: run a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgec.cli import console


def compress(
    recipe: Annotated[str, typer.Option("--recipe", metavar="FILE|NAME", help="A recipe file, or a shipped recipe.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write. [default: build/RECIPE]")
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="DEVICE",
            help="Verifies and measures: local or ssh://user@host[:port]. qemu://CPU only verifies.",
        ),
    ] = "local",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, e.g. passes.0.scheme=dynamic."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="The folder of the data sets that a recipe names as data://SET/FILE."
        ),
    ] = None,
    forms: Annotated[
        str,
        typer.Option(
            "--forms",
            metavar="WHICH",
            help="Operators of the graph: kept (as measured before, else measured now), measure, default, or a bundle "
            "whose forms are repeated.",
        ),
    ] = "kept",
    resume: Annotated[bool, typer.Option("--resume", help="Take up the passes of an interrupted run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace DIR, once the new one is whole.")] = False,
    json: Annotated[Path | None, console.json_option("Write the report there too; - is stdout.")] = None,
) -> None:
    """Run a recipe: compress a model, export, verify and measure it.

    Writes DIR/model, DIR/baseline (fp32), DIR/bundles/TARGET, DIR/report.json and the page DIR/report.html.

    Started by torchrun or accelerate launch, its passes train on all processes; the first one writes and reports.
    """
    from edgec import pipeline, processes, report

    if not processes.is_main():
        pipeline.take_part(recipe, out=out, overrides=overrides or (), data=data, resume=resume)
        return
    made = pipeline.compress(
        recipe,
        out=out,
        on=on,
        overrides=overrides or (),
        data=data,
        forms=forms,
        resume=resume,
        force=force,
        progress=console.progress,
        say=console.say,
    )
    console.stop_progress()
    if str(json) != "-":
        console.table(report.title(made), report.COLUMNS, report.rows(made))
    if json is not None:
        console.write_json(json, made.data)
    for warning in report.warnings(made):
        console.info(f"warning: {warning}")
    console.info(f"written to {made.out}: {report.REPORT_FILE} has every figure, {made.out / 'report.html'} shows them")
    pipeline.require_budget(made)
