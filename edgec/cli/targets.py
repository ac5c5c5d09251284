"""`edgec targets`: the machine classes that bundles are made for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgec.cli import console

app = typer.Typer(no_args_is_help=True, help="The machine classes that bundles are made for.")

Json = Annotated[Path | None, console.json_option("Write the figures as JSON; - is stdout.")]


@app.command("list")
def list_(json: Json = None) -> None:
    """List the targets that ship, and on what each was verified."""
    from edgec.target import list_targets

    found = list_targets()
    if str(json) != "-":
        rows = [
            [t.name, t.arch, " ".join(t.features), "no" if t.verified is False else t.verified, t.summary]
            for t in found
        ]
        console.table("targets", ["name", "arch", "features", "verified", "summary"], rows)
    if json is not None:
        console.write_json(json, [target.to_dict() for target in found])


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="The name of a target that ships, or a target file.")],
    json: Json = None,
) -> None:
    """Print a target file, checked."""
    from edgec.target import load_target

    target = load_target(name)
    if str(json) != "-":
        typer.echo(target.source_path.read_text(encoding="utf-8-sig"), nl=False)
    if json is not None:
        console.write_json(json, target.to_dict())


@app.command()
def detect(
    on: Annotated[
        str, typer.Option("--on", metavar="DEVICE", help="local, ssh://user@host[:port] or qemu://CPU.")
    ] = "local",
    json: Json = None,
) -> None:
    """Name the target that fits a device best; the reasons go to stderr."""
    from edgec.devices import open_device
    from edgec.target import detect as best_target

    with open_device(on) as device:
        facts = device.facts()
    target, reasons = best_target(facts)
    for reason in reasons:
        console.info(f"{on}: {reason}")
    if str(json) != "-":
        typer.echo(target.name)
    if json is not None:
        console.write_json(json, {"device": on, "target": target.name, "reasons": reasons, "facts": facts})
