"""`edgec bench`: how fast bundles are on a device, each compared with the first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgec.cli import console


def bench(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE", help="The others are compared with the first.")],
    on: Annotated[str, typer.Option("--on", metavar="DEVICE", help="local or ssh://user@host[:port].")] = "local",
    json: Annotated[Path | None, console.json_option("Write the figures as JSON; - is stdout.")] = None,
    tokens: Annotated[
        str, typer.Option(metavar="N,N", help="Tokens a row, for the times from ids to output.")
    ] = "16,64,128",
    batch: Annotated[str, typer.Option(metavar="N,N", help="Rows at a time.")] = "1",
    threads: Annotated[
        int | None,
        console.threads_option("CPU threads. [default: 1 from ids to output, all CPUs from texts to answers]"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often the bundles take turns.")] = 20,
    cold_start: Annotated[bool, typer.Option(help="Time fresh processes up to their first answer, too.")] = True,
) -> None:
    """Measure bundles side by side on a device.

    Shows times, throughput, load, cold start and memory. A ratio is the median over the rounds; a figure that the
    machine was too restless for is marked unstable.
    """
    from edgec import operations
    from edgec.devices import compare

    report = operations.bench(
        bundles,
        on=on,
        tokens=_sizes(tokens, "--tokens"),
        batch=_sizes(batch, "--batch"),
        threads=threads,
        rounds=rounds,
        cold_start=cold_start,
        say=console.say,
    )
    console.stop_progress()
    if str(json) != "-":
        console.table(f"edgec bench on {on}", list(compare.COLUMNS), [list(row) for row in compare.rows(report)])
        console.table("", list(compare.FACTS), [list(row) for row in compare.fact_rows(report)])
    if json is not None:
        console.write_json(json, dict(report.data))


def _sizes(text: str, option: str) -> tuple[int, ...]:
    from edgec.errors import UserError

    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise UserError(f"{option} {text!r} is no list of sizes", f"write it as {option} 16,64,128")
    return tuple(int(part) for part in parts)
