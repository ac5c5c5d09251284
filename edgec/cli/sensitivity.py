"""`edgec sensitivity`: which layers cost the most where they alone are quantized."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edgec.cli import console
from edgec.files import megabytes

if TYPE_CHECKING:
    from edgec.ranking import Ranking

_BAR: Final = 24


def _plot(path: Path | None) -> Path | None:
    """Checked before the work, which would be lost with it."""
    if path is None:
        return None
    from edgec.ranking.plot import require_format

    require_format(path)
    return console.writable(path)


def sensitivity(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|BUILD", help="A folder, hub id, pkg://package/path, or a compress output."),
    ],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Texts, as for a recipe; .gz is read as it is.")],
    format: Annotated[
        str | None, typer.Option("--format", help="csv, tsv, jsonl or text; without it the suffix tells.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="COL", help='Column of the text; default "text".')
    ] = None,
    text_pair: Annotated[
        str | None, typer.Option("--text-pair", metavar="COL", help="Column of the second text.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=1, help="Texts to use, from the start.")] = 64,
    scheme: Annotated[str | None, typer.Option("--scheme", metavar="NAME", help="Short for --set scheme=NAME.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="An option of the quantize pass; not for a build."),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="NAME|FILE", help="The machine class whose weight range counts.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="The task, where the model's configuration does not tell it.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub id: a commit, tag or branch.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Take up the layers that an earlier run finished, or none.")
    ] = True,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", callback=_plot, help="Draw the ranking: .svg, .png or .pdf."),
    ] = None,
    json: Annotated[Path | None, console.json_option("Write the ranking as JSON; - is stdout.")] = None,
) -> None:
    """Rank the layers of a model by what each costs, quantized alone.

    The cost is 1 - mean cosine of the outputs against the float model. A build is ranked as its passes decided; any
    other model is quantized first, with the options given, and calibrated on the same texts.
    """
    from edgec.ranking import sensitivity as rank

    ranking = rank(
        model,
        data,
        scheme=scheme,
        options=options or (),
        format=format,
        text=text,
        text_pair=text_pair,
        rows=rows,
        target=target,
        task=task,
        revision=revision,
        resume=resume,
        progress=console.progress,
    )
    console.stop_progress()
    if str(json) != "-":
        _show(ranking)
    if json is not None:
        console.write_json(json, ranking.to_dict())
    if plot is not None:
        from edgec.ranking.plot import draw

        draw(ranking, plot)
        console.info(f"written to {plot}")


def _show(ranking: Ranking) -> None:
    from edgec.ranking.result import spans

    start, end, logarithmic = spans([layer.drop for layer in ranking.layers])
    console.table(
        f"{ranking.name}: each layer quantized alone, {ranking.texts} texts, {ranking.seconds:.0f} s",
        ["layer", "scheme", "drop", "(logarithmic)" if logarithmic else "", "worst cosine", "MB", "float MB"],
        [
            [
                layer.path,
                layer.scheme,
                f"{layer.drop:.2e}",
                bar(layer.drop, start, end, logarithmic),
                f"{layer.min_cosine:.4f}",
                megabytes(layer.bytes),
                megabytes(layer.float_bytes),
            ]
            for layer in ranking.layers
        ],
    )


def bar(value: float, start: float, end: float, logarithmic: bool) -> str:
    """`value` on a scale from `start` to `end`, as a text of up to 24 blocks; none at or below the start."""
    if value <= start:
        return ""
    share = math.log(value / start) / math.log(end / start) if logarithmic else value / end
    return "█" * round(_BAR * share)
