"""`edgec report`: one HTML page about one or several builds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from edgec.cli import console
from edgec.errors import UserError

PAGE_FILE: Final = "report.html"


def report(
    builds: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="What `edgec compress` wrote; several: compared.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            callback=console.writable,
            help="Where to write. [default: DIR/report.html; report.html for several]",
        ),
    ] = None,
    json: Annotated[Path | None, console.json_option("Write the reports as one JSON file; - is stdout.")] = None,
) -> None:
    """Write a page that explains builds.

    One HTML file that needs no network and no script: what was asked and what came out, budget, size, speed and
    quality, where int8 runs and where the error arises, what was put back, machine, versions, and the command that
    repeats it. Everything comes from report.json.
    """
    from edgec.page import read_report, write_page

    if str(out) == "-":
        raise UserError("the page is written to a file, not to stdout", "give --out FILE.html")
    reports = [(folder, read_report(folder)) for folder in builds]
    if out is None:
        out = builds[0] / PAGE_FILE if len(builds) == 1 else Path(PAGE_FILE)
    write_page(reports, out)
    if json is not None:
        console.write_json(json, {"builds": [{"path": str(folder), "report": data} for folder, data in reports]})
    console.info(f"written to {out}")
